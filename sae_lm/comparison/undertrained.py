"""Find the arms whose SAEs are not trained yet, and say so: differences between such SAEs say little about trained ones.

An arm is undertrained if its decoder rows are still near their random start; or if seeds have little in common while
FVU still falls fast. Either alone of the last two is no sign: seeds of a wide dictionary never share all, and FVU
falls in any run that is ended early. A fall that is not known counts as one where the start is known, as of SAEs of our
own: most often the run was too short for its log to have four lines there. What else is not known (one seed) speaks
against nobody.
The limits are measured on one model (sae_lm/metrics/README.md): they depend on width and d_in.

Arms that are held near their start on purpose are controls. They are flagged themselves and warn of no others.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from jaxtyping import Bool
from torch import Tensor

from sae_lm.comparison.matching import Matching, Values
from sae_lm.metrics.statistics import mean_of_known
from sae_lm.penalties.arms import Arm
from sae_lm.sae.model import SAE
from sae_lm.training.convergence import ADVICE, MOST_FALL, MOST_START_COS, sae_start_cosines, span

LEAST_SIGNAL = 0.35
"""Part of the signal that latents found at the next seed carry, below which seeds have little in common."""
MOST_NAMED = 4
"""Arms that a warning names."""


def training_figures(sae: SAE, seed: int, fired: Bool[Tensor, " d_sae"]) -> dict[str, float]:
    """The metrics ``start_cos``, ``encoder_start_cos`` and ``fvu_slope`` of an SAE of ``sae-lm train``.

    seed: that it began at. fired: its living latents. What is not known is left out.
    """
    recorded = sae.config.metadata.get("convergence")
    slope = recorded.get("fvu_slope") if isinstance(recorded, dict) else None
    return sae_start_cosines(sae, seed, fired) | ({} if slope is None else {"fvu_slope": float(slope)})


class Undertrained(NamedTuple):
    """Means over an arm's seeds, NaN where not known."""

    start_cos: float
    stability: float
    signal: float
    slope: float

    @property
    def near_start(self) -> bool:
        return self.start_cos >= MOST_START_COS

    @property
    def may_still_fall(self) -> bool:
        return math.isfinite(self.start_cos) if math.isnan(self.slope) else self.slope > MOST_FALL


def find_undertrained(values: Values) -> dict[Arm, Undertrained]:
    """The arms that are undertrained."""
    found = {
        arm: Undertrained(
            *(mean_of_known(of[key]) for key in ("start_cos", "seed_stability", "stable_signal", "fvu_slope"))
        )
        for arm, of in values.items()
    }
    return {arm: of for arm, of in found.items() if of.near_start or (of.signal < LEAST_SIGNAL and of.may_still_fall)}


def taints(arm: Arm, matching: Matching, undertrained: Mapping[Arm, Undertrained]) -> bool:
    """Whether a difference of this arm is of undertrained SAEs: its own, or those that it is taken from."""
    return any(one in undertrained for one in (arm, *matching.matches[arm].used))


def reason(of: Sequence[Undertrained]) -> str:
    """``hardly left their random start (decoder cosine with it 0.74, seeds share 2% of latents)``."""
    told = {
        "decoder cosine with it {}": ([u.start_cos for u in of], "{:.2f}"),
        "seeds share {} of latents": ([u.stability for u in of], "{:.0%}"),
        "FVU still falls by {} when steps double": ([u.slope for u in of], "{:.0%}"),
    }
    facts = [text.format(known) for text, (numbers, form) in told.items() if (known := span(numbers, form))]
    what = "left their random start but are still learning"
    if all(math.isnan(u.slope) for u in of):
        what = "left their random start, but seeds have little in common and how fast FVU still fell is not known"
    if any(u.near_start for u in of):
        what = "hardly left their random start"
    return f"{what} ({', '.join(facts)})"


def warn(undertrained: Mapping[Arm, Undertrained], arms: Iterable[Arm]) -> str | None:
    """The sentence that an answer begins with, where arms that ought to be trained are not."""
    meant = [arm for arm in arms if not arm.is_held]
    flagged = [arm for arm in meant if arm in undertrained]
    if not flagged:
        return None
    who = "These SAEs"
    if len(flagged) < len(meant):
        names = ", ".join(arm.name for arm in flagged[:MOST_NAMED])
        who = f"The SAEs of {names}{f' and {len(flagged) - MOST_NAMED} further arms' * (len(flagged) > MOST_NAMED)}"
    why = reason([undertrained[arm] for arm in flagged])
    return f"{who} {why}: differences between them say little about trained SAEs ({ADVICE})."
