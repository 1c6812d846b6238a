"""tokens of a store, or of a vocabulary -> rows labelled by concept, and a linear probe for each concept.

A concept is a property of the token a row belongs to (capitalised, a digit, in a user's list, ...), or of its place
(inside brackets, first on its line, ...). Rows are split by token TYPE, so that a probe cannot pass by remembering
tokens: types are hashed into train, validation and test, alike for all concepts.

Contextual concepts are harder to sample honestly, in two ways. A type says much about its places ("The" begins
lines, "the" does not), and that generalises to other types (capitalised, no leading space), so splitting by type
does not keep a probe from reading it. Therefore every type has `NEGATIVES` rows without the concept for each with it,
and the token says nothing at all. And neighbours share what is around them, so that a row's twin in the same
brackets could be learned by heart; therefore documents are split as well, and a row is used where its type and its
document are on the same side. Measured on the embedded model, F1 on unseen types is up to .09 higher in the documents
of the training rows than in others. What is not matched is the position: tokens are repeated late in a context.

A concept is used only if it has enough types, its probe finds it on unseen types, and a probe of permuted labels
does not; those that are not say why.
"""

import hashlib
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lm.data.store import Store
from sae_lm.metrics.contextual import contextual_labels
from sae_lm.metrics.labels import LABELS as LABELS
from sae_lm.metrics.labels import GivenLabels, label_table
from sae_lm.seeds import derive

TRAIN, VALIDATION, TEST = 0, 1, 2
PROBE_L2 = 1e-3
"""Weight of 0.5 ||w||^2 beside the mean balanced loss, rows scaled to mean squared norm d_in."""
PROBE_ITERATIONS = 60
SEARCHED_ROWS, SAMPLED_ROWS = 4_000_000, 65_536
"""Rows looked through for occurrences of tokens, from the store's end; rows kept, at most."""
SEARCHED_PLACES, CONTEXTUAL_ROWS = 1_000_000, 8192
"""Rows looked through for contextual concepts, from the store's end; rows kept of each concept, at most."""
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
    part: Int[Tensor, " n"]
    """TRAIN, VALIDATION or TEST, a function of the token type"""
    names: list[str]
    kinds: tuple[str, ...] = ()
    """of each concept: token, csv or contextual; empty if all are of the token"""
    row: Int[Tensor, " n"] | None = None
    """row numbers in the store, -1 for what is not from it"""
    child: dict[int, str] | None = None
    """token id -> what a user wants it to count as when it is told which child a latent fires on"""


class Probe(NamedTuple):
    """A linear probe of one concept on activations."""

    name: str
    kind: str
    """token, csv or contextual"""
    types: int
    """positive token types among the rows"""
    rows: int
    """positive rows"""
    f1: float
    """on test types; NaN where none was fitted"""
    permuted_f1: float
    """the same of a probe of permuted labels: what the gate must keep out"""
    weight: Float[Tensor, " d_in"]
    """direction in the space of raw activations"""
    bias: float
    skipped: str | None
    """why the concept is not used, or None"""


def type_part(token_id: int, seed: int) -> int:
    """64% of token types train, 16% validation, 20% test, by hash."""
    draw = hashlib.sha256(f"{seed},{token_id}".encode()).digest()[0] / 256
    return TRAIN if draw < 0.64 else VALIDATION if draw < 0.80 else TEST


def document_parts(document: Int[Tensor, " n"], seed: int) -> Int[Tensor, " n"]:
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
    model: the TransformerBridge the store was cached from, as ``sae_lm.data.activations.boot`` gives it.
    """
    from sae_lm.data.activations import Capture  # TransformerLens: seconds

    recipe = store.manifest.recipe
    special = (recipe.bos, recipe.separator)
    tokens = torch.tensor([token for token, text in enumerate(store.vocabulary) if text and token not in special])
    generator = torch.Generator().manual_seed(derive("vocabulary rows", seed))
    tokens = tokens[torch.randperm(len(tokens), generator=generator)[:limit]].sort().values
    prompts = (
        tokens[:, None] if recipe.bos is None else torch.nn.functional.pad(tokens[:, None], (1, 0), value=recipe.bos)
    )
    device = next(model.parameters()).device
    with Capture(model, [hook]) as capture:
        parts = [capture(some.to(device))[capture.names[0]][:, -1].float().cpu() for some in prompts.split(PROMPTS)]
    return _token_rows(store.vocabulary, torch.cat(parts), tokens, torch.full_like(tokens, -1), seed, given)


def _token_rows(
    vocabulary: list[str], x: Tensor, token_id: Tensor, row: Tensor, seed: int, given: GivenLabels | None
) -> ConceptRows:
    types = token_id.unique().tolist()
    labels, names, kinds = label_table(vocabulary, types, given)
    part = _type_parts(token_id, len(vocabulary), seed)
    return ConceptRows(x, token_id, labels[token_id], part, names, kinds, row, given and given.child)


def _type_parts(token_id: Tensor, vocabulary: int, seed: int) -> Tensor:
    part = torch.zeros(vocabulary, dtype=torch.long)
    for token in token_id.unique().tolist():
        part[token] = type_part(token, seed)
    return part[token_id]


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
    labels = _labels_in_context(store, tokens)
    part = _type_parts(token_id, len(store.vocabulary), seed)
    eligible = part == document_parts(tokens["document"], seed)
    chosen = [
        matched(token_id, label, eligible, per_type, derive("contextual rows", name, seed))
        for name, label in labels.items()
    ]
    x = store.gather(hook, start + torch.cat(chosen)).float().split([len(rows) for rows in chosen])
    return [
        ConceptRows(
            x=mine,
            token_id=token_id[rows],
            labels=label[rows, None],
            part=part[rows],
            names=[name],
            kinds=("contextual",),
            row=start + rows,
            child=given and given.child,
        )
        for mine, rows, (name, label) in zip(x, chosen, labels.items(), strict=True)
    ]


def _labels_in_context(store: Store, tokens: dict[str, Tensor]) -> dict[str, Bool[Tensor, " n"]]:
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
    found = contextual_labels(blocks.flatten().long().numpy(), begins.reshape(-1), store.vocabulary)
    return {name: torch.from_numpy(label[place]) for name, label in found.items()}


def matched(
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


def fit_probes(rows: ConceptRows, min_types: int, gate: float, seed: int = 0) -> list[Probe]:
    """L2-regularised, class-balanced logistic regressions, and beside each its control: the same on permuted labels.

    Concepts with too few examples are not fitted.
    """
    types = [len(rows.token_id[rows.labels[:, c]].unique()) for c in range(len(rows.names))]
    reasons = [_too_few(rows, c, types[c], min_types) for c in range(len(rows.names))]
    fitted = [c for c, reason in enumerate(reasons) if reason is None]
    labels = torch.cat([rows.labels[:, fitted], permuted(rows, seed)[:, fitted]], 1)
    train, test = rows.part == TRAIN, rows.part == TEST
    weight, bias = logistic(rows.x[train], labels[train])
    predicted = rows.x[test] @ weight + bias > 0
    scores = [f1(predicted[:, c], labels[test, c]) for c in range(labels.shape[1])]
    column = {c: place for place, c in enumerate(fitted)}
    probes = []
    for c, name in enumerate(rows.names):
        score = chance = float("nan")
        direction, offset, reason = torch.zeros(rows.x.shape[1]), 0.0, reasons[c]
        if c in column:
            score, chance = scores[column[c]], scores[len(fitted) + column[c]]
            direction, offset = weight[:, column[c]].clone(), float(bias[column[c]])
            if score < gate:
                reason = f"probe F1 {score:.2f} on unseen types, below {gate:g}"
            elif chance >= gate:
                reason = f"probe F1 {chance:.2f} on permuted labels too, not below {gate:g}"
        kind = rows.kinds[c] if rows.kinds else "token"
        positive = int(rows.labels[:, c].sum())
        probes.append(Probe(name, kind, types[c], positive, score, chance, direction, offset, reason))
    return probes


def _too_few(rows: ConceptRows, concept: int, types: int, min_types: int) -> str | None:
    """Why a concept cannot be fitted and scored, or None."""
    if types < min_types:
        return f"{types} token type{'s' * (types != 1)}, fewer than {min_types}"
    if any(len(rows.labels[rows.part == part, concept].unique()) < 2 for part in (TRAIN, VALIDATION, TEST)):
        return "no examples on both sides in train, validation and test types"
    return None


def permuted(rows: ConceptRows, seed: int) -> Bool[Tensor, "n concepts"]:
    """Labels that mean nothing: each token type has those of a random other, each row where concepts are contextual."""
    generator = torch.Generator().manual_seed(derive("permuted labels", seed))
    if "contextual" in rows.kinds:
        return rows.labels[torch.randperm(len(rows.labels), generator=generator)]
    types, kind = rows.token_id.unique(return_inverse=True)
    of_type = torch.zeros(len(types), rows.labels.shape[1], dtype=torch.bool)
    of_type[kind] = rows.labels
    return of_type[torch.randperm(len(types), generator=generator)][kind]


def logistic(
    x: Float[Tensor, "n d"], labels: Bool[Tensor, "n concepts"]
) -> tuple[Float[Tensor, "d concepts"], Float[Tensor, " concepts"]]:
    """Weights and biases; positives and negatives of each concept weigh the same in total.

    Minimises the mean balanced cross-entropy + `PROBE_L2` / 2 ||s w||^2, s the root mean square of x: L-BFGS for all
    concepts at once, in coordinates in which the rows are white. Measured on 17k rows of width 256 and 52 concepts:
    60 steps come within 7e-5 of the optimum, where 200 in the rows' own coordinates are 2e-3 above it.
    """
    scale = float(x.square().mean().sqrt()) or 1.0
    mean = x.mean(0)
    moment = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    for part in x.split(MOMENT_ROWS):
        moment += ((part - mean) / scale).double().T @ ((part - mean) / scale).double()
    # logits vary with the weights as x does, at a curvature of at most 1/4
    curvature = moment / (4 * max(1, len(x))) + PROBE_L2 * torch.eye(x.shape[1], dtype=torch.float64)
    lower = torch.linalg.cholesky(curvature)
    white = (
        torch.linalg.solve_triangular(lower.T, torch.eye(len(lower), dtype=torch.float64), upper=True).float() / scale
    )
    share = torch.where(labels, 0.5 / labels.sum(0).clamp_min(1), 0.5 / (~labels).sum(0).clamp_min(1))
    target = labels.float()
    free = torch.zeros(x.shape[1], labels.shape[1])
    centre = torch.zeros(labels.shape[1])
    optimizer = torch.optim.LBFGS(
        [free, centre], max_iter=PROBE_ITERATIONS, tolerance_grad=1e-7, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        weight = white @ free
        logits = x @ weight + (centre - mean @ weight)
        entropies = torch.nn.functional.softplus(logits) - target * logits
        slope = (logits.sigmoid_() - target) * share
        total = slope.sum(0)
        ridge = PROBE_L2 * scale**2
        free.grad = white.T @ (x.T @ slope - mean[:, None] * total + ridge * weight)
        centre.grad = total
        return (entropies * share).sum(dtype=torch.float64) + ridge / 2 * weight.square().sum(dtype=torch.float64)

    if labels.shape[1]:
        optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    weight = white @ free
    return weight, centre - mean @ weight


def f1(predicted: Bool[Tensor, " n"], actual: Bool[Tensor, " n"]) -> float:
    """2 TP / (2 TP + FP + FN); 0 where nothing is positive."""
    hits = int((predicted & actual).sum())
    wrong = int((predicted != actual).sum())
    return 2 * hits / (2 * hits + wrong) if hits else 0.0
