"""Choose what all SAEs of a comparison are evaluated on: held-out rows, concepts, and bootstrap samples of documents.

Where documents are few, blocks of contexts stand for them (`sae_lm.concepts.text_units`). All is chosen once
(`build_evaluation_set`) and is the same for every SAE.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lm.comparison.runs import Runs
from sae_lm.concepts.embedding import embedding_f1, input_embeddings
from sae_lm.concepts.probes import Probe, fit_probes
from sae_lm.concepts.rows import (
    CONCEPTS,
    SEARCHED_PLACES,
    SPLIT_CONTEXTS,
    ConceptRows,
    contextual_rows,
    inflected_rows,
    sample_rows,
    vocabulary_rows,
)
from sae_lm.concepts.text_units import numbered, text_units
from sae_lm.concepts.token_labels import read_labels
from sae_lm.concepts.word_split import TEST
from sae_lm.data.repeats import share_in_several
from sae_lm.data.store import Store
from sae_lm.errors import SettingsError, StoreError
from sae_lm.metrics.statistics import resamples, sums_of_units
from sae_lm.settings import CompareSettings

SUMMED_ROWS = 4096
"""Held-out rows read at once where no SAE is concerned."""
CACHED_BYTES = 1 << 30
"""Held-out rows of up to this size are read once for all SAEs; more are read again for each."""
FEWEST_UNITS, MOST_SHARED = 5, 0.9
"""Units of text (documents, blocks of contexts) below which, and the share of text in several of them beyond which, the
noise of the evaluation is unknown."""
SAMPLES = 200
"""Bootstrap samples of documents: the spread over them has a relative error of 5%."""


class Documents(NamedTuple):
    """Which document (or block of contexts) each of some rows is of, numbered from 0, and the samples of these."""

    of_row: Int[Tensor, " rows"]
    """int32"""
    counts: Float[Tensor, "samples documents"]


class SampleSums(NamedTuple):
    """What the samples of documents have, whatever the SAE; float64."""

    rows: Float[Tensor, " samples"]
    squares: Float[Tensor, " samples"]
    """sum of ||x||^2"""
    variance: Float[Tensor, " samples"]
    """mean ||x - mean x||^2"""


class ConceptSet(NamedTuple):
    """Rows, and the concepts in use on them; several sets have rows of their own."""

    rows: ConceptRows
    used: list[int]
    """columns of ``rows.labels`` that passed their gate"""


class Candidates(NamedTuple):
    """Rows of one concept on which absorption is scored: of unseen words, with the concept, and the probe says so."""

    set: int
    """number of its concept set"""
    concept: int
    """its column there"""
    probe: Probe
    rows: Int[Tensor, " n"]
    """their places among the set's rows"""
    x: Float[Tensor, "n d_in"]
    token_id: Int[Tensor, " n"]
    type: Int[Tensor, " n"]
    """token types numbered from 0"""
    weight: Float[Tensor, "samples n"]
    """how often each row's document is in each sample"""
    type_weight: Float[Tensor, "samples types"]


class EvaluationSet(NamedTuple):
    """What all SAEs are measured on."""

    read: Callable[[int], Iterator[Tensor]]
    """rows at once -> the held-out rows, batch by batch"""
    documents: Documents
    """of the held-out rows"""
    sums: SampleSums
    """over the samples of these documents"""
    sets: list[ConceptSet]
    candidates: list[Candidates]
    """one for each concept in use; lists of a concept's splits have this order"""
    seed: int
    noise_unknown: str = ""
    """why samples of documents say nothing of other text, in a sentence; usually empty"""

    def places(self, number: int) -> list[int]:
        """Where the candidates of a concept set are among all."""
        return [place for place, candidates in enumerate(self.candidates) if candidates.set == number]


def sample_documents(of_row: Int[Tensor, " rows"], seed: int) -> Documents:
    """Number the documents and draw samples of them."""
    of_row, units = numbered(of_row)
    return Documents(of_row, resamples(units, SAMPLES, seed))


def reader(store: Store, hook: str, start: int, stop: int) -> Callable[[int], Iterator[Tensor]]:
    """Held-out rows in the store's dtype, kept in memory where they are few."""
    fits = (stop - start) * store.column_bytes(hook) <= CACHED_BYTES
    cached = store.rows(hook, start, stop) if fits else None

    def read(size: int) -> Iterator[Tensor]:
        if cached is not None:
            yield from cached.split(size)
            return
        for first in range(start, stop, size):
            yield store.rows(hook, first, min(stop, first + size))

    return read


def why_noise_is_unknown(token_id: Int[Tensor, " rows"], unit: Int[Tensor, " rows"]) -> str:
    """A sentence where samples of these units say nothing of what other text would give; else empty.

    They would then differ hardly at all, and a noise of nearly 0 be reported as if it had been measured.
    unit: the document, or block of contexts, of each row, numbered from 0.
    """
    units = int(unit.max()) + 1 if len(unit) else 0
    if units < FEWEST_UNITS:
        what = "a single context or block of contexts" if units == 1 else f"{units} contexts or blocks of contexts"
        return f"The noise of the evaluation is unknown: the held-out rows are of {what}; hold out more text."
    if (share := share_in_several(token_id, unit)) > MOST_SHARED:
        return (
            f"The noise of the evaluation is unknown: {share:.0%} of the held-out text stands in it more than once, so that "
            "samples of it say nothing of other text; cache text without copies."
        )
    return ""


def find_candidates(
    number: int, rows: ConceptRows, used: Sequence[tuple[int, Probe]], documents: Documents
) -> list[Candidates]:
    """Of the concept set of this number. used: column and probe; documents: of its rows."""
    candidates = []
    for column, probe in used:
        predicted = rows.x @ probe.weight + probe.bias > 0
        places = ((rows.subset == TEST) & rows.labels[:, column] & predicted).nonzero().flatten()
        types, type_of_row = rows.token_id[places].unique(return_inverse=True)
        weight = documents.counts[:, documents.of_row[places]]
        type_weight = torch.zeros(len(weight), len(types)).index_add_(1, type_of_row, weight)
        x, token_id = rows.x[places], rows.token_id[places]
        candidates.append(Candidates(number, column, probe, places, x, token_id, type_of_row, weight, type_weight))
    return candidates


@torch.no_grad()
def sum_samples(read: Callable[[int], Iterator[Tensor]], documents: Documents) -> SampleSums:
    """Over the held-out rows once; the same for every SAE."""
    counts, first = documents.counts, 0
    total: Tensor = torch.zeros(())
    squares = []
    for x in read(SUMMED_ROWS):
        weight = counts[:, documents.of_row[first : first + len(x)]]
        total = total + (weight @ x.float()).double()
        squares.append(x.double().square().sum(1))
        first += len(x)
    units = counts.shape[1]
    rows_of_unit = torch.bincount(documents.of_row, minlength=units).double()
    square, n = (
        counts.double() @ sums for sums in (sums_of_units(torch.cat(squares), documents.of_row, units), rows_of_unit)
    )
    return SampleSums(n, square, square / n - (total / n[:, None]).square().sum(1))


def build_evaluation_set(
    settings: CompareSettings, store: Store, runs: Runs, model: Any
) -> tuple[EvaluationSet, list[Probe], list[str]]:
    """Also the probes of all concepts, and sentences on what of a user's labels could not be used.

    model: the language model, or None. Raises SettingsError, and StoreError for a damaged store.
    """
    hook, start = runs.training["hook"], runs.training["held_out_from_row"]
    labels = None if settings.labels is None else read_labels(settings.labels, store.vocabulary, CONCEPTS)
    _check_prompts(settings, model)
    if settings.prompts:
        sets = [vocabulary_rows(model, hook, store, settings.seed, labels)]
    else:
        sets = [sample_rows(store, hook, start, settings.per_type, settings.seed, labels)]
    sets.append(inflected_rows(sets[0], store.vocabulary, settings.seed))
    if settings.contextual:
        sets += contextual_rows(store, hook, start, settings.per_type, settings.seed, labels)
    tokens, stop = store.tokens(start, columns=("document", "context")), min(len(store), start + settings.tokens)
    unit = text_units(tokens["document"], tokens["context"]).of_row
    concept_sets: list[ConceptSet] = []
    candidates, probes = [], []
    for number, rows in enumerate(sets):
        _check_finite(rows.x if rows.row is None else rows.x[rows.row >= 0], store, hook)
        if not torch.isfinite(rows.x).all():
            raise SettingsError(
                f"the language model gives NaN or infinity at {hook} on prompts of one token, and --prompts needs rows of "
                "them; leave it out, or give --model as the store was cached from"
            )
        fitted = fit_probes(rows, settings.min_words, settings.probe_gate, settings.seed)
        used = [(column, probe) for column, probe in enumerate(fitted) if probe.skipped is None]
        if used and model is not None:
            scores = embedding_f1(rows, input_embeddings(model, rows), [column for column, _ in used])
            used = [(c, probe._replace(embedding_f1=score)) for (c, probe), score in zip(used, scores, strict=True)]
            fitted = [dict(used).get(column, probe) for column, probe in enumerate(fitted)]
        if used:
            documents = sample_documents(_documents_of(rows, unit, start), settings.seed)
            candidates += find_candidates(number, rows, used, documents)
        probes += fitted
        concept_sets.append(ConceptSet(rows, [column for column, _ in used]))
    read_units = text_units(tokens["document"][: stop - start], tokens["context"][: stop - start]).of_row
    read, documents = reader(store, hook, start, stop), sample_documents(read_units, settings.seed)
    sums = sum_samples(read, documents)
    _check_finite(sums.squares, store, hook)
    token_id = store.tokens(start, stop, ("token_id",))["token_id"]
    evaluation_set = EvaluationSet(
        read=read,
        documents=documents,
        sums=sums,
        sets=concept_sets,
        candidates=candidates,
        seed=settings.seed,
        noise_unknown=why_noise_is_unknown(token_id, read_units),
    )
    return evaluation_set, probes, [labels.unknown] if labels and labels.unknown else []


def _check_prompts(settings: CompareSettings, model: Any) -> None:
    """Raises SettingsError for prompts without a model, and for settings that they leave without an effect."""
    if settings.prompts and model is None:
        raise SettingsError("prompts need the language model, and model is none; leave out one of them")
    if settings.prompts and not settings.contextual and settings.differs("per_type"):
        raise SettingsError(
            f"per_type is {settings.per_type}, and with --prompts --no-contextual no concept is looked for in the text; "
            "leave it out"
        )


def kinds_of_units(settings: CompareSettings, store: Store, runs: Runs) -> dict[str, str]:
    """What stood for documents, in words: in the noise of held-out figures and of concepts, and in the concepts' split."""
    start = runs.training["held_out_from_row"]
    tokens = store.tokens(start, columns=("document", "context"))
    document, context = tokens["document"], tokens["context"]
    of_text = text_units(document, context).kind
    return {
        "held_out": text_units(document[: settings.tokens], context[: settings.tokens]).kind,
        "concepts": f"words, those of places by {of_text}" if settings.prompts else of_text,
        "split": text_units(document[-SEARCHED_PLACES:], context[-SEARCHED_PLACES:], SPLIT_CONTEXTS).kind,
    }


def _check_finite(values: Tensor, store: Store, hook: str) -> None:
    if not torch.isfinite(values).all():
        raise StoreError(
            f"store {store.path} is damaged: rows of {hook} hold NaN or infinity, and none did when it was cached; run "
            f"sae-lm verify {store.path} --repair"
        )


def _documents_of(rows: ConceptRows, unit: Tensor, start: int) -> Tensor:
    """The document or block of each row; of one that is not from the store its word."""
    own = -1 - rows.words
    if rows.row is None:
        return own
    return torch.where(rows.row < 0, own, unit[(rows.row - start).clamp_min(0)])
