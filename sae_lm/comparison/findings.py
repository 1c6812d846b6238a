"""Put differences and verdicts into sentences: one per arm, and the answer that opens the report."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from sae_lm.comparison.doubts import CLAIMS, Differences, doubts
from sae_lm.comparison.matching import Values
from sae_lm.comparison.outcomes import PRIMARY
from sae_lm.comparison.runs import Key
from sae_lm.concepts.probes import Probe
from sae_lm.concepts.rows import NEGATIVES
from sae_lm.metrics.equivalence import MARGIN
from sae_lm.metrics.statistics import FEWEST_SEEDS, LEVEL, mean_of_known, paired_difference
from sae_lm.pages.difference_entries import DifferenceEntry, verdict_text
from sae_lm.pages.summary import by_arm
from sae_lm.pages.text import first_named
from sae_lm.penalties.arms import Arm, parse_arm

AS_WELL = 0.05
"""F1 that a probe on embeddings may lack and still count as doing as well."""
ALL_POSITIVE = 2 / (2 + NEGATIVES)
"""F1 of calling every row of a contextual concept positive."""
FEWEST_RUNGS = 3
"""L0 of a ladder that are asked which is right: of two one is always less."""
MANY_ALARMS = 0.25
"""Share of the rows without a concept on which its main latents fire, from which holes at equal false alarms say little."""
MOST_NAMED = 4
"""Arms, or concepts, that a sentence names."""


AMONG = "among undertrained SAEs"
"""What a claim's words become where its difference has that mark."""
HALF = {"equal_hole_rate": "hole rate at equal false alarms", "absorption_fraction": "fraction"}
"""What absorption is read off, and what an answer calls it."""
HALVES = tuple(HALF)


def findings(differences: Sequence[DifferenceEntry], values: Values, seeds: int) -> list[str]:
    """One sentence per arm, then what bears on all of them."""
    sentences = [_finding(arm, metrics, seeds) for arm, metrics in by_arm(differences).items()]
    tested = [d for d in differences if d["p_holm"] is not None]
    if tested:
        arms = len({d["arm"] for d in tested})
        sentences.append(
            f"Primary outcomes are corrected together (Holm; {len(tested)} tests: {len(PRIMARY)} outcomes, {arms} "
            f"arm{'s' * (arms != 1)}); other verdicts are not corrected: where nothing differs, one in twenty of "
            "these is lower or higher by chance."
        )
        floor = 2 / 2**seeds
        if floor > LEVEL / len(tested):
            sentences.append(
                f"With {seeds} seeds the exact sign-flip test cannot go below p = {floor:.3g}, so that every claim "
                "on a primary outcome rests on Student's t, which takes differences between seeds to be near normal."
            )
    main_f1 = [f1 for metrics in values.values() for f1 in metrics["main_f1"] if math.isfinite(f1)]
    if main_f1 and fmean(main_f1) < 0.6:
        sentences.append(
            f"The SAEs hold these concepts badly (mean F1 of their main latents {fmean(main_f1):.2f}): "
            "absorption then says little."
        )
    return sentences


def embedding_findings(probes: Sequence[Probe]) -> list[str]:
    """What the tokens' input embeddings alone tell of the concepts in use; nothing without a language model."""
    known = [probe for probe in probes if math.isfinite(probe.embedding_f1)]
    of_token = [probe for probe in known if probe.kind != "contextual"]
    in_context = [probe for probe in known if probe.kind == "contextual"]
    sentences = []
    if of_token:
        as_well = sum(probe.embedding_f1 >= probe.f1 - AS_WELL for probe in of_token)
        sentences.append(
            f"The token's input embedding alone tells {as_well} of {len(of_token)} token concepts as well as the activations "
            f"do (F1 within {AS_WELL:g}): these may be no more than the token's identity."
        )
    if in_context:
        best = max(in_context, key=lambda probe: probe.embedding_f1)
        sentences.append(
            f"It tells contextual concepts with F1 {fmean(probe.embedding_f1 for probe in in_context):.2f} on average and "
            f"{best.embedding_f1:.2f} at most ({best.name}); calling every row positive has {ALL_POSITIVE:g}, as their "
            "negatives are of the same tokens."
        )
    return sentences


def l0_findings(values: Values) -> list[str]:
    """Where the n-th decoder projection, which tells a right L0, is least on each ladder of three L0 or more of which it
    is known; the ends are those of the whole ladder. Nothing where the least is not told from the next, over seeds."""
    ladders: dict[str, list[tuple[float, float, Sequence[float]]]] = {}
    for arm, metrics in values.items():
        l0, projection = fmean(metrics["l0"]), fmean(metrics["nth_projection"])
        if math.isfinite(l0):
            ladders.setdefault(arm.family.name, []).append((projection, l0, metrics["nth_projection"]))
    at_end: dict[str, list[str]] = {}
    for family, rungs in ladders.items():
        known = sorted(rung for rung in rungs if math.isfinite(rung[0]))
        every = sorted(l0 for _, l0, _ in rungs)
        if len(known) >= FEWEST_RUNGS and _is_less(known[0][2], known[1][2]):
            least = known[0][1]
            end = {
                every[0]: ", the lowest, so that all may be too high",
                every[-1]: ", the highest, so that all may be too low",
            }
            at_end.setdefault(end.get(least, ""), []).append(f"{family} ({least:.3g})")
    return [
        "Of L0 that differ alone the right one has the least n-th decoder projection (2508.16560). "
        f"It is least at the L0 in brackets{end}: {first_named(families, MOST_NAMED)}."
        for end, families in at_end.items()
    ]


def _is_less(values: Sequence[float], others: Sequence[float]) -> bool:
    """Whether seeds, where there are enough to ask, show it."""
    if len(values) < FEWEST_SEEDS:
        return True
    p = paired_difference(values, others).p
    return p is not None and p <= LEVEL


def removal_findings(values: Values) -> list[str]:
    """Whether the model leans on absorbers more than on other latents: all arms together, over paired seeds."""
    of_seeds = [zip(metrics["absorber_kl"], metrics["other_kl"], strict=True) for metrics in values.values()]
    more = [mean_of_known([a - b for a, b in of_arms]) for of_arms in zip(*of_seeds, strict=True)]
    d = paired_difference(more, [0.0] * len(more))
    if d.mean is None or d.low is None or d.high is None or d.seeds < FEWEST_SEEDS:
        return []
    way = "more" if d.low > 0 else "less" if d.high < 0 else None
    shown = f"leans on absorbers {way}" if way else "is not shown to lean on absorbers more, or less,"
    return [
        f"Without its absorber an absorbed token costs {d.mean:+.3f} nats of KL [{d.low:+.3f}, {d.high:+.3f}] more than "
        f"without another latent of its strength (mean over arms, {d.seeds} paired seeds): the model {shown} than on other latents."
    ]


def alarm_findings(per_concept: Mapping[Key, Sequence[Mapping[str, Any]]], ladder: Sequence[Arm]) -> list[str]:
    """Concepts whose main latents fire wrongly so often in the baseline, to which all SAEs are brought, that few holes are left.

    ladder: the baseline's rungs.
    """
    alarms: dict[str, list[float]] = {}
    for (arm, _), concepts in per_concept.items():
        if arm in ladder:
            for concept in concepts:
                alarms.setdefault(concept["concept"], []).append(concept["false_alarms"])
    often = {name: mean for name, values in alarms.items() if (mean := mean_of_known(values)) >= MANY_ALARMS}
    if not often:
        return []
    named = [f"{name} ({often[name]:.2f})" for name in sorted(often, key=often.__getitem__, reverse=True)]
    return [
        "All SAEs are brought to the baseline's false alarms. Where these are many, holes at equal false alarms say little: "
        f"{first_named(named, MOST_NAMED)}."
    ]


def absorption_verdict(metrics: Differences) -> str | None:
    """lower or higher where hole rate at equal false alarms and fraction both are, else None."""
    hole, fraction = metrics["equal_hole_rate"]["verdict"], metrics["absorption_fraction"]["verdict"]
    return hole if hole == fraction and hole in CLAIMS else None


def _finding(arm: str, metrics: Differences, seeds: int) -> str:
    fvu = metrics["fvu"]
    if seeds < FEWEST_SEEDS:
        return f"{arm}: no claim with {seeds} seed{'s' * (seeds != 1)}; at least {FEWEST_SEEDS} are needed."
    if fvu["l0"] == "not matched":
        return (
            f"{arm}: no claim, its L0 is not the baseline's ({metrics['l0']['mean']:+.3g} from "
            f"{metrics['l0']['baseline']}) and outside its ladder, or far from its rungs."
        )
    both = absorption_verdict(metrics)
    weak = fvu["undertrained"]
    if both and weak:
        absorbed = f"no claim on absorption: hole rate at equal false alarms and fraction both {both}, but {AMONG}"
    elif both:
        small = metrics["equal_hole_rate"]["reason"]  # of a claim: within the margin of equivalence
        absorbed = f"{'less' if both == 'lower' else 'more'} absorption (hole rate at equal false alarms and fraction "
        absorbed += f"both {both}, hole rate {small})" if small else f"both {both})"
    elif _absorbs_alike(metrics) and not weak:
        same = metrics["equal_hole_rate"]["reason"]
        absorbed = f"absorption as before (hole rate at equal false alarms and fraction equivalent, {same})"
    else:
        hole, fraction = verdict_text(metrics["equal_hole_rate"]), verdict_text(metrics["absorption_fraction"])
        absorbed = f"no claim on absorption: hole rate at equal false alarms {hole}, fraction {fraction}"
        by_one = (metrics["equal_hole_rate"]["reason"] or "").startswith("lower by")  # of two rankings of main latents
        if metrics["hole_rate"]["verdict"] == "lower" != metrics["equal_hole_rate"]["verdict"] and not by_one:
            absorbed += " (its plain hole rate is lower, which main latents that fire more often give for nothing)"
    absorbed += "".join(f" (but {doubt})" for doubt in doubts(metrics))
    price = verdict_text(fvu)
    if fvu["mean"] is not None:
        mean_and_reason = [f"{fvu['mean']:+.4f}", *([fvu["reason"]] if fvu["reason"] else [])]
        price = f"{fvu['verdict']} ({', '.join(mean_and_reason)})"
    against = f"against {fvu['baseline']}" + ", interpolated" * (fvu["l0"] == "interpolated")
    splitting = verdict_text(metrics["splits"]) + f" {AMONG}" * (weak and metrics["splits"]["verdict"] in CLAIMS)
    lost = _lost_with_splitting(metrics)
    splitting += f" (and F1 of main latents {'is lower' if lost == 'lower' else 'may be lower too'})" if lost else ""
    return f"{arm} ({against}): {absorbed}; splitting {splitting}; FVU {price}; {seeds} seeds."


def answer(differences: Sequence[DifferenceEntry], baseline: str, seeds: int, concepts: int) -> str:
    """The report in a sentence. concepts: how many passed their gate."""
    arms = by_arm(differences)
    if not arms:
        return f"Nothing is compared: there is no arm besides {baseline}."
    if not concepts:
        return "No claim on splitting or absorption: no concept passed the gate of its probe."
    if seeds < FEWEST_SEEDS:
        return (
            f"No claim: {seeds} seed{'s' * (seeds != 1)} per arm, where at least {FEWEST_SEEDS} are needed to tell "
            "a difference from chance."
        )
    compared = {arm: metrics for arm, metrics in arms.items() if metrics["fvu"]["l0"] != "not matched"}
    by_baseline: dict[str, dict[str, Differences]] = {}
    for arm, metrics in (compared or arms).items():
        by_baseline.setdefault(_compared_with(metrics, baseline), {})[arm] = metrics
    baselines = " or ".join(by_baseline)
    if not compared:
        return f"No claim: no arm has the L0 of {baselines}, and figures at different L0 say nothing of a penalty."
    claims = [(name, told) for name, of_it in by_baseline.items() if (told := "; ".join(_claims(of_it)))]
    if claims:
        return " ".join(f"Compared with {name}, over {seeds} paired seeds: {told}." for name, told in claims)
    detectable = [d for metrics in compared.values() if (d := metrics["equal_hole_rate"]["detectable"]) is not None]
    unseen = f" (a hole rate lower by less than {max(detectable):.2g} could go unseen)" if detectable else ""
    many = "the arm" if len(compared) == 1 else f"any of the {len(compared)} arms"
    many += " that could be compared" * (len(compared) < len(arms))
    return (
        f"No difference in absorption or splitting from {baselines} is shown for {many} with {seeds} paired seeds"
        f"{unseen}, which is no evidence that there is none{_equivalent(compared)}."
    )


def _compared_with(metrics: Differences, baseline: str) -> str:
    """The baseline, where an arm was compared with a rung of it or several, else its own architecture's, without k."""
    family = parse_arm(metrics["fvu"]["baseline"].partition("/")[0]).family
    return baseline if family == parse_arm(baseline).family else family.name


def _equivalent(arms: Mapping[str, Differences]) -> str:
    """The arms of which it is shown that they absorb as the baseline does."""
    names = [arm for arm, metrics in arms.items() if _absorbs_alike(metrics) and not metrics["fvu"]["undertrained"]]
    if not names:
        return ""
    within = arms[names[0]]["equal_hole_rate"]["reason"]
    return f"; but with {first_named(names, MOST_NAMED)} hole rate at equal false alarms and fraction are shown to be the same {within}"


def _absorbs_alike(metrics: Differences) -> bool:
    return metrics["equal_hole_rate"]["verdict"] == metrics["absorption_fraction"]["verdict"] == "equivalent"


def _lost_with_splitting(metrics: Differences) -> str | None:
    """Where latents per concept fall, whether what main latents tell does too, as where latents are taken away: lower,
    unknown, or None where it is kept (shown to fall by less than `MARGIN`)."""
    if metrics["splits"]["verdict"] != "lower":
        return None
    if metrics["main_f1"]["verdict"] == "lower":
        return "lower"
    low = metrics["main_f1"]["low"]
    return None if low is not None and low > -MARGIN else "unknown"  # whatever margin was asked for of holes


def _claims(arms: Mapping[str, Differences]) -> list[str]:
    """What is told of arms; among undertrained SAEs the figures alone, which are then no absorption and no splitting."""
    claims = []
    for way, less in zip(CLAIMS, ("less", "more"), strict=True):
        absorbing = {arm: metrics for arm, metrics in arms.items() if absorption_verdict(metrics) == way}
        splitting = {arm: metrics for arm, metrics in arms.items() if metrics["splits"]["verdict"] == way}
        by_f1: dict[str | None, dict[str, Differences]] = {}
        for arm, metrics in splitting.items():
            by_f1.setdefault(_lost_with_splitting(metrics), {})[arm] = metrics
        fewer = f"latents per concept {way}"
        for found, claim, figures, doubted in (
            (absorbing, f"{less} absorption", f"hole rate at equal false alarms and fraction both {way}", True),
            (by_f1.get(None, {}), f"{less} splitting", fewer, False),
            (by_f1.get("lower", {}), f"{fewer}, and F1 of main latents too,", fewer, False),
            (by_f1.get("unknown", {}), f"{fewer}, where F1 of main latents may be lower too,", fewer, False),
            *(
                (_alone(arms, key, way), f"{told}, which is no claim on absorption,", told, True)
                for key, other in (HALVES, HALVES[::-1])
                for told in [f"{HALF[key]} {way} and {HALF[other]} not"]
            ),
        ):
            for weak, told in ((False, claim), (True, f"{AMONG} {figures}")):
                of = {arm: metrics for arm, metrics in found.items() if metrics["fvu"]["undertrained"] == weak}
                if of:
                    claims.append(f"{told} with {_name_arms(of, doubted)}")
    return claims


def _alone(arms: Mapping[str, Differences], key: str, way: str) -> dict[str, Differences]:
    """The arms of which one of the two figures of absorption is lower, or higher, and the other is not."""
    return {
        arm: metrics
        for arm, metrics in arms.items()
        if metrics[key]["verdict"] == way and absorption_verdict(metrics) is None
    }


def _name_arms(arms: Mapping[str, Differences], doubted: bool) -> str:
    """Arms, what they cost and, where they are named for absorption, what speaks against it; of many the cheapest, the
    others counted."""
    costs = [(arm, metrics["fvu"]["mean"], metrics["fvu"]["l0"]) for arm, metrics in arms.items()]
    many = len(costs) > MOST_NAMED
    if many:
        costs.sort(key=lambda of_arm: math.inf if of_arm[1] is None else of_arm[1])
    named = ", ".join(
        f"{arm} (FVU {'unknown' if cost is None else f'{cost:+.4f}'}{', interpolated' * (l0 == 'interpolated')}"
        f"{''.join(f'; but {doubt}' for doubt in doubts(arms[arm])) * doubted})"
        for arm, cost, l0 in costs[:MOST_NAMED]
    )
    return f"{len(costs)} arms, cheapest {named}" if many else named
