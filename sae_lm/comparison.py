"""runs -> report: every arm measured on the same held-out rows, differences paired by seed.

``compare`` returns and writes ``report.json``; its keys are those of the dictionary made in
``_report``. ``sae_lm.report`` turns it into a table and a page, and computes nothing.
"""

import math
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sae_lm.data.store import Store, open_store
from sae_lm.device import pick_device
from sae_lm.errors import SaeError
from sae_lm.files import read_json, write_json
from sae_lm.metrics.absorption import absorption
from sae_lm.metrics.codes import encode_sparse
from sae_lm.metrics.concepts import TEST, ConceptRows, Probe, fit_probes, sample_rows
from sae_lm.metrics.geometry import geometry
from sae_lm.metrics.quality import cross_entropies, quality
from sae_lm.metrics.splitting import split_counts
from sae_lm.metrics.statistics import FEWEST_SEEDS, paired_difference
from sae_lm.progress import Progress
from sae_lm.sae.checkpoint import load
from sae_lm.sae.model import SAE, random_sae
from sae_lm.settings import CompareSettings
from sae_lm.training import RUN

ENCODED_VALUES = 1 << 23
"""Numbers in a dense batch of latents, at most: 32 MiB in float32."""
CONTROL = "random"
"""Name of the control: an SAE whose decoder rows are random directions."""
METRICS = {
    "l0": "latents per token",
    "fvu": "fraction of variance unexplained",
    "nmse": "squared error over squared norm",
    "dead": "share of latents that never fire",
    "dense": "share of latents on > 10% of tokens",
    "l2_ratio": "norm of reconstruction over norm",
    "ce_spliced": "cross-entropy with the SAE, nats",
    "ce_recovered": "cross-entropy recovered",
    "nearest_cos": "decoder cosine to nearest, alive",
    "nearest_cos_null": "... of as many random directions",
    "mean_abs_cos": "decoder mean |cos|",
    "splits": "latents per concept (splitting)",
    "main_f1": "F1 of a concept's main latents",
    "absorption_full": "absorption, full",
    "absorption_fraction": "absorption, fraction",
    "hole_rate": "hole rate",
    "recovered_on_holes": "projection recovered on holes",
}
"""Metric key -> what it is, in the order of the tables."""
L0_TOLERANCE = 0.05
"""Arms whose L0 differs by more are not compared as equals."""


class Run(NamedTuple):
    arm: str
    seed: int
    sae: SAE


def compare(settings: CompareSettings) -> dict[str, Any]:
    """Measure every SAE below ``settings.runs``, write report.json and report.html, return the report.

    Raises SaeError for a folder without runs, runs of different stores or hooks, a missing baseline
    or a seed that an arm lacks.
    """
    from sae_lm.report import write_html

    runs = read_runs(settings.runs, settings.baseline)
    training = dict(runs[0].sae.config.metadata["training"])
    store = open_store(settings.store or read_json(settings.runs / RUN, SaeError, "a folder of runs")["store"])
    if store.manifest.id != training["store_id"]:
        raise SaeError(
            f"store {store.path} is not the one these runs were trained on (id {store.manifest.id[:12]}, "
            f"expected {training['store_id'][:12]}); give the right one with --store"
        )
    hook = training["hook"]
    device = pick_device(settings.device)
    controls = [Run(CONTROL, 0, random_sae(runs[0].sae, torch.Generator().manual_seed(settings.seed)))]
    figures: dict[tuple[str, int], dict[str, float]] = {(run.arm, run.seed): {} for run in [*runs, *controls]}

    entropies = _entropies(settings, store, hook, training, runs, device, figures)
    rows = sample_rows(store, hook, settings.per_type, settings.seed)
    probes = fit_probes(rows, settings.min_types, settings.probe_gate)
    held_out = slice(training["held_out_from_row"], len(store))
    per_concept: list[dict[str, Any]] = []
    with Progress("comparing", len(figures), "SAE") as bar:
        for run in [*runs, *controls]:
            mine = figures[run.arm, run.seed]
            mine.update(_held_out_figures(settings, store, hook, held_out, run.sae.to(device)))
            concepts = _concept_figures(settings, rows, probes, run.sae)
            per_concept += [{"arm": run.arm, "seed": run.seed, **concept} for concept in concepts]
            mine.update(_concept_means(concepts))
            bar.update(1)
    report = _report(settings, store, training, figures, entropies, probes, per_concept)
    settings.out.mkdir(parents=True, exist_ok=True)
    write_json(settings.out / "report.json", report)
    write_html(report, settings.out / "report.html")
    return report


def read_runs(folder: Path, baseline: str) -> list[Run]:
    """The SAEs that ``sae-lm train`` wrote to a folder, baseline first; every arm with the same seeds."""
    if not folder.is_dir():
        raise SaeError(f"runs {folder} does not exist; write it with sae-lm train --out {folder}")
    run = read_json(folder / RUN, SaeError, "a folder of runs (written by sae-lm train)")
    if baseline not in run["arms"]:
        raise SaeError(
            f"runs {folder} have no arm {baseline!r} to compare with, they have {', '.join(run['arms'])}; give --baseline"
        )
    runs, missing = [], []
    for arm in sorted(run["arms"], key=lambda arm: arm != baseline):
        for seed in range(run["seeds"]):
            directory = folder / f"{arm.replace(':', '_')}-seed{seed}"
            if directory.is_dir():
                runs.append(Run(arm, seed, load(directory)))
            else:
                missing.append(directory.name)
    if missing:
        raise SaeError(
            f"runs {folder} are unfinished: {', '.join(missing)} missing; run the same sae-lm train command again"
        )
    facts = [dict(r.sae.config.metadata.get("training", {})) for r in runs]
    for key in ("store_id", "hook"):
        if len({str(f.get(key)) for f in facts}) > 1:
            raise SaeError(f"runs {folder} differ in {key}; only SAEs of one store and hook can be compared")
    return runs


def _entropies(
    settings: CompareSettings,
    store: Store,
    hook: str,
    training: dict[str, Any],
    runs: list[Run],
    device: str,
    figures: dict[tuple[str, int], dict[str, float]],
) -> dict[str, Any] | None:
    """Cross-entropies on held-out contexts; None where no language model is wanted."""
    if settings.model == "none":
        return None
    from sae_lm.data.activations import load_model

    recipe = store.manifest.recipe
    name = settings.model or recipe.model["id"]
    model = load_model(name, device=device, revision=recipe.model["revision"])
    if model.cfg.d_model != recipe.model["d_model"] or model.cfg.d_vocab != recipe.model["d_vocab"]:
        raise SaeError(
            f"model {name!r} has width {model.cfg.d_model} and vocabulary {model.cfg.d_vocab}, the store was cached from "
            f"one with {recipe.model['d_model']} and {recipe.model['d_vocab']}; give the same model with --model"
        )
    first = training["held_out_from_context"]
    blocks = store.blocks(first, min(store.manifest.contexts, first + settings.ce_contexts))
    saes = {f"{run.arm} {run.seed}": run.sae.to(device) for run in runs}
    results = cross_entropies(model, blocks, store.special(blocks), hook, saes)
    for run in runs:
        result = results[f"{run.arm} {run.seed}"]
        figures[run.arm, run.seed] |= {"ce_spliced": result.spliced, "ce_recovered": result.recovered}
    any_one = next(iter(results.values()))
    return {"model": name, "tokens": any_one.tokens, "clean": any_one.clean, "ablated": any_one.ablated}


def batch_rows(sae: SAE) -> int:
    """Rows to encode at once."""
    return max(1, ENCODED_VALUES // sae.config.d_sae)


def _held_out_figures(
    settings: CompareSettings, store: Store, hook: str, held_out: slice, sae: SAE
) -> dict[str, float]:
    stop = min(held_out.stop, held_out.start + settings.tokens)
    size = batch_rows(sae)
    measured, fired = quality(
        sae, (store.rows(hook, first, min(stop, first + size)) for first in range(held_out.start, stop, size))
    )
    shape = geometry(sae.W_dec.cpu(), fired, settings.seed)
    figures = {**measured._asdict(), **shape._asdict()}
    return {name: float(value) for name, value in figures.items()}


def _concept_figures(
    settings: CompareSettings, rows: ConceptRows, probes: list[Probe], sae: SAE
) -> list[dict[str, Any]]:
    """Splitting and absorption of every concept that passed its gate."""
    used = [c for c, probe in enumerate(probes) if probe.skipped is None]
    if not used:
        return []
    codes = encode_sparse(sae, rows.x.split(batch_rows(sae)))
    splits = split_counts(codes, rows, used, settings.max_k, settings.split_gain, settings.seed)
    out = []
    for c in used:
        probe, split = probes[c], splits[c]
        told = rows.x @ probe.weight + probe.bias > 0
        candidates = ((rows.part == TEST) & rows.labels[:, c] & told).nonzero().flatten()
        scores = absorption(
            codes.take(candidates),
            rows.x[candidates],
            rows.token_id[candidates],
            sae.W_dec.cpu(),
            sae.b_dec.cpu(),
            probe.weight,
            split.latents,
        )
        absorbed = scores._asdict() if scores else {}
        out.append(
            {
                "concept": probe.name,
                "latents": split.latents,
                "splits": len(split.latents),
                "main_f1": split.test_f1,
                **absorbed,
            }
        )
    return out


def _concept_means(concepts: list[dict[str, Any]]) -> dict[str, float]:
    """Unweighted means over concepts."""

    def mean(key: str) -> float:
        values = [c[key] for c in concepts if key in c and math.isfinite(c[key])]
        return math.fsum(values) / len(values) if values else float("nan")

    return {
        "splits": mean("splits"),
        "main_f1": mean("main_f1"),
        "absorption_full": mean("full"),
        "absorption_fraction": mean("fraction"),
        "hole_rate": mean("hole_rate"),
        "recovered_on_holes": mean("recovered"),
    }


def _report(
    settings: CompareSettings,
    store: Store,
    training: dict[str, Any],
    figures: dict[tuple[str, int], dict[str, float]],
    entropies: dict[str, Any] | None,
    probes: list[Probe],
    per_concept: list[dict[str, Any]],
) -> dict[str, Any]:
    arms = list(dict.fromkeys(arm for arm, _ in figures if arm != CONTROL))
    seeds = sorted({seed for arm, seed in figures if arm != CONTROL})
    values = {
        arm: {key: [figures[arm, seed].get(key, float("nan")) for seed in seeds] for key in METRICS} for arm in arms
    }
    base = values[settings.baseline]
    differences = []
    for arm in arms:
        if arm == settings.baseline:
            continue
        l0, base_l0 = sum(values[arm]["l0"]) / len(seeds), sum(base["l0"]) / len(seeds)
        matched = abs(l0 - base_l0) <= L0_TOLERANCE * base_l0
        for key in METRICS:
            difference = paired_difference(values[arm][key], base[key])
            verdict = difference.verdict if matched or key == "l0" else "L0 not matched"
            differences.append({"arm": arm, "metric": key, **difference._asdict(), "verdict": verdict})
    report = {
        "format": "sae_lm comparison",
        "version": 1,
        "settings": settings.model_dump(mode="json"),
        "baseline": settings.baseline,
        "seeds": seeds,
        "store": {
            "id": store.manifest.id,
            "rows": len(store),
            "held_out_rows": len(store) - training["held_out_from_row"],
            "recipe": store.manifest.recipe.model_dump(),
        },
        "training": training,
        "cross_entropy": entropies,
        "metrics": METRICS,
        "arms": values,
        "control": {key: figures[CONTROL, 0].get(key, float("nan")) for key in METRICS},
        "differences": differences,
        "findings": findings(differences, [arm for arm in arms if arm != settings.baseline], len(seeds)),
        "concepts": [
            {"name": p.name, "types": p.types, "rows": p.rows, "probe_f1": p.f1, "skipped": p.skipped} for p in probes
        ],
        "per_concept": per_concept,
        "versions": {name: version(name) for name in ("sae_lm", "torch", "transformers", "transformer-lens")},
    }
    return _no_nan(report)


def findings(differences: list[dict[str, Any]], arms: list[str], seeds: int) -> list[str]:
    """One sentence per arm. "Less absorption" needs hole rate and fraction to fall: see metrics.absorption."""
    verdicts = {(d["arm"], d["metric"]): d["verdict"] for d in differences}
    sentences = []
    for arm in arms:
        if seeds < FEWEST_SEEDS:
            sentences.append(
                f"{arm}: no claim with {seeds} seed{'s' * (seeds != 1)}; at least {FEWEST_SEEDS} are needed."
            )
            continue
        hole, fraction, splits, fvu = (
            verdicts[arm, key] for key in ("hole_rate", "absorption_fraction", "splits", "fvu")
        )
        if hole == fraction == "lower":
            absorbed = "less absorption (hole rate and fraction both lower)"
        elif hole == fraction == "higher":
            absorbed = "more absorption (hole rate and fraction both higher)"
        else:
            absorbed = f"no claim on absorption (hole rate {hole}, fraction {fraction})"
        sentences.append(f"{arm}: {absorbed}; splitting {splits}; FVU {fvu}; {seeds} seeds.")
    return sentences


def _no_nan(value: Any) -> Any:
    """JSON has no NaN: missing numbers become null."""
    if isinstance(value, dict):
        return {str(key): _no_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_no_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
