"""Steer numbers through a training run: coefficients and balances to a cost or a coherence, L1's or L0's to k active latents.

How much a coefficient costs, or how many latents fire under it, depends on the model, the width and the other
settings; what a comparison wants equal is the cost, the effect or the L0. All controllers integrate on the
number's logarithm, so that they correct by ratios and it stays positive. Their state is tensors on the
device, so that no step waits for a number, and a run continued from `state` repeats bit for bit.

They have hardly code in common, since hardly anything of it is equal: what is observed is a noisy cost now, of which the
cost at the end is to be foretold; or a cosine; or an L0, whose integral is bounded and which has a proportional term.
What each keeps in a checkpoint has names of its own. A base class for three lines of averaging would be longer.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

RAMP = 0.25
"""Share of the steps over which a cost gets its full say. measured, 500 steps at a rate of 4e-3: at a fixed coefficient
the cost of coactive falls by a third after that, that of sq_cos doubles."""
LIMIT = 6.0
"""How far a logarithm is moved at most, either way, a factor of 400: a cost, a coherence or an L0 that no coefficient
brings about shall not wind it up, or down to nothing."""
LARGEST_ERROR = 1.5
"""Error in a cost's logarithm beyond which it is not answered faster."""


class CostController:
    """One number, a penalty's coefficient or a matryoshka's balance, steered to a cost in FVU at the end of training.

    The cost now says what the number was a while ago. A number that has just risen is therefore held to have more
    cost to come, by its elasticity: this damps an integral that moves fast enough for the last fifth of a short run,
    in which the learning rate falls and costs move by a tenth to a quarter, either way.

    first: the number it begins at, > 0.
    target: the cost, on training batches, that the run shall end with.
    steps: the run's length.
    response: steps in which the dictionary follows the number.
    elasticity: power of the number that the cost rises with.
    unhurried: errors are answered over a tenth of the run, else over a fortieth: for a number whose cost says little of
        the end while the learning rate falls, as a balance's, which dips then and comes back.
    highest: what the number does not exceed, if that is less than a factor e^LIMIT. It falls by no more than that either:
        what a strong penalty has done may cost after it is gone, and without a penalty an arm would not be one.
    """

    def __init__(
        self,
        first: float,
        target: float,
        steps: int,
        device: str | torch.device,
        response: float = 40.0,
        elasticity: float = 1.0,
        unhurried: bool = False,
        highest: float = math.inf,
    ) -> None:
        self.target, self.elasticity, self.response = target, elasticity, response
        self.lowest, self.highest = math.log(first) - LIMIT, min(math.log(highest), math.log(first) + LIMIT)
        self.pace = max(steps / 10, 25.0) if unhurried else min(max(steps / 40, 25.0), 60.0)
        """steps in which an error is answered"""
        self.memory = max(steps / 20, 15.0) if unhurried else min(max(steps / 50, 15.0), 40.0)
        """steps over which observations are averaged"""
        self.ramp = max(1.0, RAMP * steps)
        self.log_value = torch.tensor(math.log(first), dtype=torch.float64, device=device)
        self.followed = self.log_value.clone()
        """what the number was on average while the dictionary came to what it is"""
        self.average, self.observed = (torch.zeros_like(self.log_value) for _ in range(2))
        """the cost, and how often it was observed"""

    @property
    def value(self) -> Float[Tensor, ""]:
        return self.log_value.exp()

    @torch.no_grad()
    def observe(self, cost: Float[Tensor, ""]) -> None:
        """Take the cost of one step, and move the number."""
        self.observed = self.observed + 1
        self.average = torch.lerp(self.average, cost.double(), 1 / self.observed.clamp_max(self.memory))
        error = (self.target / self.average.clamp_min(1e-3 * self.target)).log()
        error = error - self.elasticity * (self.log_value - self.followed)
        speed = (self.observed / self.ramp).clamp_max(1) / (self.elasticity * self.pace)
        moved = self.log_value + error.clamp(-LARGEST_ERROR, LARGEST_ERROR) * speed
        self.log_value = moved.clamp(self.lowest, self.highest)
        self.followed = torch.lerp(self.followed, self.log_value, 1 / self.response)

    def state(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in ("log_value", "followed", "average", "observed")}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue from a state bit for bit."""
        device = self.log_value.device
        self.log_value, self.followed, self.average, self.observed = (
            state[name].to(device, copy=True) for name in self.state()
        )


COSINE_SCALE = 0.03
"""Difference in mean nearest-neighbour cosine that moves the coefficient at full pace. measured: a factor e in
the coefficient of max_cos changes it by about .03."""


class CoherenceController:
    """The coefficient of one arm, steered to a mean nearest cosine.

    Measured, 1500 steps at 2048 latents on a residual stream, held-out rows: a target of .2 came out as .196.

    first: the coefficient it begins at, > 0. Rather too low than too high: what a strong penalty has done to a
        dictionary takes longer to undo than a run may have left (max_cos begun twenty times too high: .028).
    target: what the coherence should be.
    steps: the run's length. The coefficient moves by e per `pace` steps at most, and by e^LIMIT in all.
    """

    def __init__(self, first: float, target: float, steps: int, device: str | torch.device) -> None:
        self.target = target
        self.lowest, self.highest = math.log(first) - LIMIT, math.log(first) + LIMIT
        self.pace = max(steps / 20, 100.0)
        self.memory = max(steps / 100, 20.0)
        """steps over which observations are averaged"""
        self.log_coefficient = torch.tensor(math.log(first), dtype=torch.float64, device=device)
        self.average = torch.zeros(2, dtype=torch.float64, device=device)
        """of the observations, and the weight they have so far"""

    @property
    def value(self) -> Float[Tensor, ""]:
        return self.log_coefficient.exp()

    @property
    def mean(self) -> Float[Tensor, ""]:
        """The coherence, as it was of late; NaN before the first observation."""
        return self.average[0] / self.average[1]

    @torch.no_grad()
    def observe(self, coherence: Float[Tensor, ""], steps: int = 1) -> None:
        """Take one observation, which stands for this many steps, and move the coefficient."""
        new = torch.stack([coherence.double(), torch.ones_like(self.log_coefficient)])
        self.average = torch.lerp(self.average, new, min(1.0, steps / self.memory))
        # a cosine has the floor of random directions, which no coefficient gets below: compare differences
        error = (self.mean - self.target) / COSINE_SCALE
        moved = self.log_coefficient + error.clamp(-1, 1) * (steps / self.pace)
        self.log_coefficient = moved.clamp(self.lowest, self.highest)

    def state(self) -> dict[str, Tensor]:
        return {"log_coefficient": self.log_coefficient, "average": self.average}

    def restore(self, state: dict[str, Tensor]) -> None:
        device = self.log_coefficient.device
        self.log_coefficient, self.average = state["log_coefficient"].to(device), state["average"].to(device)


GAIN = 2.0
"""Power of L0 over its target in the coefficient, before the integral has moved."""


class SparsityController:
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
