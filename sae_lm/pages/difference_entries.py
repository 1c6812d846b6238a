"""What report.json holds of differences: of an arm from the baseline, by kind and over concepts, of families at one cost."""

from typing import Literal, TypedDict

Verdict = Literal["lower", "higher", "equivalent", "not distinguishable", "no claim", "L0 not matched"]


class DifferenceEntry(TypedDict):
    """One metric of one arm less the baseline's, paired by seed (`sae_lm.metrics.statistics`)."""

    arm: str
    baseline: str
    """the arm it is taken from; where that is a line between the rungs of a ladder, all of them"""
    metric: str
    per_seed: list[float | None]
    mean: float | None
    low: float | None
    """95% interval of the mean"""
    high: float | None
    p: float | None
    """of primary outcomes with main latents ranked twice the p by which both rankings differ the same way"""
    p_sign_flip: float | None
    bootstrap_low: float | None
    bootstrap_high: float | None
    spread: float | None
    p_holm: float | None
    """of primary outcomes that are tested"""
    p_equivalence: float | None
    """of primary outcomes that are shares and tested: small where the difference is within the margin; after Holm's
    correction over these"""
    detectable: float | None
    """the difference that these seeds find with 80% chance; of primary outcomes at Holm's first step, .05 / tests"""
    seeds_needed: int | None
    """to find a difference of this size; at the same level"""
    l0: str
    """matched, interpolated or not matched"""
    verdict: Verdict
    reason: str | None
    """why there is no verdict, or what it would take: needs about 38 seeds"""
    undertrained: bool
    """the arm's SAEs or the baseline's are not trained yet: whatever the verdict, it says little about trained ones"""


class KindEntry(TypedDict):
    """One arm's primary outcome less the baseline's, over the concepts of one kind; paired by seed."""

    arm: str
    metric: str
    kind: str
    """token, letter (first letters), contextual or csv"""
    concepts: int
    """of the kind, in use"""
    per_seed: list[float | None]
    mean: float | None
    low: float | None
    """95% interval of the mean, not corrected"""
    high: float | None


class OtherConceptsEntry(TypedDict):
    """One primary difference over seeds and concepts together (`sae_lm.metrics.crossed`)."""

    arm: str
    baseline: str
    metric: str
    concepts: int
    """that every SAE of the pair has a value of"""
    mean: float
    """over these"""
    low: float | None
    """95% interval of the mean for other seeds and other concepts of the kind; null where it has no end"""
    high: float | None
    for_others: bool
    """whether such an interval, corrected for all that was tested, leaves out 0"""
    without_low: float
    """least mean when any one concept is left out"""
    without_high: float
    concept: str
    """whose omission moves the mean most"""
    sign_changes: bool
    """for some concept left out"""
    claim_rests_on: list[str]
    """concepts without which a verdict of lower or higher would be none"""


class Interval(TypedDict):
    """A mean over seeds with its 95% interval by Student's t."""

    mean: float
    low: float
    high: float


class FrontierPoint(TypedDict):
    arm: str
    fvu: Interval
    """above the baseline's"""
    changes: dict[str, Interval]
    """primary outcome, by either ranking of main latents -> the arm's less the baseline's"""


class BandEntry(Interval):
    fvu: float
    """cost above the baseline's at which all seeds' curves are read"""


class FrontierEntry(TypedDict):
    """A family of arms as a curve of primary outcomes against FVU, at one L0 (`sae_lm.comparison.frontier`)."""

    family: str
    rung: str
    """the baseline that all differences are from: (0, 0)"""
    least_fvu: float
    """costs that the curve has at every seed, from"""
    most_fvu: float
    """to"""
    points: list[FrontierPoint]
    """in the order of their cost; with what the curve begins with"""
    bands: dict[str, list[BandEntry]]
    """primary outcome, by either ranking of main latents -> the curve's height"""


class EqualFvuEntry(TypedDict):
    """One primary outcome of one family less another's, both read at one cost in FVU (`sae_lm.comparison.equal_fvu`)."""

    family: str
    reference: str
    rung: str
    fvu: float
    """cost above the baseline's"""
    metric: str
    change: float | None
    """the family's from the baseline, mean over seeds"""
    reference_change: float | None
    between: list[str]
    """the arms between which it is read; empty where it is not"""
    reference_between: list[str]
    per_seed: list[float | None]
    mean: float | None
    low: float | None
    high: float | None
    p: float | None
    p_holm: float | None
    """over all that is tested at equal FVU"""
    verdict: Verdict
    reason: str | None
    doubts: list[str]
    """what speaks against a verdict of lower or higher (`sae_lm.comparison.doubts`)"""
    undertrained: bool
    """whether an arm that it is read off is (`ArmEntry`)"""


class ClaimEntry(TypedDict):
    """A claim that was registered before training, and its answer (`sae_lm.comparison.registered`)."""

    sentence: str
    metric: str
    arm: str
    against: str | None
    """the arm it is held to at one cost in FVU; null: the baseline, at equal L0"""
    fvu: float | None
    expect: str
    """lower, higher or equivalent"""
    mean: float | None
    low: float | None
    high: float | None
    seeds: int
    p: float | None
    p_holm: float | None
    """over the claims of the file; null where there is no answer"""
    holds: bool | None
    answer: str
    """in words, with the figures or the reason why there is none"""


class RegisteredEntry(TypedDict):
    file: str
    sha256: str
    claims: list[ClaimEntry]


def verdict_text(difference: DifferenceEntry) -> str:
    """``not distinguishable (needs about 38 seeds)``."""
    reason = difference["reason"]
    return f"{difference['verdict']} ({reason})" if reason else difference["verdict"]
