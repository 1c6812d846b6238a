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
from sae_lm.files import write_json
from sae_lm.metrics.absorption import absorption
from sae_lm.metrics.codes import Codes, encode_sparse
from sae_lm.metrics.concepts import TEST, ConceptRows, Probe, fit_probes, sample_rows
from sae_lm.metrics.geometry import geometry
from sae_lm.metrics.quality import cross_entropies, quality
from sae_lm.metrics.splitting import Split, split_counts
from sae_lm.metrics.statistics import FEWEST_SEEDS, paired_difference
from sae_lm.progress import Progress
from sae_lm.sae.checkpoint import load
from sae_lm.sae.model import SAE, random_sae
from sae_lm.sae.penalties import parse_arm
from sae_lm.settings import CompareSettings
from sae_lm.training import read_run, run_folder

ENCODED_VALUES = 1 << 23
"""Numbers in a dense batch of latents, at most: 32 MiB in float32."""
NOT_OUTCOMES = ("nearest_cos_null",)
"""Metrics without a verdict: they do not depend on training."""
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
    "nearest_cos_null": "decoder cosine to nearest, random",
    "mean_abs_cos": "decoder mean |cos|",
    "splits": "latents per concept (splitting)",
    "main_f1": "F1 of a concept's main latents",
    "absorption_full": "absorption, full",
    "absorption_fraction": "absorption, fraction",
    "hole_rate": "hole rate",
    "recovered_on_holes": "projection recovered on holes",
    "absorption_full_own_k": "absorption, full, own split count",
    "absorption_fraction_own_k": "absorption, fraction, own count",
    "hole_rate_own_k": "hole rate, own split count",
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
    store = _find_store(settings, training["store_id"])
    settings.out.mkdir(parents=True, exist_ok=True)  # before the work, so that a bad path costs none
    hook, device = training["hook"], pick_device(settings.device)
    controls = [Run(CONTROL, 0, random_sae(runs[0].sae, settings.seed))]
    figures: dict[tuple[str, int], dict[str, float]] = {(run.arm, run.seed): {} for run in [*runs, *controls]}

    entropies = _entropies(settings, store, hook, training, runs, device, figures)
    rows = sample_rows(store, hook, training["held_out_from_row"], settings.per_type, settings.seed)
    probes = fit_probes(rows, settings.min_types, settings.probe_gate)
    used = [c for c, probe in enumerate(probes) if probe.skipped is None]
    coded: dict[tuple[str, int], tuple[Codes, dict[int, Split]]] = {}
    with Progress("comparing", len(figures), "SAE") as bar:
        for run in [*runs, *controls]:
            figures[run.arm, run.seed].update(_held_out_figures(settings, store, hook, training, run.sae.to(device)))
            if used:
                codes = encode_sparse(run.sae, rows.x.split(batch_rows(run.sae)))
                splits = split_counts(codes, rows, used, settings.max_k, settings.split_gain, settings.seed)
                coded[run.arm, run.seed] = codes, splits
            bar.update(1)
    common = _common_k(coded, settings.baseline, used)
    per_concept: list[dict[str, Any]] = []
    for run in [*runs, *controls] if used else []:
        concepts = _concept_figures(rows, probes, run.sae, *coded[run.arm, run.seed], common)
        per_concept += [{"arm": run.arm, "seed": run.seed, **concept} for concept in concepts]
    for key, mine in figures.items():
        mine.update(_concept_means([c for c in per_concept if (c["arm"], c["seed"]) == key]))
    report = _report(settings, store, training, figures, entropies, probes, per_concept)
    write_json(settings.out / "report.json", report)
    write_html(report, settings.out / "report.html")
    return report


def _find_store(settings: CompareSettings, store_id: str) -> Store:
    """The store the runs were trained on; it may have been moved."""
    path = str(settings.store or read_run(settings.runs)["store"])
    if not path.startswith("hf://") and not Path(path).exists():
        raise SaeError(f"the runs' store {path} is not there; give its present place with --store")
    store = open_store(path)
    if store.manifest.id != store_id:
        raise SaeError(
            f"store {path} is not the one these runs were trained on (id {store.manifest.id[:12]}, "
            f"expected {store_id[:12]}); give the right one with --store"
        )
    return store


def read_runs(folder: Path, baseline: str) -> list[Run]:
    """The SAEs that ``sae-lm train`` wrote to a folder, baseline first; every arm with the same seeds."""
    if not folder.is_dir():
        raise SaeError(f"runs {folder} does not exist; write it with sae-lm train --out {folder}")
    run = read_run(folder)
    if baseline not in run["arms"]:
        raise SaeError(
            f"runs {folder} have no arm {baseline!r} to compare with, they have {', '.join(run['arms'])}; give --baseline"
        )
    runs, missing = [], []
    for arm in sorted(run["arms"], key=lambda arm: arm != baseline):
        for seed in range(run["seeds"]):
            directory = folder / run_folder(parse_arm(arm), seed)
            if directory.is_dir():
                runs.append(Run(arm, seed, load(directory)))
            else:
                missing.append(directory.name)
    if missing:
        raise SaeError(
            f"runs {folder} are unfinished: {', '.join(missing)} missing; run sae-lm train again with --seeds "
            f"{run['seeds']} and these arms"
        )
    facts = [dict(r.sae.config.metadata.get("training", {})) for r in runs]
    for key in ("store_id", "hook", "held_out_from_row"):
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
    from sae_lm.data.activations import boot
    from sae_lm.data.forward import describe_model
    from sae_lm.data.hub import find_model

    recipe = store.manifest.recipe
    recorded = recipe.model
    if settings.model is None and recorded["id"] != "embedded" and recorded["revision"] is None:
        raise SaeError(
            f"the store was cached from a local model folder named {recorded['id']!r}; give its path with --model, "
            "or --model none to leave out the cross-entropy"
        )
    name = settings.model or recorded["id"]
    dtype = getattr(torch, recorded["dtype"])
    source = find_model(name, recorded["revision"])
    model = boot(source, device=device, dtype=dtype)
    there = describe_model(source, model.original_model.config, dtype)
    for key, what in (("d_model", "width"), ("d_vocab", "vocabulary"), ("files_sha256", "checksum of the weights")):
        if there[key] != recorded[key]:
            raise SaeError(
                f"model {name!r} has {what} {there[key]}, the store was cached from one with {recorded[key]}; "
                "give the same model with --model"
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
    settings: CompareSettings, store: Store, hook: str, training: dict[str, Any], sae: SAE
) -> dict[str, float]:
    start = training["held_out_from_row"]
    stop, size = min(len(store), start + settings.tokens), batch_rows(sae)
    measured, fired = quality(
        sae, (store.rows(hook, first, min(stop, first + size)) for first in range(start, stop, size))
    )
    shape = geometry(sae.W_dec.cpu(), fired, settings.seed)
    figures = {**measured._asdict(), **shape._asdict()}
    return {name: float(value) for name, value in figures.items()}


def _common_k(
    coded: dict[tuple[str, int], tuple[Codes, dict[int, Split]]], baseline: str, used: list[int]
) -> dict[int, int]:
    """Per concept, the baseline's mean splitting count: how many main latents every SAE gets.

    Hole rate and fraction fall with the number of main latents alone, so an arm that splits more would
    seem to absorb less if each were scored with its own number.
    """
    counts = {c: [len(splits[c].latents) for (arm, _), (_, splits) in coded.items() if arm == baseline] for c in used}
    return {c: round(sum(counts[c]) / len(counts[c])) for c in used}


def _concept_figures(
    rows: ConceptRows, probes: list[Probe], sae: SAE, codes: Codes, splits: dict[int, Split], common: dict[int, int]
) -> list[dict[str, Any]]:
    """Splitting and absorption of every concept that passed its gate, with the common and with its own k."""
    out = []
    W_dec, b_dec = sae.W_dec.cpu(), sae.b_dec.cpu()
    for c, split in splits.items():
        probe = probes[c]
        told = rows.x @ probe.weight + probe.bias > 0
        candidates = ((rows.part == TEST) & rows.labels[:, c] & told).nonzero().flatten()
        mine, x, token_id = codes.take(candidates), rows.x[candidates], rows.token_id[candidates]
        figures: dict[str, Any] = {"concept": probe.name, "latents": split.latents, "splits": len(split.latents)}
        figures |= {"common_k": common[c], "main_f1": split.test_f1}
        for suffix, main in (("", split.ranking[: common[c]]), ("_own_k", split.latents)):
            scores = absorption(mine, x, token_id, W_dec, b_dec, probe.weight, main)
            figures |= {f"{key}{suffix}": value for key, value in (scores._asdict() if scores else {}).items()}
        out.append(figures)
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
        "absorption_full_own_k": mean("full_own_k"),
        "absorption_fraction_own_k": mean("fraction_own_k"),
        "hole_rate_own_k": mean("hole_rate_own_k"),
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
            if key in NOT_OUTCOMES:
                continue
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
    """One sentence per arm, and one on chance. "Less absorption" needs hole rate and fraction to fall, at one k:
    see metrics.absorption and _common_k."""
    verdicts = {(d["arm"], d["metric"]): d["verdict"] for d in differences}
    sentences = []
    for arm in arms:
        if seeds < FEWEST_SEEDS:
            sentences.append(
                f"{arm}: no claim with {seeds} seed{'s' * (seeds != 1)}; at least {FEWEST_SEEDS} are needed."
            )
            continue
        hole, fraction, splits, found, fvu = (
            verdicts[arm, key] for key in ("hole_rate", "absorption_fraction", "splits", "main_f1", "fvu")
        )
        if hole == fraction == "lower":
            absorbed = "less absorption (hole rate and fraction both lower)"
        elif hole == fraction == "higher":
            absorbed = "more absorption (hole rate and fraction both higher)"
        else:
            absorbed = f"no claim on absorption (hole rate {hole}, fraction {fraction})"
        sentences.append(
            f"{arm}: {absorbed}; splitting {splits}; F1 of main latents {found}; FVU {fvu}; {seeds} seeds."
        )
    judged = sum(d["verdict"] in ("lower", "higher", "not distinguishable") for d in differences)
    if judged:
        sentences.append(
            f"{judged} differences are judged at 95% each, uncorrected: were nothing different, about "
            f"{max(1, round(judged * 0.05))} would still be called lower or higher."
        )
    return sentences


def _no_nan(value: Any) -> Any:
    """JSON has no NaN: missing numbers become null."""
    if isinstance(value, dict):
        return {str(key): _no_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_no_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
