"""One arm's penalty through a training run: when it acts, its coefficient, and what is kept between steps."""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lm.penalties.align import align
from sae_lm.penalties.arms import Arm
from sae_lm.penalties.c2r import activation_norms, activation_pull, c2r
from sae_lm.penalties.coactive import coactive
from sae_lm.penalties.controllers import CoherenceController, CostController
from sae_lm.penalties.max_cos import max_cos
from sae_lm.penalties.pairwise import abs_cos, freq_cos, sq_cos
from sae_lm.penalties.silent import NEAREST, silent
from sae_lm.sae.nearest import NearestRows, coherence
from sae_lm.sae.sparse import Codes

SETTLING_SHARE = 0.05
"""Share of the steps after the penalty's start in which a controller only watches: cost and coherence of a
dictionary that has just begun to learn say nothing about the end."""
SAMPLED_ROWS = 384
"""Rows at least, and a 256th of them, that abs_cos compares all with at one time."""
FRAME_ROWS = 2048
"""Rows at least, and a quarter of them, that sq_cos and freq_cos compare all with at one time."""
SEARCHED_ROWS = 384
"""Rows at least, and a 64th of them, among which max_cos searches for the nearest at one time."""
SAMPLED_PAIRS = 400_000
"""Pairs of active latents that coactive compares at one time: 390 tokens of 32."""
COHERENCE_ROWS = 256
"""Rows whose nearest neighbours a controller of the coherence looks at, each time."""


@runtime_checkable
class PenaltySettings(Protocol):
    """What a penalty has to know of the training recipe, for arms that do not say otherwise."""

    @property
    def steps(self) -> int: ...
    @property
    def d_sae(self) -> int: ...
    @property
    def penalty_every(self) -> int: ...
    @property
    def penalty_start(self) -> float: ...
    @property
    def penalty_warm_up(self) -> float: ...
    @property
    def penalty_on(self) -> str: ...
    @property
    def matmul_dtype(self) -> torch.dtype: ...


def warm_up_share(step: int, length: float) -> float:
    """Share of its full value that a number has at a step, when it rises linearly over ``length`` steps from 0 on."""
    return min(1.0, (step + 1) / max(1.0, length))


def first_step(steps: int, penalty_start: float, arm: Arm) -> int:
    """The first of the steps at which an arm's penalty acts: of one that asks which latent fires more often not the
    very first, before which none has fired."""
    ranks = arm.anchored or arm.penalty in ("freq_cos", "silent")
    return max(round(penalty_start * steps), int(ranks))


class PenaltyTerm:
    """One arm's penalty through a run.

    Its gradient changes little from step to step, so it is computed every few steps and added at each of them.
    (OrtSAE's "modified" schedule adds it n-fold at every n-th: Adam then sees bursts, and the same cosines cost
    more FVU. differs, on purpose.) measured: 2048 latents on a residual stream, 800 steps, every step / every
    tenth: max_cos FVU .1954 / .1957 at a nearest cosine of .168 / .171, none .1915 at .293.

    By default, computing it costs about the same share of a step at any width: abs_cos, sq_cos and freq_cos compare
    all rows with a sample, coactive takes a sample of tokens (all without bias), max_cos, c2r and silent
    search a part of the dictionary for nearer neighbours. An arm with ``exact`` computes the whole gradient, in float32.

    At every step that `is_due`, call `refresh` and `add_to`; if the arm has a cost, call `observe` after every
    step. Without a coefficient no step is due and nothing is drawn.
    """

    def __init__(self, arm: Arm, recipe: PenaltySettings, device: str) -> None:
        self.arm = arm
        self.on = "decoder" if arm.penalty == "align" else arm.on or recipe.penalty_on
        self.every = arm.every or recipe.penalty_every
        self.first = first_step(recipe.steps, recipe.penalty_start if arm.start is None else arm.start, arm)
        self.warm_up_steps = (recipe.penalty_warm_up if arm.warm_up is None else arm.warm_up) * recipe.steps
        self.settled = self.first + round(SETTLING_SHARE * recipe.steps)
        """the first step at which a controller looks"""
        self.matmul_dtype = torch.float32 if arm.exact else recipe.matmul_dtype
        """of products that select or are sums of many terms; cosines that count are float32"""
        self.value: Tensor | None = None
        """the penalty when its gradient was last computed"""
        self.cached_gradient: Tensor | None = None
        """that gradient, for the rows of ``on``"""
        self.also_cached: dict[str, Tensor] = {}
        """the rest of it: "encoder" of align, for the encoder's rows, and "norms" of c2r, for `activation_norms`"""
        self.steered: dict[str, Tensor] = {}
        """where a controller of the coherence is: the ``coefficient``, and the ``coherence`` once it has looked"""
        self.neighbours: NearestRows | None = None
        if arm.penalty in ("max_cos", "c2r", "silent"):
            parts = 1 if arm.exact else -(-recipe.d_sae // max(SEARCHED_ROWS, recipe.d_sae // 64))
            # of few parts two of the nearest often lie in one
            per_part = 1 if arm.penalty != "silent" else NEAREST if parts == 1 else -(-2 * NEAREST // parts)
            ranked = arm.anchored or arm.penalty == "silent"
            self.neighbours = NearestRows(parts, ranked, self.matmul_dtype, per_part)
        self.controller: CostController | CoherenceController | None = None
        if arm.fvu is not None and not arm.steers_balance:
            self.controller = CostController(arm.coefficient, arm.fvu, recipe.steps, device)
        elif arm.coherence is not None:
            self.controller = CoherenceController(arm.coefficient, arm.coherence, recipe.steps, device)

    @property
    def needs_codes(self) -> bool:
        return self.arm.anchored or self.arm.penalty in ("coactive", "freq_cos", "c2r", "silent")

    @property
    def pulls_activations(self) -> bool:
        """Whether its gradient is one for activations too."""
        return self.arm.penalty == "c2r"

    def pulls(self, whose: str) -> bool:
        """Whether its gradient is one for the ``decoder`` or the ``encoder``."""
        return whose == self.on or self.arm.penalty == "align"

    def is_due(self, step: int) -> bool:
        """Whether the penalty acts at this step."""
        return self.arm.coefficient > 0 and step >= self.first

    def _is_refresh_due(self, step: int) -> bool:
        """Whether the gradient is computed at this step, and not the cached one used."""
        return self.cached_gradient is None or (step - self.first) % self.every == 0

    def reads_codes(self, step: int) -> bool:
        """Whether `refresh` looks at the batch's codes at this step."""
        return self.needs_codes and self._is_refresh_due(step)

    @torch.no_grad()
    def refresh(
        self,
        step: int,
        rows: Float[Tensor, "d_sae d_in"],
        generator: torch.Generator,
        codes: Codes | None = None,
        encoder: Float[Tensor, "d_sae d_in"] | None = None,
    ) -> bool:
        """At a step that `is_due`, compute the gradient for the rows again every few steps; returns whether this is one.

        generator: the arm's own generator, from which nothing else draws. codes: this batch's, if it `reads_codes`.
        encoder: for align, whose rows are the decoder's.
        """
        if not self._is_refresh_due(step):
            return False
        also: dict[str, Tensor] = {}
        if self.arm.penalty == "align":
            assert encoder is not None
            also["encoder"] = encoder.detach().requires_grad_()
        if self.pulls_activations:
            assert codes is not None
            also["norms"] = activation_norms(codes).requires_grad_()
        with torch.enable_grad():
            rows = rows.detach().requires_grad_()
            value = self._penalty(rows, generator, codes, also)
            self.cached_gradient, *rest = torch.autograd.grad(value, (rows, *also.values()))
        self.also_cached = dict(zip(also, rest, strict=True))
        self.value = value.detach()
        if isinstance(self.controller, CoherenceController) and step >= self.settled:
            self.controller.observe(coherence(rows.detach(), generator, COHERENCE_ROWS, self.matmul_dtype), self.every)
            self.steered["coherence"] = self.controller.mean
        self.steered["coefficient"] = torch.as_tensor(self.coefficient)
        return True

    @property
    def cached(self) -> list[Tensor]:
        """All that `refresh` computed last; a team's members, who each compute it, make them equal."""
        return [] if self.cached_gradient is None else [self.cached_gradient, *self.also_cached.values()]

    @torch.no_grad()
    def add_to(self, gradient: Float[Tensor, "*rows"], step: int, what: str | None = None) -> None:
        """Add coefficient * the cached gradient to that of all rows.

        gradient: [d_sae, d_in]; of norms [d_sae]. what: of the rows of ``on``, or ``norms`` or ``encoder`` where these
        are others.
        """
        cached = self.also_cached.get(what, self.cached_gradient) if what else self.cached_gradient
        assert cached is not None
        share = warm_up_share(step - self.first, self.warm_up_steps)
        if self.controller is None:
            gradient.add_(cached, alpha=self.arm.coefficient * share)
        else:  # a number on the device, which is not waited for
            gradient.addcmul_(cached, (self.controller.value * share).to(gradient.dtype))

    def activation_factor(self, step: int, squares: Float[Tensor, " d_sae"], batch: int) -> Float[Tensor, " d_sae"]:
        """What is to be added to the gradient for each activation, over that activation, if it `pulls_activations`.

        squares: sum of each latent's squared activations over this batch of so many rows.
        """
        by_norm = torch.zeros_like(squares)
        self.add_to(by_norm, step, what="norms")
        return activation_pull(by_norm, squares, batch)

    def _penalty(
        self, rows: Tensor, generator: torch.Generator, codes: Codes | None, also: dict[str, Tensor]
    ) -> Tensor:
        arm, m = self.arm, len(rows)
        if arm.penalty == "align":
            return align(rows, encoder=also["encoder"])
        if arm.penalty == "silent":
            return silent(rows, codes=codes, neighbours=self.neighbours)
        if arm.penalty == "c2r":
            return c2r(
                rows,
                generator,
                codes,
                norms=also["norms"],
                anchored=arm.anchored,
                chunk=arm.chunk,
                neighbours=self.neighbours,
                matmul_dtype=self.matmul_dtype,
            )
        if arm.penalty == "max_cos":
            return max_cos(
                rows,
                generator,
                codes,
                margin=arm.margin,
                anchored=arm.anchored,
                chunk=arm.chunk,
                neighbours=self.neighbours,
                matmul_dtype=self.matmul_dtype,
            )
        if arm.penalty == "coactive":
            return coactive(rows, generator, codes, anchored=arm.anchored, sample=None if arm.exact else SAMPLED_PAIRS)
        if arm.penalty == "abs_cos":
            sample = None if arm.exact else max(SAMPLED_ROWS, m // 256)
            return abs_cos(rows, generator, margin=arm.margin, sample=sample, matmul_dtype=self.matmul_dtype)
        sample = None if arm.exact else max(FRAME_ROWS, m // 4)
        return {"sq_cos": sq_cos, "freq_cos": freq_cos}[arm.penalty](
            rows, generator, codes, sample=sample, matmul_dtype=self.matmul_dtype
        )

    @property
    def coefficient(self) -> float | Tensor:
        """As it is now; a tensor where it is steered."""
        return self.arm.coefficient if self.controller is None else self.controller.value.float()

    def observe(self, step: int, excess: Float[Tensor, ""]) -> Tensor:
        """excess: FVU of this step's batch less the baseline's on the same batch, over all ranks' rows. Returns the
        coefficient, as it then is."""
        if isinstance(self.controller, CostController) and step >= self.settled:
            self.controller.observe(excess)
        return torch.as_tensor(self.coefficient)

    def state(self) -> dict[str, Tensor]:
        """Everything kept between steps besides the generator, by name; for `restore`."""
        state: dict[str, Tensor] = {}
        if self.cached_gradient is not None and self.value is not None:
            state |= {"held": self.cached_gradient, "value": self.value}
        state |= {f"held_{name}": gradient for name, gradient in self.also_cached.items()}
        for name, part in self._parts.items():
            state |= {f"{name}.{key}": value for key, value in part.state().items()}
        return state

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue from a state bit for bit; its tensors are on the device of the rows."""
        self.cached_gradient, self.value = state.get("held"), state.get("value")
        self.also_cached = {name: state[f"held_{name}"] for name in ("encoder", "norms") if f"held_{name}" in state}
        for name, part in self._parts.items():
            part.restore({k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(f"{name}.")})

    @property
    def _parts(self) -> dict[str, NearestRows | CostController | CoherenceController]:
        parts = {"neighbours": self.neighbours, "controller": self.controller}
        return {name: part for name, part in parts.items() if part is not None}
