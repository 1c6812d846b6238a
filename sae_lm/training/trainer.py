"""Train one SAE step by step: initialisation, loss, penalty, optimizer step, counts of dead latents, checkpoint state.

Activations come scaled so that predicting their mean costs 1 in expectation; the loss is then a fraction of variance
unexplained, and a penalty's coefficient means the same on every model. The scale is folded back into biases and
thresholds when the SAE is made. The five architectures differ in which latents fire, which is `_code`, and in the
shape of what is saved, which is `finish`; the rest is one path.
"""

from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lm.errors import SaeError
from sae_lm.penalties.arms import Arm
from sae_lm.penalties.controllers import SparsityController
from sae_lm.penalties.term import PenaltyTerm, warm_up_share
from sae_lm.runtime.distributed import SINGLE, Team
from sae_lm.runtime.seeds import derive
from sae_lm.runtime.timing import StepTimer
from sae_lm.sae.model import SAE, SaeConfig
from sae_lm.sae.nearest import nearest_quantiles
from sae_lm.sae.sparse import SparseCode
from sae_lm.training.convergence import every_nth, start_cosines
from sae_lm.training.dead_latents import RELU_ENCODER_NORM, auxk, dead_sae, lower_thresholds, resample
from sae_lm.training.objective import BatchResult, batch_result
from sae_lm.training.optimizer import make_optimizer
from sae_lm.training.prefixes import Prefixes
from sae_lm.training.recipe import TrainingRecipe
from sae_lm.training.schedules import firing_weight, threshold_weight
from sae_lm.training.selection import above_zero, largest_of_batch, largest_of_rows
from sae_lm.training.start import first_weights, frozen, keep_near

DEAD_EVERY = 16
"""Steps between looks at which latents are dead: how many there are is known to the host, which waits for it."""
DENSE_FREQUENCY = 0.1
"""Share of rows above which a latent counts as dense."""


class ArmTraining:
    """One SAE in training. Weights of one seed start equal in every arm, whatever its architecture.

    relu and jumprelu start sparse: at the first batch, a bias below zero (relu) or a threshold (jumprelu) that k
    latents per row are above. measured on relu, 1000 steps of 1024 rows at 2048 latents, k 16: FVU .26, where biases
    that start at zero give .35.

    In a team every member takes its slice of each batch, and all keep the same weights: what depends on rows (loss,
    gradients, the batch's largest, counts) is taken over the slices of all, what depends on weights alone by each.
    """

    def __init__(
        self,
        arm: Arm,
        seed: int,
        recipe: TrainingRecipe,
        start: Float[Tensor, " d_in"],
        device: str,
        team: Team = SINGLE,
        whitening: Float[Tensor, "d_in d_in"] | None = None,
    ) -> None:
        """start: the initial b_dec, the mean activation in scaled units. whitening: sae_lm.training.whitening."""
        d_sae = recipe.d_sae
        self.team, self.timer, self.rows_taken = team, StepTimer(device), 0
        self.arm, self.seed, self.recipe = arm, seed, recipe
        self.arch, self.k = arm.arch or recipe.arch, arm.k or recipe.k
        self.prefixes = Prefixes(arm, recipe, seed, device)
        self.weights = first_weights(self.arch, seed, d_sae, start, device)
        self.logged = every_nth(d_sae)
        self.random_start = self.weights.W_dec[self.logged].clone()
        self.named = {
            name: weight
            for name, weight in self.weights._asdict().items()
            if weight is not None and name not in frozen(arm)
        }
        self.first_rows = self.weights.W_dec.clone() if isinstance(arm.decoder, float) else None
        """where rows that are held near their start started; drawn from the seed, so in no checkpoint"""
        self.optimizer = make_optimizer(recipe.optimizer, self.named)
        self.whitening = None
        if whitening is not None and "encoder" in self.named:
            self.whitening = whitening.to(device, recipe.matmul_dtype)
        self.rows_since_fired = torch.zeros(d_sae, dtype=torch.long, device=device)
        self.firing_frequency = torch.zeros(d_sae, device=device)
        self.dead = torch.zeros(0, dtype=torch.long, device=device)
        self.threshold = torch.zeros((), device=device)
        """batchtopk, matryoshka: moving average of the smallest selected; relu: how far below 0 the biases started"""
        self.control = SparsityController(None if recipe.sparsity_coefficient else self.k, recipe.steps, device)
        self.penalty_term = PenaltyTerm(arm, recipe, device)
        # generators of their own, so that no other draw depends on the arm
        self.generators = {name: torch.Generator().manual_seed(derive(name, seed)) for name in ("penalty", "resample")}
        self.parts: dict[str, Tensor] = {}
        """newest parts of the loss, L0 and coefficients, as `log` shows them"""

    @property
    def W_enc(self) -> Float[Tensor, "d_in d_sae"]:
        return self.weights.encoder.T

    @property
    def W_dec(self) -> Float[Tensor, "d_sae d_in"]:
        return self.weights.W_dec

    @torch.no_grad()
    def step(self, x: Float[Tensor, "batch d_in"], step: int) -> None:
        """One optimizer step on one batch (a team's member: on its slice) of scaled activations."""
        mark = self.timer.mark
        self.timer.begin()
        centred = x - self.weights.b_dec
        if step == 0:
            self._start_sparse(centred)
        whitened = self._whitened(centred)
        self._look_for_dead(step)
        self.prefixes.draw()
        code = self._code(centred, step)
        mark("selection")
        sparsity = self._sparsity(step)
        due, pull = self.penalty_term.is_due(step), None
        if due and self.penalty_term.pulls_activations:
            pull = partial(self._pull_activations, code, step)
        result = batch_result(
            centred,
            code,
            self.weights,
            sparsity,
            self.recipe.bandwidth,
            self.prefixes.weights,
            pull,
            self._only_rows(due),
            whitened,
        )
        mark("sparse forward and backward")
        self._revive(result, centred, whitened, step)
        mark("dead latents")
        if due and pull is None:
            self._apply_penalty(code, result.values, step)
            mark("penalty")
        self.team.average(*(getattr(result.gradient, name) for name in self.named))
        self._count(result, code, len(x), step)
        mark("exchange" if self.team.size > 1 else "sparse forward and backward")
        self._update(result, step, due)
        if sparsity is not None:
            self.control.observe(self.parts["l0"])
            self.parts["sparsity"] = sparsity
        mark("optimizer")

    def _whitened(self, centred: Tensor) -> Tensor | None:
        if self.whitening is None:
            return None
        return (centred.to(self.whitening.dtype) @ self.whitening).to(centred.dtype)

    def _apply_penalty(self, code: SparseCode, values: Tensor, step: int) -> None:
        """Compute the penalty's gradient at the steps that do; `_update` adds it."""
        term = self.penalty_term
        rows = self.weights.W_dec if term.on == "decoder" else self.weights.encoder
        codes = code.of_team(values, self.firing_frequency, self.team) if term.reads_codes(step) else None
        if term.refresh(step, rows, self.generators["penalty"], codes, self.weights.encoder):
            assert term.value is not None
            self.team.average(*term.cached)  # each member computed it: rounding must not drive them apart
            self.parts["penalty"] = term.value
        if self.arm.coherence is not None:
            self.parts |= term.steered

    def _pull_activations(self, code: SparseCode, step: int, values: Tensor) -> Tensor:
        """What the penalty, computed now that the code's values are known, adds to the gradient for them."""
        self.timer.mark("sparse forward and backward")
        self._apply_penalty(code, values, step)
        squares, members = code.sums(values.square()), self.team.size
        self.team.total(squares)
        factor = self.penalty_term.activation_factor(step, squares, code.batch * members)
        factor *= members  # their gradients are averaged, as those of a mean over rows are
        self.timer.mark("penalty")
        return factor[code.latent] * values

    def _start_sparse(self, centred: Tensor) -> None:
        """The first thresholds and coefficient of relu and jumprelu, from the first batch."""
        if self.arch not in ("relu", "jumprelu"):
            return
        w = self.weights
        count = self.k * len(centred) * self.team.size
        _, cut = largest_of_batch(centred, w.encoder, w.b_enc, count, self.recipe.matmul_dtype, self.team)
        cut = cut.clamp_min(1e-6)
        if self.arch == "relu":
            w.b_enc.sub_(cut)
            self.threshold = cut
            first = 2 * cut  # the L1 that shrinks activations by this much
        else:
            assert w.log_threshold is not None
            w.log_threshold.add_(cut.log())
            # a latent at its threshold, were it alone, would take cut^2 off the squared error
            first = cut.square() / 4  # measured: runs end at a third to a seventh of that
        self.control.begin(self.recipe.sparsity_coefficient or first)

    def _code(self, centred: Tensor, step: int) -> SparseCode:
        """Where the code of this batch is not 0 (or could be, within the bandwidth of a threshold)."""
        w, batch, matmul_dtype, mark = self.weights, len(centred), self.recipe.matmul_dtype, self.timer.mark
        if self.arch == "topk":
            positions = largest_of_rows(centred, w.encoder, w.b_enc, self.k, matmul_dtype, mark)
        elif self.arch == "relu":
            positions = above_zero(centred, w.encoder, w.b_enc, matmul_dtype, mark)
        elif w.log_threshold is not None:
            bias = w.b_enc - w.log_threshold.exp() + self.recipe.bandwidth / 2
            positions = above_zero(centred, w.encoder, bias, matmul_dtype, mark)
        else:
            count = self.k * batch * self.team.size
            positions, smallest = largest_of_batch(centred, w.encoder, w.b_enc, count, matmul_dtype, self.team, mark)
            weight = threshold_weight(step, self.recipe.steps)
            self.threshold = torch.lerp(self.threshold, smallest.clamp_min(0), weight)
        return SparseCode(positions, batch, len(w.b_enc), self.prefixes.widths)

    def _sparsity(self, step: int) -> Tensor | None:
        """Coefficient of L1 or L0 in the loss; it rises with the learning rate."""
        if self.arch not in ("relu", "jumprelu"):
            return None
        return self.control.coefficient * warm_up_share(step, self.recipe.warm_up * self.recipe.steps)

    def _look_for_dead(self, step: int) -> None:
        if self.recipe.resamples(step) or step % DEAD_EVERY == 0:
            self.dead = (self.rows_since_fired >= self.recipe.dead_after).nonzero().flatten()
            if self.weights.log_threshold is not None:
                lower_thresholds(self.weights.log_threshold, self.dead)

    def _only_rows(self, penalised: bool) -> bool:
        """Whether this step's gradients are those of the latents that fire, which saves most where a batch is small.

        Penalties and AuxK have gradients for others too, members of a team have to exchange the same rows, and an
        accelerator would wait for the number of rows.
        """
        alone = self.team.size == 1 and self.firing_frequency.is_cpu and self.optimizer.takes_rows
        return alone and not penalised and not len(self.dead)

    def _revive(self, result: BatchResult, centred: Tensor, whitened: Tensor | None, step: int) -> None:
        """AuxK's gradient, and at its steps resampling, for the latents that are dead."""
        recipe = self.recipe
        if not len(self.dead):
            return
        if self.recipe.resamples(step):
            resample(
                torch.cat(self.team.gather(result.residual)),
                torch.cat(self.team.gather(centred)),
                self.weights,
                self.dead,
                self.generators["resample"],
                RELU_ENCODER_NORM if self.arch == "relu" else 1.0,
            )
            mine = [name for name in self.named if name != "b_dec"]
            self.optimizer.forget(mine, self.dead)
            for gradient in (*(getattr(result.gradient, name) for name in mine), *self.penalty_term.cached):
                gradient[self.dead] = 0  # they are of the rows before
            self.rows_since_fired[self.dead] = 0
            self.dead = self.dead[:0]
        elif recipe.aux_coefficient:
            shift = self.threshold if self.arch == "relu" else 0.0
            dead = dead_sae(self.weights, self.dead, recipe.matmul_dtype, shift)
            loss, gradient = auxk(result.residual, centred, dead, recipe.aux_k, self.team, whitened)
            self.parts["aux"] = loss
            for name in ("encoder", "b_enc", "W_dec"):
                whole = getattr(result.gradient, name)
                whole.index_add_(0, self.dead, getattr(gradient, name), alpha=recipe.aux_coefficient)

    @torch.no_grad()
    def _update(self, result: BatchResult, step: int, penalised: bool) -> None:
        """Add the penalty to the gradients and take an optimizer step, with rows that are held kept near their start."""
        for whose, gradient in (("decoder", result.gradient.W_dec), ("encoder", result.gradient.encoder)):
            if penalised and self.penalty_term.pulls(whose):
                self.penalty_term.add_to(gradient, step, what=whose)
        if penalised:
            self.timer.mark("penalty")
        self.optimizer.update(result.gradient, result.rows, step, self.recipe.learning_rate(step))
        if self.first_rows is not None and self.arm.decoder is not None:
            keep_near(self.weights.W_dec, self.first_rows, float(self.arm.decoder))

    @torch.no_grad()
    def _count(self, result: BatchResult, code: SparseCode, batch: int, step: int) -> None:
        """Record which latents fired (one selected at 0 did not) and the losses, both of the whole batch."""
        fired = code.sums(result.fires.to(self.firing_frequency.dtype))
        losses = {"loss": result.loss, "fvu": result.fvu}
        if "aux" in self.parts:
            losses["aux"] = self.parts["aux"]
        means = torch.stack(list(losses.values()))
        self.team.average(means)
        self.team.total(fired)
        rows = batch * self.team.size
        self.rows_taken += rows
        self.rows_since_fired = torch.where(fired > 0, 0, self.rows_since_fired + rows)
        self.firing_frequency.lerp_(fired / rows, firing_weight(step))
        self.parts |= dict(zip(losses, means, strict=True)) | {"l0": fired.sum() / rows}

    @torch.no_grad()
    def log(self, step: int) -> dict[str, Any]:
        """Figures of the last step; penalty and AuxK as of the last step that had them. Changes nothing.

        Raises SaeError when the loss, or a weight after this step, is no longer finite.
        """
        figures = {name: float(value) for name, value in self.parts.items()}
        if not all(bool(part.isfinite().all()) for part in (*self.parts.values(), *self.named.values())):
            coefficient = "the arm's coefficient, or " if self.arm.coefficient else ""
            raise SaeError(
                f"arm {self.arm.name}, seed {self.seed}: the loss or a weight became NaN or infinite by step {step}; "
                f"lower {coefficient}--lr with another --out (finished SAEs are kept)"
            )
        dead = self.rows_since_fired >= self.recipe.dead_after
        if self.arch in ("batchtopk", "matryoshka"):
            figures["threshold"] = float(self.threshold)
        return {
            "arm": self.arm.name,
            "seed": self.seed,
            "step": step,
            **figures,
            "dead": int(dead.sum()),
            "dense": int((self.firing_frequency > DENSE_FREQUENCY).sum()),
            **nearest_quantiles(self.W_dec[~dead]),
            **start_cosines(
                self.W_dec[self.logged],
                self.weights.encoder[self.logged],
                self.random_start,
                ~dead[self.logged],
            ),
            "lr": self.recipe.learning_rate(step),
        }

    def pace(self) -> dict[str, float]:
        """Of all steps so far in this process: rows per second of this arm's own time, the penalty's share of that."""
        seconds = sum(self.timer.seconds.values())
        if not seconds:
            return {}
        return {
            "rows_per_second": self.rows_taken / seconds,
            "penalty_share": self.timer.seconds.get("penalty", 0.0) / seconds,
        }

    def state(self) -> dict[str, Tensor]:
        """Everything that the next steps depend on, by name; for `restore`.

        The tensors are the arm's own, not copies: write or clone them before the next step. Generators are their
        states as uint8. Nothing else is kept: the schedules depend on the step alone.
        """
        tensors = {f"weights.{name}": weight.detach() for name, weight in self.named.items()}
        tensors |= self.optimizer.state()
        tensors |= {name: getattr(self, attribute) for name, attribute in CHECKPOINT_ATTRIBUTES.items()}
        tensors |= {f"draws.{name}": generator.get_state() for name, generator in self.generators.items()}
        tensors |= {f"control.{name}": value for name, value in self.control.state().items()}
        tensors |= {f"pressure.{name}": value for name, value in self.penalty_term.state().items()}
        tensors |= {f"prefixes.{name}": value for name, value in self.prefixes.state().items()}
        return tensors | {f"parts.{name}": value.detach() for name, value in self.parts.items()}

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue from the state of an arm made with the same arguments; further steps repeat bit for bit."""
        device = self.firing_frequency.device
        state = {name: value.to(device) for name, value in state.items()}  # as they are read from disk they are not
        parts: dict[str, dict[str, Tensor]] = {}
        for name, value in state.items():
            first, _, rest = name.partition(".")
            parts.setdefault(first, {})[rest] = value
        for name, weight in self.named.items():
            weight.copy_(parts["weights"][name])
        self.optimizer.restore(state)
        for name, attribute in CHECKPOINT_ATTRIBUTES.items():
            setattr(self, attribute, state[name].to(device, copy=True))
        for name, generator in self.generators.items():
            generator.set_state(parts["draws"][name].cpu())
        self.control.restore(parts["control"])
        self.penalty_term.restore(parts.get("pressure", {}))
        self.prefixes.restore(parts.get("prefixes", {}))
        self.parts = {name: value.to(device, copy=True) for name, value in parts.get("parts", {}).items()}

    @torch.no_grad()
    def finish(self, scale: float, metadata: dict[str, Any]) -> SAE:
        """The trained SAE for raw activations: with x' = x / scale, biases and thresholds take the factor scale.

        relu is saved as `standard`, topk as `topk`, the others as `jumprelu`, as SAELens 6 does.
        """
        w = self.weights
        weights = {"W_enc": self.W_enc, "b_enc": w.b_enc * scale, "W_dec": w.W_dec, "b_dec": w.b_dec * scale}
        architecture = {"relu": "standard", "topk": "topk"}.get(self.arch, "jumprelu")
        if w.log_threshold is not None:
            weights["threshold"] = w.log_threshold.exp() * scale
        elif architecture == "jumprelu":
            weights["threshold"] = self.threshold.expand_as(w.b_enc) * scale
        config = SaeConfig(
            architecture=architecture,
            d_in=len(w.b_dec),
            d_sae=len(w.b_enc),
            k=self.k if architecture == "topk" else None,
            metadata=metadata,
        )
        return SAE(config, {name: value.detach().cpu() for name, value in weights.items()})


CHECKPOINT_ATTRIBUTES = {
    "rows_since_fired": "rows_since_fired",
    "rate": "firing_frequency",
    "dead": "dead",
    "threshold": "threshold",
}
"""Name in a checkpoint -> attribute of an arm: tensors that change from step to step."""
