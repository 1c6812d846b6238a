"""The nested prefixes of a matryoshka SAE through training: how wide they are at a step, and what each weighs in the loss.

A *balance* B gives prefix l of n the weight B^(n-1-l), the whole dictionary 1; weights are normalised to sum 1
(balanced matryoshka, Chanin et al. 2025, 2505.11756). Balance 0 is batchtopk and 1 the plain mean of 2503.17547:
between them lie the SAEs that trade reconstruction for general latents by degrees. Where an arm has a cost in FVU
instead of a penalty, its balance is steered to that cost.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lm.penalties.arms import MOST_BALANCE, Arm
from sae_lm.penalties.controllers import CostController
from sae_lm.penalties.term import SETTLING_SHARE
from sae_lm.runtime.device import to_device
from sae_lm.runtime.seeds import derive
from sae_lm.training.recipe import TrainingRecipe

NARROWEST = 64
"""Latents of the narrowest drawn prefix, or a 32nd of d_sae where that is less, as the fixed widths begin."""

FIRST_BALANCE = 0.25
"""Where a steered balance begins. measured, 500 steps at a rate of 4e-3: begun at 1, a target of .005 ends at .006."""
RESPONSE = 100.0
"""Steps in which a dictionary follows its balance. measured: 109, of sixteen steered runs on SmolLM2."""
ELASTICITY = 1.5
"""Power of the balance that its cost rises with. measured in training, at the end: .0038 at .3 and .0072 at .45 on SmolLM2,
.0042 at .25 and .0110 at .5 on the demo's store; 1.6 and 1.4.

At a fixed balance the cost is about the same from the 250th step on, until the learning rate falls. Then it dips, on
SmolLM2 to a half, and comes back: .0036 and .0083 before it there, .0035 and .0100 on the demo's store. Answered at once,
the balance went up and down by a factor of two, and ended 10 to 20% too high; held in the decay, 25% too low on SmolLM2."""


def prefix_weights(balance: Float[Tensor, ""], slices: int) -> Float[Tensor, " slices"]:
    """balance^(slices-1-l) for prefix l, over their sum."""
    weights = balance ** torch.arange(slices - 1, -1, -1, device=balance.device)
    return (weights / weights.sum()).float()


def drawn_widths(count: int, d_sae: int, generator: torch.Generator) -> Int[Tensor, " slices"]:
    """Log-uniform, ascending; two may be equal. The last is d_sae."""
    lowest = max(1, min(NARROWEST, d_sae // 32))
    share = torch.rand(count, dtype=torch.float64, generator=generator)
    drawn = (lowest * (share * math.log(d_sae / lowest)).exp()).long().sort().values
    return torch.cat([drawn, torch.tensor([d_sae])])


class Prefixes:
    """One arm's nested prefixes; but for matryoshka there is one, the whole dictionary.

    `widths` and `weights` are those of the step that `draw` was called for. None: one prefix; all weigh alike.
    """

    def __init__(self, arm: Arm, recipe: TrainingRecipe, seed: int, device: str | torch.device) -> None:
        self.widths: Int[Tensor, " slices"] | None = None
        self.controller: CostController | None = None
        self._fixed_weights: Float[Tensor, " slices"] | None = None
        self.drawn, self.d_sae, self.settled = 0, recipe.d_sae, round(SETTLING_SHARE * recipe.steps)
        if (arm.arch or recipe.arch) != "matryoshka" or arm.balance == 0:
            return  # at balance 0 nothing narrower counts: batchtopk, bit for bit
        self.widths = torch.tensor(arm.widths or recipe.nested_widths, device=device)
        if arm.prefixes:
            self.drawn = arm.prefixes
            # every member of a team draws the same, from a generator of its own: no other draw depends on it
            self.generator = torch.Generator().manual_seed(derive("prefixes", seed))
        if arm.steers_balance and arm.fvu is not None:
            self.controller = CostController(
                FIRST_BALANCE, arm.fvu, recipe.steps, device, RESPONSE, ELASTICITY, unhurried=True, highest=MOST_BALANCE
            )
        elif arm.balance != 1:
            slices = self.drawn + 1 if self.drawn else len(self.widths)
            self._fixed_weights = prefix_weights(torch.tensor(arm.balance, dtype=torch.float64, device=device), slices)

    def draw(self) -> None:
        """Take this step's widths, where they are drawn."""
        if not self.drawn or self.widths is None:
            return
        self.widths = to_device(drawn_widths(self.drawn, self.d_sae, self.generator), self.widths.device)

    @property
    def weights(self) -> Float[Tensor, " slices"] | None:
        """Of the prefixes' errors in the loss."""
        if self.controller is None or self.widths is None:
            return self._fixed_weights
        return prefix_weights(self.controller.value, len(self.widths))

    def observe(self, step: int, excess: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """As PenaltyTerm's, for a balance that is steered; returns the balance."""
        assert self.controller is not None
        if step >= self.settled:
            self.controller.observe(excess)
        return self.controller.value

    def state(self) -> dict[str, Tensor]:
        """What is kept between steps, by name; for `restore`."""
        state = {"draws": self.generator.get_state()} if self.drawn else {}
        if self.controller is not None:
            state |= {f"controller.{name}": value for name, value in self.controller.state().items()}
        return state

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue from a state bit for bit."""
        if self.drawn:
            self.generator.set_state(state["draws"].cpu())
        if self.controller is not None:
            self.controller.restore({name.removeprefix("controller."): value for name, value in state.items()})
