"""L0 of each batch -> the coefficient of L1 or L0 that brings it to k.

How many latents fire under a given coefficient depends on the model, the width and the rest of the settings, so
runs are named by the L0 they should have and a controller finds the coefficient: an integrator with a proportional
part, on logarithms, so that it corrects by ratios and the coefficient stays positive. What it knows are tensors on
the device: no step waits for a number.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

GAIN = 2.0
"""Power of L0 over its target in the coefficient, before the integral has moved."""
LIMIT = 6.0
"""Largest size of the integral, a factor of 400: an L0 that no coefficient moves shall not wind it up further."""


class SparsityControl:
    """coefficient = first * exp(integral) * (average L0 / target)^GAIN, the ratio within a factor e.

    target: active latents per row; None: the coefficient stays what it was first.
    steps: length of the run. While L0 is off by the factor e, the integral moves by 1 in a fiftieth of the steps, or in
        20; L0 is averaged over a fifth of that. The coefficient that k needs falls throughout a run, so L0 stays below k
        by that slope times this pace: 1 to 2%, where twice the pace would leave 4 to 6%.
    """

    def __init__(self, target: int | None, steps: int, device: str | torch.device) -> None:
        self.target = target
        self.pace = max(steps / 50, 20.0)
        self.memory = self.pace / 5
        self.first, self.integral = (torch.zeros((), dtype=torch.float64, device=device) for _ in range(2))
        self.log_l0 = torch.full_like(self.first, math.log(target or 1))

    def begin(self, coefficient: Float[Tensor, ""] | float) -> None:
        """Set the coefficient, > 0, that the run begins at."""
        self.first.fill_(coefficient)

    @property
    def coefficient(self) -> Float[Tensor, ""]:
        return (self.first * (self.integral + GAIN * self._error()).exp()).float()

    def _error(self) -> Tensor:
        if self.target is None:
            return torch.zeros_like(self.first)
        return (self.log_l0 - math.log(self.target)).clamp(-1, 1)

    @torch.no_grad()
    def observe(self, l0: Float[Tensor, ""]) -> None:
        """Take the mean number of active latents in one batch."""
        self.log_l0 = torch.lerp(self.log_l0, l0.double().clamp_min(1e-3).log(), 1 / self.memory)
        self.integral = (self.integral + self._error() / self.pace).clamp(-LIMIT, LIMIT)

    def state(self) -> dict[str, Tensor]:
        return {"first": self.first, "integral": self.integral, "log_l0": self.log_l0}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue from a state bit for bit."""
        device = self.first.device
        self.first, self.integral, self.log_l0 = (
            state[name].to(device, copy=True) for name in ("first", "integral", "log_l0")
        )
