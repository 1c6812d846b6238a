"""Train SAEs on synthetic worlds and score them against the truth; write a table and suite.json."""

import math
import time
from collections.abc import Container, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from sae_lm.metrics.statistics import paired_difference
from sae_lm.pages.terminal import columns
from sae_lm.runtime.files import write_json
from sae_lm.runtime.progress import Progress
from sae_lm.sae.model import SAE
from sae_lm.synthetic.ab_toy import exact_construction, judge
from sae_lm.synthetic.batched_training import Saes, ToyTrial, encode, kind, train
from sae_lm.synthetic.curves import write_curves
from sae_lm.synthetic.experiments import EXPERIMENTS, Experiment
from sae_lm.synthetic.scores import CodedInputs, KnownInputs, score
from sae_lm.synthetic.tool_figures import FIGURES, TRUE, agreement, concepts_of, told, toy_sae
from sae_lm.synthetic.worlds import HELD_OUT, World, directions, inputs

SEEDS = 6
"""The fewest at which an exact sign-flip p can fall below .05."""
RESULT = "suite.json"
FVU_BUDGET = 0.02
"""FVU above the baseline's that is held to be too much for fewer holes."""


def run(full: bool = False, seeds: int = SEEDS, experiments: Sequence[Experiment] | None = None) -> dict[str, Any]:
    """Train and judge every experiment's short list of trials, or with ``full`` its long one."""
    began = time.monotonic()
    experiments = EXPERIMENTS if experiments is None else experiments
    lists = [experiment.long if full else experiment.short for experiment in experiments]
    measured = []
    with Progress("toys", sum(map(len, lists)) * seeds, "SAEs") as bar:
        for experiment, trials in zip(experiments, lists, strict=True):
            if trials:
                measured.append(_measure(experiment, trials, seeds))
                bar.update(len(trials) * seeds)
    return {
        "format": "sae_lm truth suite",
        "version": 1,
        "seeds": seeds,
        "full": full,
        "versions": {name: version(name) for name in ("torch", "sae_lm")},
        "seconds": round(time.monotonic() - began, 1),
        "exact_construction": exact_construction()._asdict(),
        "experiments": measured,
    }


def _measure(experiment: Experiment, trials: Sequence[ToyTrial], seeds: int) -> dict[str, Any]:
    values: dict[str, dict[str, list[float]]] = {}
    by_arm: dict[str, list[SAE]] = {}
    for same in _of_a_kind(experiment, trials):
        saes = train(experiment.world, same, experiment.recipe, seeds)
        values |= judge_trials(experiment, same, saes)
        for i, trial in enumerate(same if experiment.told else ()):
            by_arm[trial.name] = [toy_sae(saes, i, s, *kind(trial, experiment.recipe)[:2]) for s in range(seeds)]
    if experiment.told:
        sets = concepts_of(known_inputs(experiment.world, seeds))
        for name, figures in told(by_arm, trials[0].name, sets).items():
            values[name] |= figures
    arms = {
        trial.name: {
            "penalty": trial.arm.penalty,
            "coefficient": trial.arm.coefficient,
            "family": family(trial),
            "baseline": baseline(trial, values),
            "values": {metric: [_finite(v) for v in per_seed] for metric, per_seed in values[trial.name].items()},
        }
        for trial in trials
    }
    differences = [
        {"arm": name, "baseline": arm["baseline"], "metric": metric, **_difference(arms, name, metric)}
        for name, arm in arms.items()
        if arm["baseline"] in arms and arm["baseline"] != name
        for metric in arm["values"]
    ]
    return {
        "key": experiment.key,
        "title": experiment.title,
        "shown": list(experiment.shown),
        "world": experiment.world._asdict(),
        "recipe": experiment.recipe._asdict(),
        "arms": arms,
        "differences": differences,
        "agreement": _agreements(arms, differences) if experiment.told else [],
    }


def _agreements(arms: dict[str, Any], differences: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of every figure of the truth with every figure as `compare` has it."""
    signs = {(one["arm"], one["metric"]): _sign(one) for one in differences}
    found = []
    for true in TRUE:
        for figure in FIGURES:
            by_truth, as_told = (
                {name: _numbers(arm["values"][metric]) for name, arm in arms.items()} for metric in (true, figure)
            )
            verdicts = {arm: (signs[arm, true], signs[arm, figure]) for arm, metric in signs if metric == true}
            agreed = agreement(by_truth, as_told, verdicts)._asdict()
            agreed |= {key: _finite(agreed[key]) for key in ("rank", "low", "high")}
            found.append({"true": true, "figure": figure, **agreed})
    return found


def _sign(difference: dict[str, Any]) -> int:
    """Of a difference whose whole interval is on one side of 0; else 0."""
    low, high = difference["low"], difference["high"]
    return 0 if low is None or low <= 0 <= high else 1 if low > 0 else -1


def _of_a_kind(experiment: Experiment, trials: Sequence[ToyTrial]) -> list[list[ToyTrial]]:
    kinds: dict[Any, list[ToyTrial]] = {}
    for trial in trials:
        kinds.setdefault(kind(trial, experiment.recipe), []).append(trial)
    return list(kinds.values())


def judge_trials(experiment: Experiment, trials: Sequence[ToyTrial], saes: Saes) -> dict[str, dict[str, list[float]]]:
    """Every trial's scores on inputs that no training saw: metric -> one value per seed."""
    recipe, seeds = experiment.recipe, saes.b_dec.shape[1]
    known = known_inputs(experiment.world, seeds)
    x = torch.stack([own.x for own in known])
    scores = {}
    for i, trial in enumerate(trials):
        codes = encode(saes, x, i, *kind(trial, recipe)[:2])
        residual = x - codes @ saes.W_dec[i] - saes.b_dec[i, :, None]
        rows = [
            score(known[s], CodedInputs(codes[s], residual[s], saes.W_dec[i, s], saes.encoder[i, s]))._asdict()
            for s in range(seeds)
        ]
        if experiment.key == "composition":
            for s, row in enumerate(rows):
                row |= judge(codes[s], known[s].sizes, known[s].features, saes.W_dec[i, s])._asdict()
        scores[trial.name] = {metric: [row[metric] for row in rows] for metric in rows[0]}
    return scores


def known_inputs(world: World, seeds: int) -> list[KnownInputs]:
    """Of each seed inputs that no training saw."""
    features = torch.stack([directions(world, seed) for seed in range(seeds)])
    held_out = inputs(world, seeds, HELD_OUT, "held out")
    x = held_out.sizes @ features
    return [KnownInputs(x[s], held_out.sizes[s], held_out.weight, features[s], world.pairs) for s in range(seeds)]


def family(trial: ToyTrial) -> str:
    """What trials that differ by coefficient alone have in common: max_cos:0.25@anchored -> max_cos@anchored."""
    return trial.name.replace(f":{trial.arm.coefficient:g}", "", 1) if trial.truth == "unknown" else trial.name


def baseline(trial: ToyTrial, names: Container[str]) -> str:
    """What a trial is compared with: no penalty on its architecture, if that is there; an architecture, with "none"."""
    name = trial.arm.baseline.name
    return name if name in names and trial.arm.penalty != "none" else "none"


def _difference(arms: dict[str, Any], name: str, metric: str) -> dict[str, Any]:
    arm, base = arms[name]["values"][metric], arms[arms[name]["baseline"]]["values"][metric]
    return _interval(_numbers(arm), _numbers(base))


def _interval(arm: list[float], base: list[float]) -> dict[str, Any]:
    d = paired_difference(arm, base)
    return {"mean": d.mean, "low": d.low, "high": d.high, "p": d.p, "p_sign_flip": d.p_sign_flip}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]


# --- what is printed


def table(result: dict[str, Any]) -> str:
    """The suite as plain text: per experiment a line for each arm, means over seeds."""
    exact = result["exact_construction"]
    rows = ("encoder", "decoder")
    made = [[head, *(f"{exact[f'{row}_{key}']:.3f}" for row in rows)] for head, key in _MADE.items()]
    lines = [
        'Made by hand, latents "A and not B", "A and B", "B and not A" '
        f"({'no' if exact['is_one_hot'] else 'some'} reconstruction error); "
        "OrtSAE's term is the signed nearest cosine, clamped and squared:",
        *_indented(["", *rows], made),
    ]
    for experiment in result["experiments"]:
        arms = experiment["arms"]
        cells = [
            [_HEADS.get(metric, metric), *(_cell(metric, arm["values"][metric]) for arm in arms.values())]
            for metric in experiment["shown"]
        ]
        lines += ["", experiment["title"], *_indented(["", *arms], cells)]
        if experiment["key"].startswith("superposition"):
            lines += ["", *halving(experiment)]
        if experiment["agreement"]:
            lines += ["", *agreement_lines(experiment)]
    kind = "long lists" if result["full"] else "short lists"
    return "\n".join([*lines, "", f"{result['seeds']} seeds, {kind} of arms, {result['seconds']:.0f} s"])


def agreement_lines(experiment: dict[str, Any]) -> list[str]:
    """How the figures of `compare` order the arms, beside the truth."""
    rows = experiment["agreement"]
    names = [f"{_HEADS.get(row['figure'], row['figure'])} beside true {row['true']}" for row in rows]
    columns_of = {
        "rank correlation": [_rank_text(row) for row in rows],
        **{key: [str(row[key]) for row in rows] for key in ("same", "opposite", "missed", "invented")},
    }
    title = (
        "  what compare's figures say of these arms, beside the truth (counts of arms that differ from their baseline by\n"
        "  their 95% intervals, paired by seed and not corrected for the number of arms)"
    )
    return [title, *_indented(["", *names], [[head, *cells] for head, cells in columns_of.items()])]


def _rank_text(row: dict[str, Any]) -> str:
    if None in (row["rank"], row["low"], row["high"]):
        return "-"
    return f"{row['rank']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"


def _indented(labels: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    return [f"  {line}".rstrip() for line in columns(labels, cells)]


_MADE = {"mean |cos|": "abs_cos", "OrtSAE term": "max_cos"}
_HEADS = {"nearest_cos": "nearest cos", "parent_f1": "parent F1", "mcc": "MCC", "fvu": "FVU", "f1": "F1",
          "told_hole": "holes as told", "told_equal_hole": "... at equal false alarms", "told_fraction": "fraction",
          "told_full": "full absorption", "told_precision": "precision of main latents"}  # fmt: skip


def _cell(metric: str, per_seed: list[float | None]) -> str:
    known = [value for value in per_seed if value is not None]
    if metric in ("composite", "recovered"):
        return f"{sum(known):.3g}/{len(known)}"
    return f"{sum(known) / len(known):.3f}" if known else ""


def halving(experiment: dict[str, Any]) -> list[str]:
    """Does an arm halve the baseline's holes, and for how much FVU? Paired by seed, 95% intervals.

    An arm halves them where its holes less half of the baseline's are below 0 with their whole interval; it is
    cheap where the interval of its FVU less the baseline's is below `FVU_BUDGET`.
    """
    names, rows = [], []
    for name, arm in experiment["arms"].items():
        if name == arm["baseline"]:
            continue
        base = experiment["arms"][arm["baseline"]]["values"]
        holes, before = _numbers(arm["values"]["hole"]), _numbers(base["hole"])
        fewer, half = _interval(holes, before), _interval(holes, [value / 2 for value in before])
        fvu = _interval(_numbers(arm["values"]["fvu"]), _numbers(base["fvu"]))
        halves, cheap = (
            one["high"] is not None and one["high"] < most for one, most in ((half, 0.0), (fvu, FVU_BUDGET))
        )
        verdict = "halved" * halves + " and cheap" * (halves and cheap)
        names.append(name)
        times = f"x{sum(holes) / sum(before):.2f}" if sum(before) else "-"
        rows.append([times, _interval_text(fewer), _interval_text(fvu), verdict])
    heads = ("holes, times", "difference of holes", "of FVU", "holes halved?")
    cells = [[head, *column] for head, column in zip(heads, zip(*rows, strict=True), strict=True)] if rows else []
    title = (
        f"  against no penalty, on the arm's architecture if it is there (cheap: FVU less than {FVU_BUDGET:g} above it;\n"
        "  95% intervals, paired by seed and not corrected for the number of arms)"
    )
    return [title, *_indented(["", *names], cells)]


def _interval_text(difference: dict[str, Any]) -> str:
    ends = "" if difference["low"] is None else f" [{difference['low']:+.3f}, {difference['high']:+.3f}]"
    return f"{difference['mean']:+.3f}{ends}"


def write(result: dict[str, Any], folder: Path) -> Path:
    path = folder / RESULT
    write_json(path, result)
    return path


def demo(folder: Path, full: bool = False, seeds: int = SEEDS) -> str:
    """Run the suite, keep its numbers and draw its ladders, and return what is printed."""
    result = run(full, seeds)
    path, curves = write(result, folder), write_curves(result, folder)
    drawn = f"\ncurves: {folder}/{{{','.join(curve.stem for curve in curves)}}}.svg" if curves else ""
    return f"{table(result)}\nall numbers, per seed: {path}{drawn}"
