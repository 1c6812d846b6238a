"""Assemble the report from what was measured: differences, verdicts, sentences, and every figure they rest on.

What report.json holds is in `sae_lm.pages.schema`.
"""

import math
from collections import Counter
from importlib.metadata import version
from typing import Any, cast

from sae_lm.comparison.concept_subsets import differences_by_kind, disagreements, found_sentence
from sae_lm.comparison.controls import control_remarks, order_sentences
from sae_lm.comparison.equal_fvu import compare_at_equal_fvu, equal_fvu_findings
from sae_lm.comparison.evaluation_set import kinds_of_units
from sae_lm.comparison.findings import (
    alarm_findings,
    answer,
    embedding_findings,
    findings,
    l0_findings,
    removal_findings,
)
from sae_lm.comparison.frontier import between_rungs, curves, frontier_entry
from sae_lm.comparison.matching import TOLERANCE, Values, frontier
from sae_lm.comparison.measure import Measured
from sae_lm.comparison.other_concepts import compare_over_concepts, concept_findings, over_common_concepts
from sae_lm.comparison.outcomes import METRICS, NOT_TESTED, OF_NARROWER
from sae_lm.comparison.pairs import share_narrower
from sae_lm.comparison.registered import Evidence, answer_registered
from sae_lm.comparison.runs import Runs
from sae_lm.comparison.undertrained import Undertrained, find_undertrained, reason, warn
from sae_lm.comparison.verdicts import compare_arms
from sae_lm.concepts.probes import Probe
from sae_lm.data.repeats import TOLD, share_seen_before
from sae_lm.data.store import Store
from sae_lm.metrics.geometry import EDGES, null_nearest_shares
from sae_lm.metrics.statistics import pooled, spread_of
from sae_lm.pages.schema import (
    FORMAT,
    VERSION,
    ArmEntry,
    ConceptEntry,
    GradesEntry,
    MetricEntry,
    NoiseEntry,
    PerConcept,
    Report,
)
from sae_lm.penalties.arms import Arm
from sae_lm.settings import CompareSettings
from sae_lm.training.recipe import aimed_k
from sae_lm.training.registered import Registered

CONTROL = "random"
"""The control's name in the report: an SAE whose decoder rows are random directions."""


def make_report(
    settings: CompareSettings, store: Store, runs: Runs, measured: Measured, registered: Registered | None = None
) -> Report:
    values: Values = {
        arm: {key: [measured.figures[arm, seed].get(key, math.nan) for seed in runs.seeds] for key in METRICS}
        for arm in runs.arms
    }
    by_concept = over_common_concepts(measured.per_concept, runs.seeds, measured.matching)
    not_tested = NOT_TESTED + OF_NARROWER * share_narrower(measured.widths)
    differences = compare_arms(values, measured.matching, settings.equivalence, by_concept, not_tested)
    other_concepts = compare_over_concepts(measured.per_concept, runs.seeds, measured.matching.matches, differences)
    all_curves = curves(values, measured.matching)
    seeds, used = len(runs.seeds), sum(probe.skipped is None for probe in measured.probes)
    front, undertrained = frontier(values), find_undertrained(values)
    at_equal_fvu = compare_at_equal_fvu(all_curves, settings.fvu_cost, undertrained)
    warning = warn(undertrained, runs.arms)
    plain = answer(differences, runs.baseline.name, seeds, used)
    kinds = differences_by_kind(measured.per_concept, measured.probes, measured.matching, runs.seeds)
    report: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "answer": f"{warning} {plain}" if warning else plain,
        "warning": warning,
        "registered": answer_registered(
            registered,
            settings,
            runs,
            Evidence(values, measured.matching, all_curves, undertrained, settings.equivalence),
        ),
        "findings": [
            *findings(differences, values, seeds),
            *concept_findings(other_concepts, differences),
            *disagreements(kinds),
            *found_sentence(measured.per_concept, [*measured.matching.ladder]),
            *equal_fvu_findings(at_equal_fvu),
            *alarm_findings(measured.per_concept, measured.matching.ladder),
            *l0_findings(values),
            *removal_findings(values),
            *embedding_findings(measured.probes),
        ],
        "partial": [*runs.partial, *measured.remarks, *_missing(store, runs, measured)],
        **_what_was_compared(settings, store, runs, measured),
        "arms": {arm.name: arm_entry(arm, runs, arm in front, undertrained.get(arm), values) for arm in runs.arms},
        "controls": {CONTROL: {key: measured.control.get(key, math.nan) for key in METRICS}},
        "grades": _grades(measured),
        "differences": differences,
        "kinds": kinds,
        "other_concepts": other_concepts,
        "frontier": [frontier_entry(curve) for curve in all_curves],
        "at_equal_fvu": at_equal_fvu,
        "noise": _noise(measured, values),
        "nearest_cos": _nearest_cos(measured, store.hooks[runs.training["hook"]]),
        "concepts": [_concept(probe) for probe in measured.probes],
        "per_concept": _per_concept(measured),
        "genealogy": cast(Any, measured.genealogy),
        "widths": cast(Any, measured.widths),
        "explorer": cast(Any, measured.explorer),
    }
    return cast(Report, _no_nan(report))


def _nearest_cos(measured: Measured, d_in: int) -> dict[str, Any]:
    return {
        "edges": list(EDGES),
        "arms": {arm.name: [*shares] for arm, shares in measured.nearest.items()},
        "null": [*null_nearest_shares(measured.alive, d_in)],
    }


def _what_was_compared(settings: CompareSettings, store: Store, runs: Runs, measured: Measured) -> dict[str, Any]:
    return {
        "settings": settings.model_dump(mode="json"),
        "training": runs.training,
        "store": {
            "id": store.manifest.id,
            "rows": len(store),
            "held_out_rows": len(store) - runs.training["held_out_from_row"],
            "recipe": store.manifest.recipe.model_dump(),
        },
        "cross_entropy": measured.cross_entropy,
        "versions": {name: version(name) for name in ("sae_lm", "torch", "transformers", "transformer-lens")},
        "baseline": runs.baseline.name,
        "seeds": runs.seeds,
        "text_units": kinds_of_units(settings, store, runs),
        "l0_tolerance": TOLERANCE,
        "metrics": {key: cast(MetricEntry, metric._asdict()) for key, metric in METRICS.items()},
    }


def _missing(store: Store, runs: Runs, measured: Measured) -> list[str]:
    """What the report says less of than it might, and why; beside what the runs lack."""
    between = between_rungs(measured.matching)
    sentences = [between] if between else []
    if store.text_repeats:
        sentences.append(
            "The store goes through its text more than once (--repeat), so that held-out rows may be of text that the "
            "SAEs were trained on, and all figures better than on new text; cache more text without --repeat."
        )
    elif (share := share_seen_before(store, runs.training["held_out_from_row"]) or 0.0) > TOLD:
        sentences.append(
            f"{share:.0%} of the held-out text stands word for word in the rows before it, those of training, so that all "
            "figures are better than on new text; cache text without copies."
        )
    if all(probe.skipped is not None for probe in measured.probes):
        reasons = Counter(str(probe.skipped) for probe in measured.probes).most_common(1)
        sentences.append(
            f"Splitting and absorption are not measured: none of the {len(measured.probes)} concepts passed its gate "
            f"(most often: {reasons[0][0]}); hold out more text, or lower --min-words or --probe-gate."
            if reasons
            else "Splitting and absorption are not measured: there are no concepts."
        )
    silent = [run.directory.name for key, run in runs.by_key.items() if not measured.figures[key]["l0"]]
    if silent:
        sentences.append(
            f"No latent of {', '.join(silent)} fires on any held-out row; train again, or leave the arm out."
        )
    return sentences


def arm_entry(arm: Arm, runs: Runs, on_front: bool, undertrained: Undertrained | None, values: Values) -> ArmEntry:
    run = runs.by_key[arm, runs.seeds[0]]
    return {
        "family": arm.family.name,
        "variant": arm.variant,
        "penalty": arm.penalty,
        "coefficient": arm.coefficient,
        "arch": run.architecture,
        "k": aimed_k(run.training, run.architecture, arm.k),
        "pareto": on_front,
        "undertrained": reason([undertrained]) if undertrained else None,
        "values": {key: [*per_seed] for key, per_seed in values[arm].items()},
    }


def _concept(probe: Probe) -> ConceptEntry:
    return {
        "name": probe.name,
        "kind": probe.kind,
        "types": probe.types,
        "words": probe.words,
        "test_words": probe.test_words,
        "rows": probe.rows,
        "probe_f1": probe.f1,
        "permuted_f1": probe.permuted_f1,
        "embedding_f1": probe.embedding_f1,
        "skipped": probe.skipped,
    }


def _grades(measured: Measured) -> GradesEntry | None:
    if measured.grades is None:
        return None
    saes = measured.grades.saes
    return {
        "baseline": measured.graded,
        "saes": [{"kind": sae.kind, "share": sae.share, "values": {**sae.values}} for sae in saes],
        "orders": [
            {"metric": key, "ordered": ordered, "sentence": sentence}
            for key, (ordered, sentence) in order_sentences(saes).items()
        ],
        "remarks": control_remarks(measured.grades),
    }


def _per_concept(measured: Measured) -> list[PerConcept]:
    """Of all SAEs, then of the control."""
    by_sae = {(arm.name, seed): concepts for (arm, seed), concepts in measured.per_concept.items()}
    by_sae[CONTROL, 0] = measured.control_per_concept
    return [
        cast(PerConcept, {"arm": name, "seed": seed, **concept})
        for (name, seed), concepts in by_sae.items()
        for concept in concepts
    ]


def _noise(measured: Measured, values: Values) -> dict[str, NoiseEntry]:
    """Standard deviations, each the root mean square over SAEs, over pairs or over arms."""
    others = {arm: match.rung for arm, match in measured.matching.matches.items()}
    noise: dict[str, NoiseEntry] = {}
    for key in METRICS:
        samples = {sae: metrics[key] for sae, metrics in measured.bootstrap_values.items() if key in metrics}
        pairs = [(samples[arm, seed], samples.get((others[arm], seed))) for arm, seed in samples if others[arm] != arm]
        noise[key] = {
            "evaluation": pooled([spread_of(values_of_sae.tolist()) for values_of_sae in samples.values()]),
            "evaluation_of_difference": pooled([spread_of((a - b).tolist()) for a, b in pairs if b is not None]),
            "training": pooled([spread_of(metrics[key]) for metrics in values.values()]),
        }
    return noise


def _no_nan(value: Any) -> Any:
    """JSON has no NaN: missing numbers become null."""
    if isinstance(value, dict):
        return {str(key): _no_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_no_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
