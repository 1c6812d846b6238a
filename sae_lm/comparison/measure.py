"""Measure every SAE of a folder of runs, and pairs of them; SAEs are loaded one at a time, the baseline's first.

The number of main latents that all SAEs are scored with comes from the baseline (`common_counts`), so its splitting
is measured before anything else is. Every part returns its figures; they are merged once (`merge_figures`).
"""

import math
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor

from sae_lm.comparison.concept_subsets import common_subset_figures, subset_figures
from sae_lm.comparison.controls import GradedSae, Grades, grade
from sae_lm.comparison.equal_alarms import Scale, all_concept_figures, common_points, points_of_sae, with_f1_figures
from sae_lm.comparison.evaluate import (
    BootstrapValues,
    OnConcepts,
    batch_rows,
    common_counts,
    concept_means,
    find_main_latents,
    held_out_figures,
    ranked_by_f1,
    sae_codes,
)
from sae_lm.comparison.evaluation_set import EvaluationSet, build_evaluation_set
from sae_lm.comparison.explorer import MOST_SHOWN, ShownSae, explorer_entries, is_shown, keep_for_explorer
from sae_lm.comparison.kept import Kept, Part
from sae_lm.comparison.language_model import boot_model, if_causal, measure_cross_entropies
from sae_lm.comparison.matching import Matching, ladder_of, match_arms
from sae_lm.comparison.outcomes import METRICS
from sae_lm.comparison.pairs import compare_seeds, compare_widths, genealogies, take_rows
from sae_lm.comparison.removals import Removals, measure_removal_costs, measure_removals
from sae_lm.comparison.runs import Key, Run, Runs, read_narrower
from sae_lm.comparison.undertrained import training_figures
from sae_lm.concepts.probes import Probe
from sae_lm.data.store import Store
from sae_lm.metrics.codes import mean_square_strength
from sae_lm.metrics.decoder_projection import nth_decoder_projection
from sae_lm.metrics.false_alarms import OperatingPoint
from sae_lm.metrics.geometry import nearest_shares
from sae_lm.metrics.meta_sae import composition
from sae_lm.metrics.splitting import Split
from sae_lm.penalties.arms import Arm
from sae_lm.runtime.progress import Progress
from sae_lm.sae.model import SAE, random_sae
from sae_lm.settings import CompareSettings

PROJECTED_ROWS, PROJECTION_SHARE = 4096, 8
"""Held-out rows for the n-th decoder projection, at most; n is the number of latents of the narrowest SAE over this."""
RANKED = {
    "l1_probe": [],
    "f1": ["Main latents are ranked by the F1 of their firing, not by the L1 probe of sae-spelling (--rank-latents)."],
    "both": [
        "Main latents are ranked twice, by the L1 probe of sae-spelling and by the F1 of their firing. Figures are by the "
        "probe; a primary outcome is lower, higher or equivalent where it is by both."
    ],
}


class Measured(NamedTuple):
    """Everything that is measured of a folder of runs; `sae_lm.comparison.report` words it."""

    figures: dict[Key, dict[str, float]]
    """metric -> value"""
    control: dict[str, float]
    """the same of an SAE whose decoder rows are random directions"""
    bootstrap_values: dict[Key, BootstrapValues]
    """metric -> value in each sample of held-out text"""
    matching: Matching
    cross_entropy: dict[str, Any] | None
    """what the cross-entropies of all SAEs have in common"""
    probes: list[Probe]
    remarks: list[str]
    """sentences on what could not be used or is unknown"""
    per_concept: dict[Key, list[dict[str, Any]]]
    control_per_concept: list[dict[str, Any]]
    grades: Grades | None
    """of the baseline's middle rung at the first seed"""
    graded: str
    """which SAE that is"""
    nearest: dict[Arm, list[float]]
    """shares of alive latents by cosine to their nearest, at the first seed"""
    alive: int
    """latents alive in the baseline at the first seed"""
    genealogy: list[dict[str, Any]]
    widths: list[dict[str, Any]]
    explorer: list[dict[str, Any]]


def measure(settings: CompareSettings, store: Store, runs: Runs, kept: Kept, device: str) -> Measured:
    """Raises SettingsError and SaeError for what the user gave, before the long part of the work."""
    narrower = read_narrower(settings.narrower, runs) if settings.narrower else None
    if narrower:
        narrower.check()
    model = None if settings.model == "none" else boot_model(settings, store, device)
    evaluation_set, probes, remarks = build_evaluation_set(settings, store, runs, model and model.bridge)
    # probes are fitted anew, and rounding may bring one across its gate
    kept = kept.about([[of.probe.name, of.rows.tolist()] for of in evaluation_set.candidates])
    model = if_causal(model, store)
    language = model and measure_cross_entropies(settings, store, runs, model, kept, device)
    alone = _measure_saes(settings, runs, evaluation_set, kept, device)
    removals = {key: sae.removals for key, sae in alone.saes.items() if sae.removals}
    costs = model and measure_removal_costs(settings, store, runs, model, removals, kept, device)
    own_figures = {key: sae.figures for key, sae in alone.saes.items()}
    per_concept = {key: sae.per_concept for key, sae in alone.saes.items()}
    alive = {key: sae.fired for key, sae in alone.saes.items()}
    l0 = {arm: [own_figures[arm, seed]["l0"] for seed in runs.seeds] for arm in runs.arms}
    matching = match_arms(runs.arms, runs.baseline, l0)
    seeds = compare_seeds(runs, alive, alone.signal, matching.to_baseline, device)
    widths = narrower and compare_widths(runs, narrower, evaluation_set.read, device)
    first = runs.seeds[0]
    bootstrap_values = {key: sae.bootstrap_values for key, sae in alone.saes.items()}
    return Measured(
        figures=merge_figures(
            [
                own_figures,
                common_subset_figures(per_concept, [*matching.ladder]),
                language.figures if language else {},
                costs or {},
                seeds,
                widths.figures if widths else {},
            ]
        ),
        control=alone.control.figures,
        bootstrap_values={
            key: {} if evaluation_set.noise_unknown else values | (language.bootstrap_values[key] if language else {})
            for key, values in bootstrap_values.items()
        },
        matching=matching,
        cross_entropy=language.shared if language else None,
        probes=probes,
        remarks=[
            *remarks,
            *RANKED[settings.rank_latents],
            *filter(None, [evaluation_set.noise_unknown, alone.no_controls]),
        ],
        per_concept=per_concept,
        control_per_concept=alone.control.per_concept,
        grades=alone.grades,
        graded=alone.graded,
        nearest={arm: nearest_shares(alone.saes[arm, first].nearest) for arm in runs.arms},
        alive=int(alive[runs.arms[0], first].sum()),
        genealogy=[*genealogies(runs, evaluation_set.read, device), *(widths.genealogy if widths else [])],
        widths=widths.entries if widths else [],
        explorer=explorer_entries(store, evaluation_set, alone.shown, alone.common, first),
    )


def merge_figures(parts: Sequence[Mapping[Key, Mapping[str, float]]]) -> dict[Key, dict[str, float]]:
    """The figures of every SAE, from all parts of the measurement.

    Raises AssertionError for a figure that no metric of `METRICS` has, which no report would show, and for one that
    two parts give.
    """
    merged: dict[Key, dict[str, float]] = {}
    for part in parts:
        for key, figures in part.items():
            known = merged.setdefault(key, {})
            check_metrics(figures, key[0].name)
            if twice := figures.keys() & known.keys():
                raise AssertionError(f"{', '.join(sorted(twice))} of {key[0].name} is measured twice; measure it once")
            known.update(figures)
    return merged


def check_metrics(figures: Collection[str], sae: str) -> None:
    """Raises AssertionError for a figure, or the noise of one, that no metric of `METRICS` has."""
    if unknown := set(figures) - METRICS.keys():
        raise AssertionError(
            f"{', '.join(sorted(unknown))} of {sae} is measured and is no metric, so that no report shows it; "
            "name it in METRICS or measure it no longer"
        )


# --- each SAE by itself


class MeasuredSae(NamedTuple):
    figures: dict[str, float]
    bootstrap_values: BootstrapValues
    fired: Bool[Tensor, " d_sae"]
    """latents that fire on some held-out row"""
    nearest: Float[Tensor, " alive"]
    """cosine of each of these to the nearest other"""
    per_concept: list[dict[str, Any]]
    removals: Removals | None
    """a sample of its absorbed tokens; None where no concept is in use"""


class MeasuredSaes(NamedTuple):
    saes: dict[Key, MeasuredSae]
    control: MeasuredSae
    common: list[int]
    """main latents that every SAE is scored with, per concept"""
    shown: dict[Arm, ShownSae]
    """what the explorer shows, of the first seed"""
    signal: dict[Key, Float[Tensor, " d_sae"]]
    """mean squared strength of each SAE's latents"""
    grades: Grades | None
    graded: str
    no_controls: str
    """why they were not made, in a sentence; usually empty"""


class _Yardstick(NamedTuple):
    """What every SAE is measured with."""

    settings: CompareSettings
    evaluation_set: EvaluationSet
    common: list[int]
    """of each concept the number of main latents"""
    targets: list[OperatingPoint]
    """of each concept the operating point they are brought to"""
    by_f1: Scale | None
    """the two of the other ranking, where both are asked for"""
    n: int
    """latents per row at which all are projected"""
    device: str


def _measured(
    run: Run, yardstick: _Yardstick, splits: list[Split] | None, sweep: bool
) -> tuple[MeasuredSae, Float[Tensor, " d_sae"], list[Split]]:
    """And the mean squared strength of each latent, and the main latents of every concept in use (splits, if known)."""
    sae = run.load(yardstick.device)
    on_concepts = find_main_latents(sae, yardstick.settings, yardstick.evaluation_set, splits)
    measured = _measure_sae(sae, on_concepts, yardstick, sweep)
    if run.arm.label is None:
        measured.figures.update(training_figures(sae, run.seed, measured.fired))
    rows = take_rows(yardstick.evaluation_set.read(batch_rows(sae)))
    return measured, mean_square_strength(sae, rows), on_concepts[1] if on_concepts else []


def _graded(run: Run, yardstick: _Yardstick, splits: list[Split]) -> Grades:
    settings, evaluation_set, common, targets, by_f1, *_ = yardstick
    sae = run.load(yardstick.device)
    on_concepts = find_main_latents(sae, settings, evaluation_set, splits)
    assert on_concepts, "there is a concept in use"
    return grade(sae, on_concepts, settings, evaluation_set, (common, targets), by_f1)


def _shown(run: Run, yardstick: _Yardstick, splits: list[Split]) -> ShownSae:
    sae = run.load(yardstick.device)
    # in the way of the codes that were scored: of equal pre-activations another way may let another fire
    codes = sae_codes(sae, yardstick.evaluation_set, runners_up=yardstick.settings.max_k)
    return keep_for_explorer(sae, codes, splits, yardstick.evaluation_set)


def _measure_saes(
    settings: CompareSettings, runs: Runs, evaluation_set: EvaluationSet, kept: Kept, device: str
) -> MeasuredSaes:
    """Every SAE, then the control, which has the L0 of the baseline's middle rung."""
    ladder = ladder_of(runs.baseline, runs.arms, runs.baseline)
    rung, first = ladder[len(ladder) // 2], runs.seeds[0]
    splits, of_rankings = _baseline_splits(settings, runs, ladder, evaluation_set, kept, device)
    (common, targets), *further = of_rankings
    n = -(-runs.least_d_sae // PROJECTION_SHARE)
    yardstick = _Yardstick(settings, evaluation_set, common, targets, further[0] if further else None, n, device)
    parts = {
        (arm, seed): Part(
            f"{arm.name}, seed {seed}",
            [run],
            partial(_measured, run, yardstick, splits.get((arm, seed)), seed == first),
        )
        for (arm, seed), run in runs.by_key.items()
    }
    graded, graded_sae = runs.by_key[rung, first], runs.by_key[rung, first].load("cpu")
    controls: list[Part] = []
    if settings.controls and evaluation_set.candidates and not graded_sae.config.normalises:
        controls = [Part("controls", [graded], partial(_graded, graded, yardstick, splits[rung, first]))]
    saes: dict[Key, MeasuredSae] = {}
    signal: dict[Key, Float[Tensor, " d_sae"]] = {}
    grades: Grades | None = None
    with Progress("comparing", len(parts) + len(controls) + 1, "SAE") as bar:
        kept.ahead([*controls, *parts.values()], bar.reach)  # the longest begins first
        for (arm, seed), part in parts.items():
            measured, signal[arm, seed], of_concepts = kept.part(*part)
            saes[arm, seed] = _as_measured(measured, device)
            if seed == first:
                splits[arm, seed] = [Split(*split) for split in of_concepts]
            bar.reach(len(saes))
        for part in controls:
            of_saes, planted = kept.part(*part)
            grades = Grades([GradedSae(*sae) for sae in of_saes], [(name, found) for name, found in planted])
            bar.reach(len(saes) + 1)
        sae = random_sae(graded_sae, saes[rung, first].figures["l0"], settings.seed).to(device)
        control = _measure_sae(sae, find_main_latents(sae, settings, evaluation_set), yardstick, sweep=True)
        bar.update(1)
    shown: dict[Arm, ShownSae] = {}
    if evaluation_set.candidates:
        l0 = {arm: saes[arm, first].figures["l0"] for arm in runs.arms}
        for arm in [arm for arm in runs.arms if is_shown(arm, rung, ladder, l0)][:MOST_SHOWN]:
            shown[arm] = _shown(runs.by_key[arm, first], yardstick, splits[arm, first])
    name, why = f"{rung.name}, seed {first}", ""
    if settings.controls and graded_sae.config.normalises:
        why = f"No controls were made: {name} normalises each activation, and an oracle cannot be planted there."
    return MeasuredSaes(saes, control, common, shown, signal, grades, name, why)


def _as_measured(part: list[Any], device: str) -> MeasuredSae:
    """From what `Kept.part` gives."""
    figures, bootstrap_values, fired, nearest, per_concept, removals = part
    return MeasuredSae(
        figures, bootstrap_values, fired.to(device), nearest, per_concept, removals and Removals(*removals)
    )


def _baseline_splits(
    settings: CompareSettings,
    runs: Runs,
    ladder: Sequence[Arm],
    evaluation_set: EvaluationSet,
    kept: Kept,
    device: str,
) -> tuple[dict[Key, list[Split]], list[Scale]]:
    """The main latents of the baseline's SAEs; and of each ranking that is asked for how many every SAE gets of each
    concept, and the operating point. None where no concept is in use."""
    found_of: dict[Key, list[list[Split]]] = {}
    points: dict[Key, list[list[list[OperatingPoint]]]] = {}

    def found(run: Run) -> list[tuple[list[Split], list[list[OperatingPoint]]]]:
        on_concepts = find_main_latents(run.load(device), settings, evaluation_set)
        assert on_concepts, "there is a concept in use"
        codes, first = on_concepts
        every = [first]
        if settings.rank_latents == "both":
            every.append(ranked_by_f1(codes, settings, evaluation_set))
        return [(of, points_of_sae(codes, of, evaluation_set)) for of in every]

    rungs = {key: run for key, run in runs.by_key.items() if key[0] in ladder and evaluation_set.candidates}
    parts = {key: Part("main latents", [run], partial(found, run)) for key, run in rungs.items()}
    with Progress("main latents of the baseline", len(rungs), "SAE") as bar:
        for key, of_rankings in zip(parts, kept.each([*parts.values()], bar.reach), strict=True):
            found_of[key] = [[Split(*split) for split in splits] for splits, _ in of_rankings]
            points[key] = [[[OperatingPoint(*p) for p in concept] for concept in of] for _, of in of_rankings]
    scales = []
    for place in range(max(map(len, found_of.values()), default=1)):
        common = common_counts([of[place] for of in found_of.values()])
        scales.append((common, common_points([of[place] for of in points.values()], common)))
    return {key: of[0] for key, of in found_of.items()}, scales


def _measure_sae(sae: SAE, on_concepts: OnConcepts | None, yardstick: _Yardstick, sweep: bool) -> MeasuredSae:
    """sweep: the gates of the absorption fraction too."""
    settings, evaluation_set, common, targets, by_f1, n, _ = yardstick
    held_out = held_out_figures(sae, evaluation_set)
    figures, bootstrap_values = dict(held_out.figures), dict(held_out.bootstrap_values)
    per_concept: list[dict[str, Any]] = []
    removals: Removals | None = None
    some = next(evaluation_set.read(PROJECTED_ROWS))
    figures["nth_projection"] = nth_decoder_projection(sae, some, n) if figures["l0"] < n else math.nan
    if settings.composition:
        figures |= composition(sae.W_dec, held_out.fired, settings.seed)._asdict()
    if on_concepts:
        per_concept, of_concepts = all_concept_figures(sae, *on_concepts, evaluation_set, common, targets, sweep)
        if by_f1:
            codes = on_concepts[0]
            second = ranked_by_f1(codes, settings, evaluation_set)
            per_concept = with_f1_figures(per_concept, sae, codes, second, evaluation_set, by_f1)
        figures |= concept_means(per_concept) | subset_figures(per_concept, evaluation_set.candidates)
        bootstrap_values |= of_concepts
        of_removals, removals = measure_removals(sae, *on_concepts, evaluation_set, common)
        figures |= of_removals
    check_metrics(bootstrap_values, "an SAE's noise")
    check_metrics(figures, "an SAE")
    return MeasuredSae(figures, bootstrap_values, held_out.fired, held_out.nearest, per_concept, removals)
