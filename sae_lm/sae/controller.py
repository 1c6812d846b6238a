"""a measured cost or coherence -> the coefficient that brings it to its target.

How much a coefficient costs depends on the model, the width and the rest of the settings; what a comparison
wants equal is the cost, or the effect. The controller is an integrator on the coefficient's logarithm: while
the measured quantity is off its target, the coefficient moves by a factor per step, the further off the
faster, up to a limit. All it knows is kept as tensors on the device and computed in float64, so it waits for
no transfer and a run continued from `state` repeats bit for bit.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

COSINE_SCALE = 0.03
"""Difference in mean nearest-neighbour cosine that moves the coefficient at full pace. measured: a factor e in
the coefficient of max_cos changes it by about .03."""


class Controller:
    """The coefficient of one arm.

    Measured, 1500 steps at 2048 latents on a residual stream, held-out rows: a target of .005 FVU came out as .0043
    (max_cos) and .0049 (coactive, begun ten times too low), one of .2 mean nearest cosine as .196.

    first: the coefficient it begins at, > 0. Rather too low than too high: what a strong penalty has done to a
        dictionary takes longer to undo than a run may have left (max_cos begun twenty times too high: .028).
    target: what the observed quantity should be.
    rises: whether the quantity rises with the coefficient (the cost in FVU) or falls (the coherence).
    steps: the run's length. The coefficient moves by e per `pace` steps at most.
    """

    def __init__(self, first: float, target: float, rises: bool, steps: int, device: str | torch.device) -> None:
        self.target, self.rises = target, rises
        self.pace = max(steps / 20, 100.0)
        self.memory = max(steps / 100, 20.0)
        """steps over which observations are averaged"""
        self.log_coefficient = torch.tensor(math.log(first), dtype=torch.float64, device=device)
        self.average = torch.zeros(2, dtype=torch.float64, device=device)
        """of the observations, and the weight they have so far"""

    @property
    def coefficient(self) -> Float[Tensor, ""]:
        return self.log_coefficient.exp()

    @torch.no_grad()
    def observe(self, quantity: Float[Tensor, ""], steps: int = 1) -> None:
        """Take one observation, which stands for this many steps, and move the coefficient."""
        new = torch.stack([quantity.double(), torch.ones_like(self.log_coefficient)])
        self.average = torch.lerp(self.average, new, min(1.0, steps / self.memory))
        seen = self.average[0] / self.average[1]
        if self.rises:  # a cost may be anything from far below the target to many times it: compare ratios
            error = (self.target / seen.clamp_min(self.target * 1e-3)).log()
        else:  # a cosine has the floor of random directions, which no coefficient gets below: compare differences
            error = (seen - self.target) / COSINE_SCALE
        self.log_coefficient = self.log_coefficient + error.clamp(-1, 1) * (steps / self.pace)

    def state(self) -> dict[str, Tensor]:
        return {"log_coefficient": self.log_coefficient, "average": self.average}

    def restore(self, state: dict[str, Tensor]) -> None:
        device = self.log_coefficient.device
        self.log_coefficient, self.average = state["log_coefficient"].to(device), state["average"].to(device)
