"""Rows of activations labelled by concept, sampled from a store or made from a vocabulary's tokens.

A concept is a property of the token a row belongs to (capitalised, a digit, in a user's list, ...), or of its place
(inside brackets, first on its line, ...). Rows are split by WORD (`sae_lm.concepts.word_split`), so that a probe cannot
pass by remembering any.

Contextual concepts are harder to sample honestly, in two ways. A type says much about its places ("The" begins
lines, "the" does not), and that generalises to other types (capitalised, no leading space), so splitting by word
does not keep a probe from reading it. Therefore every type has `NEGATIVES` rows without the concept for each with it,
and the token says nothing at all. And neighbours share what is around them, so that a row's twin in the same
brackets could be learned by heart; therefore documents are split as well, and a row is used where its word and its
document are on the same side. Measured on the embedded model, with types split one by one: F1 on unseen types was up to
.09 higher in the documents of the training rows than in others. Where documents are few, blocks of contexts are split in their place
(`sae_lm.concepts.text_units`), and of a block that goes on from one on another side the first context is left out.
What is not matched is the position: tokens are repeated late in a context.

Inflected words have rows of their own, of listed words alone, so that a concept is not "a word and no comma".

A concept is used only if enough words have it, its probe finds it on unseen ones, and better than labels without meaning
are found; those that are not say why.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lm.concepts.context_labels import CONTEXTUAL, contextual_labels
from sae_lm.concepts.text_units import text_units
from sae_lm.concepts.token_labels import LABELS, GivenLabels, label_table
from sae_lm.concepts.word_forms import FORMS, form_of
from sae_lm.concepts.word_split import split_words, word_of
from sae_lm.data.store import Store
from sae_lm.lm.device_map import input_device
from sae_lm.runtime.seeds import derive

CONCEPTS = (*LABELS, *CONTEXTUAL, *FORMS)
"""Names of the concepts that are looked for without a user's labels, which may have none of these."""
SEARCHED_ROWS, SAMPLED_ROWS = 4_000_000, 65_536
"""Rows looked through for occurrences of tokens, from the store's end; rows kept, at most."""
SEARCHED_PLACES, CONTEXTUAL_ROWS = 1_000_000, 8192
"""Rows looked through for contextual concepts, from the store's end; rows kept of each concept, at most."""
SPLIT_CONTEXTS = 4
"""Contexts of a block that is split as a whole, at least: of each the first may have to be left out."""
NEGATIVES = 3
"""Rows without a contextual concept for each with it. With one, calling every row positive would have an F1 of .67
and pass the gate; with three it has .4."""
PROMPTS, MOMENT_ROWS = 256, 4096
"""Prompts per forward pass, rows held in float64 at once."""


class ConceptRows(NamedTuple):
    """Rows sampled for some concepts, shared by every SAE of a comparison."""

    x: Float[Tensor, "n d_in"]
    token_id: Int[Tensor, " n"]
    labels: Bool[Tensor, "n concepts"]
    subset: Int[Tensor, " n"]
    """TRAIN, VALIDATION or TEST, a function of the token's word"""
    names: list[str]
    kinds: tuple[str, ...] = ()
    """of each concept: token, csv or contextual; empty if all are of the token"""
    row: Int[Tensor, " n"] | None = None
    """row numbers in the store, -1 for what is not from it"""
    child: dict[int, str] | None = None
    """token id -> what it counts as when the report names the child a latent fires on: its lemma, or what a user wants"""
    word: Int[Tensor, " n"] | None = None
    """number of the row's word; None: each token type is one"""

    @property
    def words(self) -> Int[Tensor, " n"]:
        """Number of each row's word."""
        return self.token_id if self.word is None else self.word


def document_subsets(document: Int[Tensor, " n"], seed: int) -> Int[Tensor, " n"]:
    """40% of the rows train, 30% validation, 30% test, by whole documents in random order."""
    _, index, counts = document.unique(return_inverse=True, return_counts=True)
    generator = torch.Generator().manual_seed(derive("concept documents", seed))
    order = torch.randperm(len(counts), generator=generator)
    middle = torch.empty(len(counts), dtype=torch.float64)
    middle[order] = (counts[order].cumsum(0) - counts[order] / 2).double() / max(1, len(document))
    return torch.bucketize(middle, torch.tensor([0.4, 0.7], dtype=torch.float64))[index]


def sample_rows(
    store: Store, hook: str, start: int, per_type: int, seed: int, given: GivenLabels | None = None
) -> ConceptRows:
    """Token concepts on at most ``per_type`` random occurrences of every token type in the rows from ``start`` on.

    Of very large stores the last rows are searched; of very many occurrences those are kept that show the most types.
    given: a user's labels, as further concepts.
    """
    start = max(start, len(store) - SEARCHED_ROWS)
    ids = store.tokens(start)["token_id"].long()
    generator = torch.Generator().manual_seed(derive("concept rows", seed))
    place, rank = _ranked(ids, generator)
    few = rank < per_type
    place, rank = place[few], rank[few]
    mixed = torch.randperm(len(place), generator=generator)
    chosen = place[mixed[rank[mixed].argsort(stable=True)[:SAMPLED_ROWS]]].sort().values
    x = store.gather(hook, start + chosen).float()
    return _token_rows(store.vocabulary, x, ids[chosen], start + chosen, seed, given)


def vocabulary_rows(
    model: Any, hook: str, store: Store, seed: int, given: GivenLabels | None = None, limit: int = SAMPLED_ROWS
) -> ConceptRows:
    """Token concepts on prompts of BOS and one token each: every token of the vocabulary, ``limit`` random ones at most.

    Covers tokens that the text lacks, in a place where nothing but the token is seen. Where the store's contexts have
    no BOS, the prompt is the token alone.
    model: the TransformerBridge the store was cached from, as ``sae_lm.lm.bridge.boot`` gives it.
    """
    from sae_lm.lm.bridge import Capture  # TransformerLens: seconds

    recipe = store.manifest.recipe
    special = (recipe.bos, recipe.separator, *recipe.other_special)
    part = "\N{REPLACEMENT CHARACTER}"  # a part of a character, or a byte that text never has
    texts = enumerate(store.vocabulary)
    tokens = torch.tensor([token for token, text in texts if text and text != part and token not in special])
    generator = torch.Generator().manual_seed(derive("vocabulary rows", seed))
    tokens = tokens[torch.randperm(len(tokens), generator=generator)[:limit]].sort().values
    prompts = (
        tokens[:, None] if recipe.bos is None else torch.nn.functional.pad(tokens[:, None], (1, 0), value=recipe.bos)
    )
    device = input_device(model)
    with Capture(model, [hook]) as capture:
        parts = [capture(some.to(device))[capture.names[0]][:, -1].float().cpu() for some in prompts.split(PROMPTS)]
    return _token_rows(store.vocabulary, torch.cat(parts), tokens, torch.full_like(tokens, -1), seed, given)


def _token_rows(
    vocabulary: list[str], x: Tensor, token_id: Tensor, row: Tensor, seed: int, given: GivenLabels | None
) -> ConceptRows:
    table, names, kinds = label_table(vocabulary, token_id.unique().tolist(), given)
    subset, word = _split(token_id, vocabulary, table, seed)
    return ConceptRows(x, token_id, table[token_id], subset, names, kinds, row, given and given.child, word)


def _split(
    token_id: Int[Tensor, " n"], vocabulary: list[str], table: Bool[Tensor, "vocabulary concepts"], seed: int
) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
    """Which side each row is on, and the number of its word. table: labels by token id, of what words are split by."""
    types = token_id.unique()
    found = [word_of(token, vocabulary) for token in types.tolist()]
    words = sorted(set(found))
    number = {word: place for place, word in enumerate(words)}
    of_type = torch.tensor([number[word] for word in found], dtype=torch.long)
    labels = torch.zeros(len(words), table.shape[1], dtype=torch.int32).index_add_(0, of_type, table[types].int()) > 0
    of_token = torch.zeros(len(vocabulary), dtype=torch.long)
    of_token[types] = of_type
    word = of_token[token_id]
    return split_words(words, labels, seed)[word], word


def inflected_rows(rows: ConceptRows, vocabulary: list[str], seed: int) -> ConceptRows:
    """The concepts of `FORMS` on those of some sampled rows whose token is a listed word.

    A word's child is its lemma, unless a user gave it another.
    """
    forms = {token: form for token in rows.token_id.unique().tolist() if (form := form_of(vocabulary[token]))}
    known = torch.zeros(len(vocabulary), dtype=torch.bool)
    known[list(forms)] = True
    table = torch.zeros(len(vocabulary), len(FORMS), dtype=torch.bool)
    for token, form in forms.items():
        table[token] = torch.tensor([form.form == name for name in FORMS])
    chosen = known[rows.token_id].nonzero().flatten()
    token_id = rows.token_id[chosen]
    subset, word = _split(token_id, vocabulary, table, seed)
    return ConceptRows(
        x=rows.x[chosen],
        token_id=token_id,
        labels=table[token_id],
        subset=subset,
        names=list(FORMS),
        kinds=("token",) * len(FORMS),
        row=None if rows.row is None else rows.row[chosen],
        child={token: form.lemma for token, form in forms.items()} | (rows.child or {}),
        word=word,
    )


def contextual_rows(
    store: Store, hook: str, start: int, per_type: int, seed: int, given: GivenLabels | None = None
) -> list[ConceptRows]:
    """One set of rows per contextual concept, from the rows from ``start`` on: at most ``per_type`` with the concept
    of every token type, each with `NEGATIVES` of the same type without it; see the head of this module.

    given: of a user's labels those of children.
    """
    start = max(start, len(store) - SEARCHED_PLACES)
    tokens = store.tokens(start)
    token_id = tokens["token_id"].long()
    if not len(token_id):
        return []
    labels = labels_in_context(store, tokens)
    subset, word = _split(token_id, store.vocabulary, torch.zeros(len(store.vocabulary), 0, dtype=torch.bool), seed)
    eligible = subset == _text_subsets(tokens, seed)
    chosen = [
        sample_matched(token_id, label, eligible, per_type, derive("contextual rows", name, seed))
        for name, label in labels.items()
    ]
    x = store.gather(hook, start + torch.cat(chosen)).float().split([len(rows) for rows in chosen])
    return [
        ConceptRows(
            x=rows_x,
            token_id=token_id[rows],
            labels=label[rows, None],
            subset=subset[rows],
            names=[name],
            kinds=("contextual",),
            row=start + rows,
            child=given and given.child,
            word=word[rows],
        )
        for rows_x, rows, (name, label) in zip(x, chosen, labels.items(), strict=True)
    ]


def _text_subsets(tokens: dict[str, Tensor], seed: int) -> Int[Tensor, " n"]:
    """The side of each row's document or block, -1 for what lies between two blocks that are on different sides."""
    units = text_units(tokens["document"], tokens["context"], SPLIT_CONTEXTS)
    subset = document_subsets(units.of_row, seed)
    of_unit = torch.zeros(int(units.of_row.max()) + 1, dtype=torch.long)
    of_unit[units.of_row] = subset
    crosses = units.after_border & (subset != of_unit[(units.of_row - 1).clamp_min(0)])
    return torch.where(crosses, -1, subset)


def labels_in_context(store: Store, tokens: dict[str, Tensor]) -> dict[str, Bool[Tensor, " n"]]:
    """Contextual labels of the rows whose columns ``tokens`` are.

    They are read from whole contexts, for a token without a row (dropped for its norm) is seen by the model as well.
    """
    first, last = int(tokens["context"][0]), int(tokens["context"][-1])
    blocks = store.blocks(first, last + 1)
    place = ((tokens["context"] - first).long() * blocks.shape[1] + tokens["position"]).numpy()
    begins = np.zeros(blocks.shape, bool)
    begins[:, 0] = True
    special = store.special(blocks).numpy()
    begins |= special
    begins[:, 1:] |= special[:, :-1]
    document = tokens["document"].numpy()
    begins.reshape(-1)[place[1:][document[1:] != document[:-1]]] = True
    labels = contextual_labels(blocks.flatten().long().numpy(), begins.reshape(-1), store.vocabulary)
    return {name: torch.from_numpy(label[place]) for name, label in labels.items()}


def sample_matched(
    token_id: Int[Tensor, " n"], label: Bool[Tensor, " n"], eligible: Bool[Tensor, " n"], per_type: int, seed: int
) -> Int[Tensor, " chosen"]:
    """Row numbers: of every type as many rows with the label as have `NEGATIVES` times as many without it, and these;
    ``per_type`` with it at most, and fewer where there would be more than `CONTEXTUAL_ROWS` in all."""
    generator = torch.Generator().manual_seed(seed)
    rows = eligible.nonzero().flatten()
    types, kind = token_id[rows].unique(return_inverse=True)
    positive = label[rows]
    have, lack = (torch.bincount(kind[side], minlength=len(types)) for side in (positive, ~positive))
    count = torch.minimum(have.clamp_max(per_type), lack // NEGATIVES)
    budget = CONTEXTUAL_ROWS // (1 + NEGATIVES)
    most = next((n for n in range(per_type, 1, -1) if int(count.clamp_max(n).sum()) <= budget), 1)
    if int((count > 0).sum()) > budget:  # one of each type is too many: some types
        some = count.nonzero().flatten()
        count[some[torch.randperm(len(some), generator=generator)[budget:]]] = 0
    count = count.clamp_max(most)
    place, rank = _ranked(kind * 2 + positive, generator)
    allowed = torch.where(positive[place], count[kind[place]], NEGATIVES * count[kind[place]])
    return rows[place[rank < allowed]].sort().values


def _ranked(group: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(places, ranks): all places, those of a group together and in random order, and each one's rank in its group."""
    shuffled = torch.randperm(len(group), generator=generator)
    place = shuffled[group[shuffled].argsort(stable=True)]
    ordered = group[place]
    return place, torch.arange(len(group)) - torch.searchsorted(ordered, ordered)
