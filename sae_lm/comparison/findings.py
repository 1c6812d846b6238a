"""Differences and verdicts put into sentences: one per arm, and the answer."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from sae_lm.comparison.matching import Values
from sae_lm.comparison.outcomes import PRIMARY
from sae_lm.metrics.statistics import (
    FEWEST_SEEDS,
    LEVEL,
)

MOST_NAMED = 4
"""Arms that the answer names for one finding."""


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
