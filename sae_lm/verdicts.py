"""figures of all arms and seeds -> differences from the baseline, verdicts, findings, the answer; measures nothing.

Rules. Each arm is compared with the baseline at equal L0 (sae_lm.metrics.frontier), seed by seed. What decides is
the p value of Student's t over seeds (sae_lm.metrics.statistics has why); for primary outcomes after Holm's
correction. The family that is corrected for: every primary outcome of every arm that is compared at all, that is,
with three seeds or more and at equal or interpolated L0. Other metrics are not corrected: their verdicts describe,
and one in twenty is chance. "Less absorption" needs both its hole rate and its fraction to be lower, because a
penalty on cosines can lower the fraction alone (sae_lm.metrics.absorption).
"""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from sae_lm.errors import SaeError, SettingsError
from sae_lm.metrics.frontier import Match, match, pareto
from sae_lm.metrics.statistics import (
    FEWEST_SEEDS,
    LEVEL,
    MOST_SEEDS,
    Difference,
    detectable,
    holm,
    paired_difference,
    seeds_needed,
)
from sae_lm.sae.penalties import Arm, parse_arm


class Metric(NamedTuple):
    label: str
    unit: str
    better: str | None
    """lower, higher or None"""
    role: str
    """primary: what the question is about, corrected for their number. quality: what the answer costs. check: whether
    the penalty did what it says. context: to read the others by"""
    explain: str


METRICS = {
    "splits": Metric("latents per concept (splitting)", "latents", "lower", "primary",
        "Latents worth having for one concept: each adds more than split_gain to the F1 of those before it."),
    "hole_rate": Metric("hole rate", "share", "lower", "primary",
        "Share of tokens on which the probe sees the concept and all its main latents are silent; no geometry in it."),
    "absorption_fraction": Metric("absorption, fraction", "share", "lower", "primary",
        "Share of the concept's projection that other latents carry instead of its main ones (SAEBench 0.6.0)."),
    "fvu": Metric("fraction of variance unexplained", "share", "lower", "quality",
        "Mean squared error over mean squared distance from the mean activation."),
    "ce_spliced": Metric("cross-entropy with the SAE", "nats", "lower", "quality",
        "The language model's loss with the reconstruction in place of its activation."),
    "ce_recovered": Metric("cross-entropy recovered", "share", "higher", "quality",
        "1: as good as the model itself; 0: as bad as zeros, which are very bad, so that all values look high."),
    "ce_recovered_from_mean": Metric("cross-entropy recovered, from the mean", "share", "higher", "quality",
        "The same with the mean activation for zeros: a stricter reference, and not the one that others report."),
    "kl": Metric("KL divergence from the model", "nats", "lower", "quality",
        "KL(model || model with the SAE) per token."),
    "kl_recovered": Metric("KL recovered", "share", "higher", "quality", "As cross-entropy recovered, in KL divergence."),
    "main_f1": Metric("F1 of a concept's main latents", "F1", "higher", "quality",
        "How well the main latents together tell the concept on unseen token types; where low, absorption says little."),
    "main_recall": Metric("recall of a concept's main latents", "share", "higher", "quality",
        "Share of a concept's tokens, of unseen types, on which any of its main latents fires; no threshold, no probe."),
    "l0": Metric("latents per token (L0)", "latents", None, "context",
        "Mean number of latents that fire; arms are compared where it is equal."),
    "nmse": Metric("squared error over squared norm", "share", "lower", "quality",
        "As FVU, against the squared norm instead of the variance."),
    "l2_ratio": Metric("norm of reconstruction over norm", "ratio", None, "quality", "Below 1: shrinkage."),
    "bias": Metric("reconstruction bias", "ratio", None, "quality",
        "E||x_hat||^2 / E<x, x_hat>: 1 is unbiased, below 1 is shrinkage (2404.16014)."),
    "dead": Metric("dead latents", "share", "lower", "quality",
        "Share of latents that fire on none of the held-out rows measured; falls as these grow."),
    "dense": Metric("dense latents", "share", "lower", "quality", "Share of latents that fire on more than 10% of rows."),
    "recovered_on_holes": Metric("projection recovered on holes", "ratio", "higher", "quality",
        "Where the main latents are silent, how much of the concept's direction the whole SAE still carries."),
    "nearest_cos": Metric("decoder cosine to nearest, alive", "cosine", None, "check",
        "Mean cosine of a latent's direction to the nearest other among those that fire; random directions score low too, so that low is no merit."),
    "mean_abs_cos": Metric("decoder mean |cos|", "cosine", None, "check", "Mean absolute cosine of all pairs of latents."),
    "mean_sq_cos": Metric("decoder mean cos^2", "cos^2", None, "check", "Mean squared cosine of all pairs of latents."),
    "near_half": Metric("latents with a neighbour", "share", None, "check", "Share with another latent at cosine above .5."),
    "near_duplicates": Metric("near duplicates", "share", None, "check", "Share with another latent at cosine above .9."),
    "composition_rate": Metric("composition rate", "share", None, "check",
        "Variance of the decoder's rows that a meta-SAE of a quarter of the latents, four per row, explains."),
    "seed_stability": Metric("latents found at the next seed", "share", "higher", "check",
        "Share of latents matched one to one, at cosine .7 or more, in the same arm at the next seed."),
    "distinct": Metric("latents not in the baseline", "share", None, "check",
        "Share with no latent of the baseline's next seed at cosine .2; for the baseline itself, what seeds alone do."),
    "split_ratio": Metric("children per latent of the narrower SAE", "latents", None, "check",
        "Of the narrower SAE's latents that are the nearest of any here at cosine .7 or more: of how many."),
    "stitched_novel": Metric("latents that the narrower SAE lacks", "share", None, "check",
        "Of the latents that fire, the share that lowers the narrower SAE's error when added to it alone (stitching)."),
    "absorption_full": Metric("absorption, full", "share", "lower", "context",
        "Share of tokens on which the main latents are silent and a single other latent carries the concept."),
    "absorption_full_own_k": Metric("absorption, full, own split count", "share", "lower", "context",
        "The same with each SAE's own number of main latents; falls when an arm merely splits more."),
    "absorption_fraction_own_k": Metric("absorption, fraction, own split count", "share", "lower", "context",
        "The fraction with each SAE's own number of main latents; falls when an arm merely splits more."),
    "hole_rate_own_k": Metric("hole rate, own split count", "share", "lower", "context",
        "The hole rate with each SAE's own number of main latents; falls when an arm merely splits more."),
    "control_hole_rate": Metric("hole rate of random latents", "share", None, "context",
        "The hole rate if random latents that fire as often stood for the main ones."),
    "control_fraction": Metric("absorption, fraction, of random latents", "share", None, "context",
        "The fraction if random latents that fire as often stood for the main ones."),
    "nearest_cos_all": Metric("decoder cosine to nearest, all", "cosine", None, "context",
        "Over dead latents too, which need not move to look orthogonal."),
    "nearest_cos_spread": Metric("decoder cosine to nearest, same spread", "cosine", None, "context",
        "What random directions with the decoder's own second moments give."),
    "nearest_cos_null": Metric("decoder cosine to nearest, random", "cosine", None, "context",
        "What as many random directions give."),
}  # fmt: skip
"""Metric key -> what it is, in the order of the tables."""
PRIMARY = tuple(key for key, metric in METRICS.items() if metric.role == "primary")
MOST_NAMED = 4
"""Arms that the answer names for one finding."""
NOT_OUTCOMES = ("nearest_cos_null",)
"""Metrics without a difference: they do not depend on training."""
NOT_TESTED = ("seed_stability", "distinct")
"""Metrics of an SAE and that of the next seed. Each SAE is in two of their values, so that these are not independent
and t would claim too much (simulated where seeds alone matter: .16 to .19 of null differences at .05)."""
Values = Mapping[str, Mapping[str, Sequence[float]]]
"""Arm -> metric -> one value per seed, NaN where missing."""


def read_arm(name: str) -> Arm:
    """Parse the name of a trained arm. Raises SaeError where it is not one."""
    try:
        return parse_arm(name)
    except SettingsError:
        raise SaeError(
            f"{name!r} is not an arm of sae-lm train; expected one as none, max_cos:0.25, none@k=16"
        ) from None


def family(name: str) -> str:
    """An arm's name without its k: the rungs of a ladder have one family."""
    return read_arm(name)._replace(k=None).name


def ladder_of(arm: str, arms: Sequence[str], baseline: str) -> list[str]:
    """The arms that one arm may be compared with: its own architecture without a penalty, where that is among the
    arms and the baseline is no penalty; else the baseline. All rungs of it, or the one that the baseline names."""
    wanted, mine = read_arm(baseline), read_arm(arm)
    if wanted.penalty == "none" and mine.penalty != "none" and mine.arch != wanted.arch:
        own = [other for other in arms if read_arm(other)._replace(k=None) == mine.baseline._replace(k=None)]
        if own:
            return own
    if baseline in arms:
        return [other for other in arms if family(other) == baseline] if wanted.k is None else [baseline]
    return [other for other in arms if family(other) == baseline]


def counterpart(arm: str, values: Values, baseline: str) -> Match:
    """What an arm is compared with: the rung of its own k where L0 is equal, else of equal L0, else between rungs."""
    return match_rung(arm, ladder_of(arm, list(values), baseline), {name: of["l0"] for name, of in values.items()})


def match_rung(arm: str, ladder: Sequence[str], l0: Mapping[str, Sequence[float]]) -> Match:
    """The same on a given ladder. l0: of all arms, per seed."""
    same_k = next((rung for rung in ladder if read_arm(rung).k == read_arm(arm).k), None)
    return match(l0[arm], {rung: l0[rung] for rung in ladder}, same_k)


def compare_arms(values: Values, baseline: str) -> list[dict[str, Any]]:
    """One entry for each arm that is not the baseline's and each metric: the report's "differences"."""
    found: list[tuple[str, str, Match, Difference]] = []
    for arm in values:
        if arm in ladder_of(baseline, list(values), baseline):
            continue
        matched = counterpart(arm, values, baseline)
        for key in METRICS:
            if key in NOT_OUTCOMES:
                continue
            rungs = {rung: values[rung][key] for rung in matched.ladder}
            others = list(values[matched.name][key]) if key == "l0" else matched.baseline(rungs)
            difference = paired_difference(values[arm][key], others)
            found.append((arm, key, matched, difference.untested() if key in NOT_TESTED else difference))
    tested = [
        (arm, key)
        for arm, key, matched, d in found
        if key in PRIMARY and d.seeds >= FEWEST_SEEDS and matched.how != "not matched"
    ]
    p = {(arm, key): d.p for arm, key, _, d in found if (arm, key) in set(tested)}
    corrected = dict(zip(tested, holm([p[test] or 0.0 for test in tested]), strict=True))
    return [_entry(arm, key, matched, d, corrected) for arm, key, matched, d in found]


def _entry(
    arm: str, key: str, matched: Match, d: Difference, corrected: Mapping[tuple[str, str], float]
) -> dict[str, Any]:
    # what Holm's first step asks for: a primary outcome is to be found even where no other is
    level = LEVEL / max(1, len(corrected)) if key in PRIMARY else LEVEL
    known = d.mean is not None and d.spread is not None and d.seeds >= FEWEST_SEEDS
    needed = seeds_needed(d.mean, d.spread, level) if known else None  # pyright: ignore[reportArgumentType]
    p_holm = corrected.get((arm, key))
    return {
        "arm": arm,
        "baseline": "/".join(matched.ladder) if matched.how == "interpolated" and key != "l0" else matched.name,
        "metric": key,
        **d._asdict(),
        "p_holm": p_holm,
        "detectable": d.spread * detectable(d.seeds, level) if known and d.spread else None,
        "seeds_needed": needed,
        "l0": matched.how,
        "verdict": _verdict(key, matched.how, d, p_holm, needed),
    }


def _verdict(key: str, how: str, d: Difference, p_holm: float | None, needed: int | None) -> str:
    if not d.seeds:
        return "no claim (no values)"
    if d.seeds < FEWEST_SEEDS:
        return f"no claim (< {FEWEST_SEEDS} seeds)"
    if how == "not matched" and key != "l0":
        return "L0 not matched"
    if key in NOT_TESTED:
        return "no claim (pairs of seeds overlap)"
    p = p_holm if key in PRIMARY else d.p
    if p is not None and d.mean is not None and p <= LEVEL:
        return "lower" if d.mean < 0 else "higher"
    if d.mean == 0 and d.spread == 0:
        return "not distinguishable (equal)"
    return f"not distinguishable (needs {f'about {needed}' if needed else f'over {MOST_SEEDS}'} seeds)"


def frontier(values: Values) -> set[str]:
    """The arms on the Pareto front of mean L0 and mean FVU."""
    return pareto({arm: (fmean(of["l0"]), fmean(of["fvu"])) for arm, of in values.items()})


# --- words


def findings(differences: Sequence[Mapping[str, Any]], values: Values, seeds: int) -> list[str]:
    """One sentence per arm, then what bears on all of them."""
    by_arm: dict[str, dict[str, Mapping[str, Any]]] = {}
    for difference in differences:
        by_arm.setdefault(difference["arm"], {})[difference["metric"]] = difference
    sentences = [_finding(arm, of, seeds) for arm, of in by_arm.items()]
    tested = [d for d in differences if d["p_holm"] is not None]
    if tested:
        arms = len({d["arm"] for d in tested})
        sentences.append(
            f"Primary outcomes are corrected together (Holm; {len(tested)} tests: {len(PRIMARY)} outcomes, {arms} "
            f"arm{'s' * (arms != 1)}); other verdicts are not corrected, and one in twenty of these is chance."
        )
        floor = 2 / 2**seeds
        if floor > LEVEL / len(tested):
            sentences.append(
                f"With {seeds} seeds the exact sign-flip test cannot go below p = {floor:.3g}, so that every claim "
                "on a primary outcome rests on Student's t, which takes differences between seeds to be near normal."
            )
    skill = [f1 for of in values.values() for f1 in of["main_f1"] if math.isfinite(f1)]
    if skill and fmean(skill) < 0.6:
        sentences.append(
            f"The SAEs hold these concepts badly (mean F1 of their main latents {fmean(skill):.2f}): "
            "absorption then says little."
        )
    return sentences


def absorption_verdict(of: Mapping[str, Mapping[str, Any]]) -> str | None:
    """lower or higher where hole rate and fraction both are, else None."""
    hole, fraction = of["hole_rate"]["verdict"], of["absorption_fraction"]["verdict"]
    return hole if hole == fraction and hole in ("lower", "higher") else None


def _finding(arm: str, of: Mapping[str, Mapping[str, Any]], seeds: int) -> str:
    if seeds < FEWEST_SEEDS:
        return f"{arm}: no claim with {seeds} seed{'s' * (seeds != 1)}; at least {FEWEST_SEEDS} are needed."
    if of["fvu"]["l0"] == "not matched":
        return (
            f"{arm}: no claim, its L0 is not the baseline's ({of['l0']['mean']:+.3g} from {of['l0']['baseline']}) "
            "and outside its ladder."
        )
    both = absorption_verdict(of)
    if both:
        absorbed = f"{'less' if both == 'lower' else 'more'} absorption (hole rate and fraction both {both})"
    else:
        hole, fraction = of["hole_rate"]["verdict"], of["absorption_fraction"]["verdict"]
        absorbed = f"no claim on absorption: hole rate {hole}, fraction {fraction}"
    cost, fvu = of["fvu"]["mean"], of["fvu"]["verdict"]
    if cost is not None:
        head, _, needs = fvu.rstrip(")").partition(" (")
        fvu = f"{head} ({cost:+.4f}{', ' if needs else ''}{needs})"
    against = f"against {of['fvu']['baseline']}" + ", interpolated" * (of["fvu"]["l0"] == "interpolated")
    return f"{arm} ({against}): {absorbed}; splitting {of['splits']['verdict']}; FVU {fvu}; {seeds} seeds."


def answer(differences: Sequence[Mapping[str, Any]], baseline: str, seeds: int, concepts: int) -> str:
    """The report in a sentence. concepts: how many passed their gate."""
    by_arm: dict[str, dict[str, Mapping[str, Any]]] = {}
    for difference in differences:
        by_arm.setdefault(difference["arm"], {})[difference["metric"]] = difference
    if not by_arm:
        return f"Nothing is compared: there is no arm besides {baseline}."
    if not concepts:
        return "No claim on splitting or absorption: no concept passed the gate of its probe."
    if seeds < FEWEST_SEEDS:
        return (
            f"No claim: {seeds} seed{'s' * (seeds != 1)} per arm, where at least {FEWEST_SEEDS} are needed to tell "
            "a difference from chance."
        )
    if all(of["fvu"]["l0"] == "not matched" for of in by_arm.values()):
        return f"No claim: no arm has the L0 of {baseline}, and figures at different L0 say nothing of a penalty."
    told = []
    for way, less in (("lower", "less"), ("higher", "more")):
        absorbing = [arm for arm, of in by_arm.items() if absorption_verdict(of) == way]
        splitting = [arm for arm, of in by_arm.items() if of["splits"]["verdict"] == way]
        for arms, what in ((absorbing, "absorption"), (splitting, "splitting")):
            if arms:
                told.append(f"{less} {what} with {_named({arm: by_arm[arm] for arm in arms})}")
    if told:
        return f"Compared with {baseline}, over {seeds} paired seeds: {'; '.join(told)}."
    sees = [of["hole_rate"]["detectable"] for of in by_arm.values() if of["hole_rate"]["detectable"] is not None]
    unseen = f" (a hole rate lower by less than {max(sees):.2g} could go unseen)" if sees else ""
    many = "the arm" if len(by_arm) == 1 else f"any of the {len(by_arm)} arms"
    return (
        f"No difference in absorption or splitting from {baseline} is shown for {many} with {seeds} paired seeds"
        f"{unseen}, which is no evidence that there is none."
    )


def _named(by_arm: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Arms and what they cost; of many the cheapest, the others counted."""
    costs = [(arm, of["fvu"]["mean"]) for arm, of in by_arm.items()]
    many = len(costs) > MOST_NAMED
    if many:
        costs.sort(key=lambda told: math.inf if told[1] is None else told[1])
    named = ", ".join(f"{arm} ({_cost(by_arm[arm])})" for arm, _ in costs[:MOST_NAMED])
    return f"{len(costs)} arms, cheapest {named}" if many else named


def _cost(of: Mapping[str, Mapping[str, Any]]) -> str:
    return f"FVU {of['fvu']['mean']:+.4f}" if of["fvu"]["mean"] is not None else "FVU unknown"
