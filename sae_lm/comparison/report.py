"""Assemble the report from measured figures; this is what report.json holds.

Null stands for what is not known.

    format, version       "sae_lm comparison", 2
    answer, findings      a sentence; sentences, one per arm and then on all
    partial               sentences: what is missing, and why; [] for a whole report
    settings, training    CompareSettings; what the SAEs' training had in common
    store                 id, rows, held_out_rows, recipe
    cross_entropy         null, or model, tokens, and in nats clean, ablated (zeros), mean_ablated (the mean row)
    versions              of sae_lm, torch, transformers, transformer-lens
    baseline, seeds       the arm, or family of arms, compared with; those that all arms have
    metrics               {key: label, unit, better (lower, higher, null), role (primary, quality, check, context), explain}
    arms                  {name: family (name without k), penalty, coefficient, arch, k,
                          pareto (no arm has less FVU at its L0), values {metric: [one per seed]}}
    controls              {random: {metric: value}}: an SAE of random directions, at the L0 of the baseline's middle rung
    differences           [{arm, baseline, metric, per_seed, mean, low, high, p, p_sign_flip, bootstrap_low, bootstrap_high,
                          spread (sae_lm.metrics.statistics), p_holm (primary outcomes), detectable (the difference that
                          these seeds find with 80% chance), seeds_needed, l0 (matched, interpolated, not matched),
                          verdict}]
                          for primary outcomes detectable and seeds_needed are at Holm's first step, level .05 / tests
    noise                 {metric: evaluation (of one SAE, over documents), and of a paired difference:
                          evaluation_of_difference; training: over seeds}, standard deviations
    nearest_cos           {edges [n + 1], arms {name: [n shares]}, null: [n shares]}: of the first seed, alive latents
    concepts              [{name, kind, types, rows, probe_f1, permuted_f1, skipped (why, or null)}]
    per_concept           [{arm, seed, concept, splits, latents, f1_by_k, common_k, main_f1, main_recall, candidates, types,
                          full, fraction, hole_rate, recovered and these four ..._own_k, control_hole_rate,
                          control_fraction, hubs; of the first seed: sweep [{centred, cos, share, full, fraction}]}]
    genealogy             [{from, to, seed, to_seed, threshold, counts {kept, split, merged, absorbed, novel, lost},
                          trees [{parent, children [{latent, cos, kind}]}]}]; from the baseline to every arm, then to
                          itself at the next seed; with narrower SAEs from them to the same arm, with from_latents, to_latents
    widths                [{arm, seed (of the narrower SAE), to_seed, from_latents, to_latents, curve [{threshold, split_ratio
                          (children per parent that has one), novel, lost}], stitched_novel, novelty (the cosine to the
                          narrower SAE that tells these best: threshold, auc, true_positive, false_positive; or null)}]
    explorer              [{concept, seed, absorbers {arm: [...]}, events [...]}]: see sae_lm.metrics.absorption_events
"""

import math
from collections import Counter
from importlib.metadata import version
from typing import Any

from sae_lm.comparison.findings import answer, findings
from sae_lm.comparison.matching import counterpart, family, frontier, read_arm
from sae_lm.comparison.measure import CONTROL, Measured
from sae_lm.comparison.outcomes import METRICS
from sae_lm.comparison.runs import Runs
from sae_lm.comparison.verdicts import compare_arms
from sae_lm.concepts.probes import Probe
from sae_lm.data.store import Store
from sae_lm.metrics.geometry import EDGES, null_nearest_shares
from sae_lm.metrics.statistics import pooled, spread_of
from sae_lm.settings import CompareSettings


def make_report(settings: CompareSettings, store: Store, runs: Runs, measured: Measured) -> dict[str, Any]:
    values = {
        arm: {key: [measured.figures[arm, seed].get(key, math.nan) for seed in runs.seeds] for key in METRICS}
        for arm in runs.arms
    }
    differences = compare_arms(values, settings.baseline)
    used = sum(probe.skipped is None for probe in measured.probes)
    partial = [*runs.partial, *measured.remarks]
    if store.text_repeats:
        partial.append(
            "The store goes through its text more than once (--repeat), so that held-out rows may be of text that the "
            "SAEs were trained on, and all figures better than on new text; cache more text without --repeat."
        )
    if not used:
        reasons = Counter(str(probe.skipped) for probe in measured.probes).most_common(1)
        partial.append(
            f"Splitting and absorption are not measured: none of the {len(measured.probes)} concepts passed its gate "
            f"(most often: {reasons[0][0]}); hold out more text, or lower --min-types or --probe-gate."
            if reasons
            else "Splitting and absorption are not measured: there are no concepts."
        )
    silent = [run.directory.name for key, run in runs.of.items() if not measured.figures[key]["l0"]]
    if silent:
        partial.append(
            f"No latent of {', '.join(silent)} fires on any held-out row; train again, or leave the arm out."
        )
    front = frontier(values)
    report = {
        "format": "sae_lm comparison",
        "version": 2,
        "answer": answer(differences, settings.baseline, len(runs.seeds), used),
        "findings": findings(differences, values, len(runs.seeds)),
        "partial": partial,
        "settings": settings.model_dump(mode="json"),
        "training": runs.training,
        "store": {
            "id": store.manifest.id,
            "rows": len(store),
            "held_out_rows": len(store) - runs.training["held_out_from_row"],
            "recipe": store.manifest.recipe.model_dump(),
        },
        "cross_entropy": measured.entropies,
        "versions": {name: version(name) for name in ("sae_lm", "torch", "transformers", "transformer-lens")},
        "baseline": settings.baseline,
        "seeds": runs.seeds,
        "metrics": {key: metric._asdict() for key, metric in METRICS.items()},
        "arms": {arm: _arm(arm, runs) | {"pareto": arm in front, "values": values[arm]} for arm in runs.arms},
        "controls": {CONTROL: {key: measured.figures[CONTROL, 0].get(key, math.nan) for key in METRICS}},
        "differences": differences,
        "noise": _noise(settings, runs, measured, values),
        "nearest_cos": {
            "edges": EDGES,
            "arms": measured.nearest,
            "null": null_nearest_shares(measured.alive, store.hooks[runs.training["hook"]]),
        },
        "concepts": [_concept(probe) for probe in measured.probes],
        "per_concept": measured.per_concept,
        "genealogy": measured.genealogy,
        "widths": measured.widths,
        "explorer": measured.explorer,
    }
    return _no_nan(report)


def _arm(name: str, runs: Runs) -> dict[str, Any]:
    arm, run = read_arm(name), runs.of[name, runs.seeds[0]]
    return {
        "family": family(name),
        "penalty": arm.penalty,
        "coefficient": arm.coefficient,
        "arch": run.architecture,
        "k": arm.k or run.training["k"],
    }


def _concept(probe: Probe) -> dict[str, Any]:
    return {
        "name": probe.name,
        "kind": probe.kind,
        "types": probe.types,
        "rows": probe.rows,
        "probe_f1": probe.f1,
        "permuted_f1": probe.permuted_f1,
        "skipped": probe.skipped,
    }


def _noise(settings: CompareSettings, runs: Runs, measured: Measured, values: Any) -> dict[str, dict[str, Any]]:
    """Standard deviations, each the root mean square over SAEs, over pairs or over arms."""
    others = {arm: counterpart(arm, values, settings.baseline).name for arm in runs.arms}
    out = {}
    for key in METRICS:
        drawn = {of: draws[key] for of, draws in measured.draws.items() if of[0] in others and key in draws}
        pairs = [(drawn[arm, seed], drawn.get((others[arm], seed))) for arm, seed in drawn if others[arm] != arm]
        out[key] = {
            "evaluation": pooled([spread_of(of.tolist()) for of in drawn.values()]),
            "evaluation_of_difference": pooled([spread_of((a - b).tolist()) for a, b in pairs if b is not None]),
            "training": pooled([spread_of(values[arm][key]) for arm in runs.arms]),
        }
    return out


def _no_nan(value: Any) -> Any:
    """JSON has no NaN: missing numbers become null."""
    if isinstance(value, dict):
        return {str(key): _no_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_no_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
