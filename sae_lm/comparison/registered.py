"""Answer the claims that were registered before the first SAE was trained (`sae_lm.training.registered`).

Each is one paired test over seeds, by Student's t; where equivalence is claimed, two one-sided ones. Where the file
asks for both rankings of main latents a claim holds by both (`sae_lm.comparison.both_rankings`). Holm's correction
is over the claims of the file alone: these were chosen beforehand, and all else in the report was not.
"""

import math
from collections.abc import Collection, Iterable, Sequence
from statistics import fmean
from typing import NamedTuple

from sae_lm.comparison.both_rankings import equivalent, joint
from sae_lm.comparison.doubts import doubts_of_one
from sae_lm.comparison.families import families
from sae_lm.comparison.frontier import Curve, untrained
from sae_lm.comparison.matching import Matching, Values, is_rung
from sae_lm.comparison.other_concepts import UNEVEN
from sae_lm.comparison.outcomes import METRICS, NOT_OUTCOMES, NOT_TESTED, OF_NARROWER, PRIMARY, TWINS
from sae_lm.comparison.runs import Runs
from sae_lm.errors import SettingsError
from sae_lm.fields import choice
from sae_lm.metrics.statistics import FEWEST_SEEDS, LEVEL, Difference, holm, paired_difference
from sae_lm.pages.difference_entries import ClaimEntry, RegisteredEntry
from sae_lm.penalties.arms import Arm, parse_arm, parse_arms
from sae_lm.runtime.differences import differences
from sae_lm.runtime.files import sha256
from sae_lm.settings import CompareSettings
from sae_lm.training.registered import WHERE_IT_COMPARES, Claim, Registered, not_registered, read_registered


class Evidence(NamedTuple):
    """What claims are decided by."""

    values: Values
    matching: Matching
    curves: Sequence[Curve]
    undertrained: Collection[Arm]
    margin: float
    """within which a share counts as equivalent"""


class _Pair(NamedTuple):
    """What a claim is about, read of both sides."""

    difference: Difference
    against: str
    """what the arm is held to"""
    l0: tuple[float, float] = (math.nan, math.nan)
    """means over seeds, of the arm and of what it is held to; of arms that lie at one cost, of these"""
    why_not: str | None = None
    """why it says nothing, or None"""
    by_f1: Difference = paired_difference([], [])
    """by the other ranking of main latents; without values where one alone was asked for"""


class _Test(NamedTuple):
    pair: _Pair
    p: float | None
    """of what is expected; None where nothing can be said"""
    why_not: str | None


def check_registered(settings: CompareSettings) -> Registered | None:
    """What the runs are held to. Raises SaeError where it was changed, SettingsError where it cannot be answered."""
    registered = read_registered(settings.runs)
    if registered is not None:
        _check_metrics(registered)
    return registered


def check_claims(registered: Registered) -> None:
    """Raise SettingsError for a claim that no comparison decides: better before the first SAE than after the last."""
    _check_metrics(registered)
    baseline = parse_arm(registered.comparison.baseline)
    found = families([arm for arm in parse_arms(registered.training.arms) if not is_rung(arm, baseline)])
    for number, claim in enumerate(registered.claims, 1):
        where = f"registered {registered.file}: claim {number}:"
        pair = [parse_arm(name) for name in (claim.arm, claim.against) if name is not None]
        for arm in pair:
            if is_rung(arm, baseline):
                raise SettingsError(
                    f"{where} {arm.name} is the baseline itself, which is compared with nothing; name another arm, "
                    + ("or another baseline under [compare]" if len(pair) == 1 else "or leave out `against` and `fvu`")
                )
        if shared := next((family.name for family in found if len(pair) > 1 and {*pair} <= {*family.arms}), None):
            raise SettingsError(f"{where} {_on_one_curve(pair[0], pair[1], shared)}; name arms of two families")


def _check_metrics(registered: Registered) -> None:
    for number, claim in enumerate(registered.claims, 1):
        # seeds may share a narrower SAE; and a figure that some SAEs lack of a concept is no mean over the same concepts
        left_out = {*NOT_TESTED, *NOT_OUTCOMES, *OF_NARROWER, *UNEVEN}
        known = [key for key in METRICS if key not in left_out]
        where = "here"
        if claim.fvu is not None:
            known, where = [*PRIMARY], "at equal FVU"
        if claim.expect == "equivalent":
            # the margin is one of holes and fraction: of FVU it would be more than any penalty costs
            known, where = [key for key in PRIMARY if METRICS[key].unit == "share"], "for equivalence"
        if claim.metric not in known:
            raise SettingsError(
                f"registered {registered.file}: claim {number}: metric {claim.metric!r} is not tested {where}; "
                f"expected {choice(claim.metric, dict.fromkeys(known))}"
            )


def answer_registered(
    registered: Registered | None, settings: CompareSettings, runs: Runs, evidence: Evidence
) -> RegisteredEntry | None:
    """Of every claim whether it holds; None where nothing was registered."""
    if registered is None:
        return None
    claims, lacking = registered.claims, _lacking(registered, settings, runs)
    tests = [_test(claim, evidence, lacking) for claim in claims]
    # one without an answer counts too: the file fixes for how many is corrected, not the data
    corrected = holm([1.0 if test.p is None else test.p for test in tests])
    entries = [
        _entry(claim, test, None if test.p is None else p, evidence)
        for claim, test, p in zip(claims, tests, corrected, strict=True)
    ]
    return {"file": registered.file, "sha256": registered.sha256, "claims": entries}


def _lacking(registered: Registered, settings: CompareSettings, runs: Runs) -> str | None:
    """Why no claim can be answered as registered, or None."""
    foreign = not_registered(settings.runs, registered)
    if foreign:
        return f"{foreign[0]} was not trained under this file"
    training = registered.training
    for asked, there, what in (
        (training.seed_numbers, runs.seeds, "seeds"),
        (parse_arms(training.arms), runs.arms, "arms"),  # without one a curve goes through fewer points
    ):
        if missing := [one for one in asked if one not in there]:
            return f"{len(asked) - len(missing)} of {len(asked)} {what} are there"
    held = set(CompareSettings.model_fields) - WHERE_IT_COMPARES
    mine, theirs = (made.model_dump(mode="json", include=held) for made in (settings, registered.comparison))
    if registered.labels is not None:  # what they hold counts, not where they lie
        theirs["labels"], mine["labels"] = registered.labels, settings.labels and sha256(settings.labels)
    if differing := differences(theirs, mine):
        return f"compared with other settings than registered: {differing[0]}"
    return None


def _test(claim: Claim, evidence: Evidence, lacking: str | None) -> _Test:
    pair = _read(claim, claim.metric, evidence)
    if claim.metric in TWINS and pair.why_not is None:
        second = _read(claim, TWINS[claim.metric], evidence).difference
        pair = pair._replace(by_f1=second)
    difference, why_not = pair.difference, lacking or pair.why_not
    if why_not is None and difference.seeds < FEWEST_SEEDS:
        why_not = f"fewer than {FEWEST_SEEDS} seeds have a value"
    if why_not is not None:
        return _Test(pair, None, why_not)
    if claim.expect == "equivalent":
        return _Test(pair, equivalent(difference, pair.by_f1, evidence.margin), None)
    difference = joint(difference, pair.by_f1)
    # without any spread there is no t: equal values show nothing, a constant difference is beyond doubt in no test
    return _Test(pair, 1.0 if difference.p is None else difference.p, None)


def _nothing(why_not: str) -> _Pair:
    return _Pair(paired_difference([math.nan], [math.nan]), "", why_not=why_not)


def _read(claim: Claim, metric: str, evidence: Evidence) -> _Pair:
    arm = parse_arm(claim.arm)
    if arm not in evidence.values:
        return _nothing(f"{arm.name} is not there")
    if claim.fvu is not None and claim.against is not None:
        return _at_cost(arm, parse_arm(claim.against), claim.fvu, metric, evidence)
    match = evidence.matching.to_baseline[arm]  # the baseline, whatever else is there of the arm's own architecture
    if match.how == "not matched":
        return _nothing("L0 not matched")
    others = match.baseline({rung: evidence.values[rung][metric] for rung in match.ladder})
    interpolated = match.how == "interpolated"  # at the arm's own L0
    return _Pair(
        paired_difference(evidence.values[arm][metric], others),
        "/".join(rung.name for rung in match.used) + ", interpolated" * interpolated,
        (fmean(match.l0), fmean(match.l0 if interpolated else match.ladder[match.rung])),
        _undertrained((arm, *match.used), evidence),
    )


def _at_cost(arm: Arm, against: Arm, cost: float, metric: str, evidence: Evidence) -> _Pair:
    pair = [next((c for c in evidence.curves if one in c.family.arms), None) for one in (arm, against)]
    for one, curve in zip((arm, against), pair, strict=True):
        if curve is None:
            return _nothing(f"{one.name} has no curve at this L0")
        least, most = curve.reach
        if not least <= cost <= most:
            return _nothing(f"{curve.family.name} is known at costs of {least:.3g} to {most:.3g} only")
    if pair[0] is pair[1] and pair[0] is not None:
        return _nothing(_on_one_curve(arm, against, pair[0].family.name))
    if len(rungs := {curve.rung for curve in pair if curve is not None}) > 1:
        return _nothing(f"their L0 differ: they are held to {' and '.join(sorted(rung.name for rung in rungs))}")
    if why_not := untrained([curve for curve in pair if curve is not None], cost):
        return _nothing(why_not)
    read = [curve.read(metric, cost).tolist() for curve in pair if curve is not None]
    read_off = ((curve.rung, *curve.between(cost)) for curve in pair if curve is not None)
    between = dict.fromkeys(one for of_curve in read_off for one in of_curve)
    l0 = [fmean(evidence.values[one]["l0"]) for one in (arm, against)]
    families_read = [curve.family.name for curve in pair if curve is not None]
    against_family = f"{families_read[1]} at {cost:+.3g} FVU"
    return _Pair(paired_difference(*read), against_family, (l0[0], l0[1]), _undertrained(between, evidence))


def _on_one_curve(arm: Arm, against: Arm, family: str) -> str:
    return f"{arm.name} and {against.name} lie on one curve, {family}"


def _undertrained(arms: Iterable[Arm], evidence: Evidence) -> str | None:
    """A control that is held at its start is what its claim is about: no training would bring it away from there."""
    weak = [arm.name for arm in arms if arm in evidence.undertrained and not arm.is_held]
    return f"undertrained: {', '.join(weak)}" if weak else None


def _entry(claim: Claim, test: _Test, p_holm: float | None, evidence: Evidence) -> ClaimEntry:
    d = test.pair.difference
    as_expected = d.mean is not None and (
        claim.expect == "equivalent" or ((d.mean < 0) == (claim.expect == "lower") and d.mean != 0)
    )
    holds = None if p_holm is None else p_holm <= LEVEL and as_expected
    return {
        "sentence": claim.sentence,
        "metric": claim.metric,
        "arm": claim.arm,
        "against": claim.against,
        "fvu": claim.fvu,
        "expect": claim.expect,
        "mean": d.mean,
        "low": d.low,
        "high": d.high,
        "seeds": d.seeds,
        "p": test.p,
        "p_holm": p_holm,
        "holds": holds,
        "answer": _in_words(claim, test, p_holm, holds, evidence),
    }


def _in_words(claim: Claim, test: _Test, p_holm: float | None, holds: bool | None, evidence: Evidence) -> str:
    pair, d, margin = test.pair, test.pair.difference, evidence.margin
    if holds is None or d.mean is None or p_holm is None:
        return f"no answer ({test.why_not})"
    interval = "" if d.low is None or d.high is None else f" [{d.low:+.4f}, {d.high:+.4f}]"
    if claim.expect == "equivalent":  # by one-sided tests, to which that interval does not belong
        interval = f" within ±{margin:g}" if holds else f", not shown to be within ±{margin:g}"
    facts = f"{METRICS[claim.metric].label} {d.mean:+.4f}{interval} against {pair.against}, p {p_holm:.2g}"
    if pair.by_f1.mean is not None:
        facts += f" by both rankings (ranked by F1 {pair.by_f1.mean:+.4f})"
    facts += f", {d.seeds} seeds, L0 {pair.l0[0]:.3g} and {pair.l0[1]:.3g}"
    opposite = claim.expect != "equivalent" and p_holm <= LEVEL
    if not holds and not opposite:
        return f"is not shown ({facts})"
    if claim.expect != "equivalent":
        found = doubts_of_one(
            claim.metric, "lower" if d.mean < 0 else "higher", lambda key: _read(claim, key, evidence).difference
        )
        facts += "".join(f"; but {doubt}" for doubt in found)
    return f"holds ({facts})" if holds else f"does not hold, the opposite does ({facts})"
