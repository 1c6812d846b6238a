"""Hold what main latents show by one ranking against the same by another (`--rank-latents both`).

A claim by both is an intersection: it is tested by the greater of the two p (Berger 1982), which Holm's correction then
takes as any other. What is said of a difference that is no claim has to be true of both as well: how many seeds it
needs, and how large one could go unseen. Where one ranking alone was asked for, its second has no values.
"""

from sae_lm.metrics.equivalence import equivalence_p
from sae_lm.metrics.statistics import FEWEST_SEEDS, LEVEL, Difference, detectable, seeds_needed


def _asked_for(first: Difference, second: Difference) -> list[Difference]:
    return [first, second] if second.seeds else [first]


def joint(first: Difference, second: Difference) -> Difference:
    """The first with the p by which both differ the same way: the greater, and 1 where their signs are not equal or the
    second is not known of enough seeds."""
    if not second.seeds or first.p is None:
        return first
    same = _same_way(first, second) and second.p is not None and second.seeds >= FEWEST_SEEDS
    return first._replace(p=max(first.p, second.p or 0.0) if same else 1.0)


def _same_way(first: Difference, second: Difference) -> bool:
    return first.mean is not None and second.mean is not None and first.mean * second.mean > 0


def alone(first: Difference, second: Difference) -> str | None:
    """A reason why nothing is claimed where one ranking would, or each another; before any correction."""
    both = joint(first, second).p
    if not second.seeds or both is None or both <= LEVEL:
        return None
    ways = [_way(first, "the L1 probe"), _way(second, "F1")]
    said = [way for way in ways if way is not None]
    return f"{', '.join(said)}{' alone' * (len(said) == 1)}, uncorrected" if said else None


def _way(of: Difference, ranking: str) -> str | None:
    if of.p is None or of.mean is None or of.p > LEVEL or of.seeds < FEWEST_SEEDS:
        return None
    return f"{'lower' if of.mean < 0 else 'higher'} by {ranking}"


def needed(first: Difference, second: Difference, level: float) -> int | None:
    """The seeds that find both differences (`seeds_needed`); None where it is not known, too many or of two signs."""
    found = []
    for of in _asked_for(first, second):
        if of.mean is None or of.spread is None or of.seeds < FEWEST_SEEDS:
            return None
        found.append(seeds_needed(of.mean, of.spread, level))
    known = [seeds for seeds in found if seeds is not None]
    return max(known) if len(known) == len(found) and (len(found) == 1 or _same_way(first, second)) else None


def unseen(first: Difference, second: Difference, level: float) -> float | None:
    """The difference that these seeds find by both with 80% chance, or somewhat less; None where it is not known."""
    found = []
    for of in _asked_for(first, second):
        if of.mean is None or not of.spread or of.seeds < FEWEST_SEEDS:
            return None
        found.append(of.spread * detectable(of.seeds, level))
    return max(found)


def equivalent(first: Difference, second: Difference, margin: float) -> float:
    """The p of being within a margin (`equivalence_p`) by both; 1 where it cannot be known."""
    every = [equivalence_p(of.per_seed, margin) for of in _asked_for(first, second)]
    return max(1.0 if p is None else p for p in every)
