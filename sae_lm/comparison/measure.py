"""runs -> figures of every SAE and of pairs of them; SAEs are loaded one at a time, the baseline's first.

The number of main latents that all SAEs are scored with comes from the baseline (`common_counts`), so its splitting
is measured before anything else is.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from sae_lm.comparison.evaluate import (
    ConceptSet,
    Draws,
    EvaluationSet,
    candidates,
    common_counts,
    concept_figures,
    concept_means,
    documents,
    held_out_figures,
    reader,
    sae_codes,
    sae_splits,
    sampled,
)
from sae_lm.comparison.language_model import (
    all_entropies,
    boot_model,
)
from sae_lm.comparison.matching import ladder_of, match_rung, read_arm
from sae_lm.comparison.pairs import between_seeds, genealogies, widened
from sae_lm.comparison.runs import Key, Runs, read_narrower
from sae_lm.concepts.context_labels import CONTEXTUAL
from sae_lm.concepts.probes import Probe, fit_probes
from sae_lm.concepts.rows import ConceptRows, contextual_rows, sample_rows, vocabulary_rows
from sae_lm.concepts.token_labels import LABELS, read_labels
from sae_lm.data.store import Store
from sae_lm.errors import SettingsError, StoreError
from sae_lm.metrics.absorption_events import Children, View, children, explore
from sae_lm.metrics.codes import TokenCodes
from sae_lm.metrics.geometry import nearest_shares
from sae_lm.metrics.meta_sae import composition
from sae_lm.metrics.splitting import Split
from sae_lm.runtime.progress import Progress
from sae_lm.sae.model import SAE, random_sae
from sae_lm.settings import CompareSettings

CONTROL = "random"
"""Name of the control: an SAE whose decoder rows are random directions."""
EXPLORED = 4
"""Arms side by side in the explorer, at most."""


class Measured(NamedTuple):
    figures: dict[Key, dict[str, float]]
    """metric -> value; the control under (CONTROL, 0)"""
    draws: dict[Key, Draws]
    """metric -> value in each sample of held-out text"""
    entropies: dict[str, Any] | None
    probes: list[Probe]
    remarks: list[str]
    """sentences on what of a user's labels could not be used"""
    per_concept: list[dict[str, Any]]
    nearest: dict[str, list[float]]
    """arm -> shares of alive latents by cosine to their nearest, at the first seed"""
    alive: int
    """latents alive in the baseline at the first seed"""
    genealogy: list[dict[str, Any]]
    widths: list[dict[str, Any]]
    explorer: list[dict[str, Any]]


class Seen(NamedTuple):
    """What the explorer needs of one SAE."""

    W_dec: Tensor
    codes: list[TokenCodes]
    splits: list[Split]
    children: list[Children]


def measure(settings: CompareSettings, store: Store, runs: Runs, device: str) -> Measured:
    """Raises SettingsError and SaeError for what the user gave, before the long part of the work."""
    figures: dict[Key, dict[str, float]] = {key: {} for key in [*runs.of, (CONTROL, 0)]}
    draws: dict[Key, Draws] = {key: {} for key in figures}
    narrower = settings.narrower and read_narrower(settings.narrower, runs, settings.baseline)
    if narrower:
        narrower.check()
    model = None if settings.model == "none" else boot_model(settings, store, device)
    evaluation_set, probes, remarks = _build_evaluation_set(settings, store, runs, model and model[1])
    entropies = model and all_entropies(settings, store, runs, model, device, figures, draws)
    ladder = ladder_of(settings.baseline, runs.arms, settings.baseline)
    first = runs.seeds[0]
    splits: dict[Key, list[Split]] = {}
    nearest: dict[str, list[float]] = {}
    alive: dict[Key, Bool[Tensor, " d_sae"]] = {}
    views: dict[str, Seen] = {}
    per_concept: list[dict[str, Any]] = []

    def split(codes: list[TokenCodes]) -> list[Split]:
        return sae_splits(codes, evaluation_set, settings.max_k, settings.split_gain)

    of_baseline = {key: run for key, run in runs.of.items() if key[0] in ladder and evaluation_set.candidates}
    with Progress("main latents of the baseline", len(of_baseline), "SAE") as bar:
        for key, run in of_baseline.items():
            splits[key] = split(sae_codes(run.load(device), evaluation_set))
            bar.update(1)
    common = common_counts(list(splits.values()))
    with Progress("comparing", len(figures), "SAE") as bar:
        for key, sae in _saes(runs, ladder, figures, device, settings.seed):
            held = held_out_figures(sae, evaluation_set)
            figures[key] |= held.figures
            draws[key] |= held.draws
            alive[key] = held.fired
            if settings.composition:
                figures[key] |= composition(sae.W_dec, alive[key], settings.seed)._asdict()
            if key[1] == first and key[0] != CONTROL:
                nearest[key[0]] = nearest_shares(held.nearest)
            if evaluation_set.candidates:
                codes = sae_codes(sae, evaluation_set)
                own = splits.get(key) or split(codes)
                concepts, drawn = concept_figures(sae, codes, own, evaluation_set, common, sweep=key[1] == first)
                per_concept += [{"arm": key[0], "seed": key[1], **concept} for concept in concepts]
                figures[key] |= concept_means(concepts)
                draws[key] |= drawn
                if key[1] == first and len(views) < EXPLORED and beside(_middle(ladder), key, ladder, figures):
                    kids = [
                        children(mine, of.rows.token_id[: len(mine.latent)], of.rows.child)
                        for mine, of in zip(codes, evaluation_set.sets, strict=True)
                    ]
                    views[key[0]] = Seen(sae.W_dec.cpu(), codes, own, kids)
            bar.update(1)
    between_seeds(runs, alive, ladder, device, figures)
    widths, traced = widened(runs, narrower, evaluation_set.read, device, figures) if narrower else ([], [])
    return Measured(
        figures=figures,
        draws=draws,
        entropies=entropies,
        probes=probes,
        remarks=remarks,
        per_concept=per_concept,
        nearest=nearest,
        alive=int(alive[runs.arms[0], first].sum()),
        genealogy=[*genealogies(runs, evaluation_set.read, device), *traced],
        widths=widths,
        explorer=_explorer(store, evaluation_set, views, common, first),
    )


def _saes(
    runs: Runs, ladder: list[str], figures: dict[Key, dict[str, float]], device: str, seed: int
) -> Iterator[tuple[Key, SAE]]:
    """Every SAE, then the control, which has the L0 of the baseline's middle rung."""
    for key, run in runs.of.items():
        yield key, run.load(device)
    like = _middle(ladder), runs.seeds[0]
    yield (CONTROL, 0), random_sae(runs.of[like].load("cpu"), figures[like]["l0"], seed).to(device)


def _build_evaluation_set(
    settings: CompareSettings, store: Store, runs: Runs, model: Any
) -> tuple[EvaluationSet, list[Probe], list[str]]:
    hook, start = runs.training["hook"], runs.training["held_out_from_row"]
    given = None if settings.labels is None else read_labels(settings.labels, store.vocabulary, (*LABELS, *CONTEXTUAL))
    if settings.prompts and model is None:
        raise SettingsError("prompts need the language model, and model is none; leave out one of them")
    if settings.prompts:
        sets = [vocabulary_rows(model, hook, store, settings.seed, given)]
    else:
        sets = [sample_rows(store, hook, start, settings.per_type, settings.seed, given)]
    if settings.contextual:
        sets += contextual_rows(store, hook, start, settings.per_type, settings.seed, given)
    document = store.tokens(start)["document"].long()
    concept_sets: list[ConceptSet] = []
    found, probes = [], []
    for number, rows in enumerate(sets):
        _check_finite(rows.x if rows.row is None else rows.x[rows.row >= 0], store, hook)
        fitted = fit_probes(rows, settings.min_types, settings.probe_gate, settings.seed)
        used = [(c, probe) for c, probe in enumerate(fitted) if probe.skipped is None]
        if used:
            of_rows = documents(_documents_of(rows, document, start), settings.seed)
            found += candidates(number, rows, used, of_rows)
        probes += fitted
        concept_sets.append(ConceptSet(rows, [c for c, _ in used]))
    stop = min(len(store), start + settings.tokens)
    read, of_rows = reader(store, hook, start, stop), documents(document[: stop - start], settings.seed)
    shared = sampled(read, of_rows)
    _check_finite(shared.squares, store, hook)
    evaluation_set = EvaluationSet(
        read=read,
        documents=of_rows,
        sampled=shared,
        sets=concept_sets,
        candidates=found,
        seed=settings.seed,
    )
    return evaluation_set, probes, [given.unknown] if given and given.unknown else []


def _check_finite(values: Tensor, store: Store, hook: str) -> None:
    if not torch.isfinite(values).all():
        raise StoreError(
            f"store {store.path} is damaged: rows of {hook} hold NaN or infinity, and none did when it was cached; run "
            f"sae-lm verify {store.path} --repair"
        )


def _documents_of(rows: ConceptRows, document: Tensor, start: int) -> Tensor:
    """The document of each row; one that is not from the store is a document of its own."""
    own = -1 - torch.arange(len(rows.x))
    if rows.row is None:
        return own
    return torch.where(rows.row < 0, own, document[(rows.row - start).clamp_min(0)])


def _middle(ladder: list[str]) -> str:
    return ladder[len(ladder) // 2]


def beside(rung: str, key: Key, ladder: list[str], figures: dict[Key, dict[str, float]]) -> bool:
    """Whether the explorer shows an SAE beside this rung of the baseline: the rung itself, and arms of its k or L0."""
    arm, seed = key
    if arm in ladder or arm == CONTROL:
        return arm == rung
    l0 = {name: [figures[name, seed]["l0"]] for name in (arm, rung)}
    return read_arm(arm).k == read_arm(rung).k or match_rung(arm, [rung], l0).how == "matched"


def _explorer(
    store: Store, evaluation_set: EvaluationSet, views: dict[str, Seen], common: list[int], seed: int
) -> list[dict[str, Any]]:
    told = []
    for place, (found, k) in enumerate(zip(evaluation_set.candidates, common, strict=True)):
        rows, number = evaluation_set.sets[found.set].rows, found.set
        if rows.row is None:
            continue
        arms = {
            arm: View(seen.codes[number], seen.W_dec, seen.splits[place].ranking[:k], seen.children[number])
            for arm, seen in views.items()
        }
        shown = explore(store, arms, rows.x, rows.token_id, rows.row, found.rows, found.probe.weight)
        told.append({"concept": found.probe.name, "seed": seed, **shown})
    return told
