"""Optimizers: each latent's row moves against its gradient, over that row's root mean square gradient; Adam beside it.

Both take the decoder's gradient less its part along each row, and leave decoder rows at unit norm.
"""

from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Int
from torch import Tensor

from sae_lm.training.objective import Weights

NEWEST = 0.01
"""Weight of the newest gradient in a row's mean square, and before the hundredth the plain mean."""
ENCODER_SHARE = 0.5
"""Learning rate of the encoder in that of the decoder."""
TINY = 1e-9
"""Smallest root mean square that a gradient is divided by, far below that of a latent that fires once in a batch. What
rounding leaves of a gradient along a decoder row is smaller yet, and so is not blown up to a whole step."""
MOST = 5.0
"""Root mean squares that a gradient counts at most: attention sinks, 100 times as long as other rows, come by."""
PIECE = 2048
"""Rows that are updated at a time, so that they stay in a processor's cache. measured at 8192 x 512 on two cores: both
matrices 7.3 ms, with 512 rows 7.8, all at once 10.1, Adam 13.1; at 2048 x 256 .7, 1.4, .7 and 1.0."""
THRESHOLD_LR = 30.0
"""Learning rate of JumpReLU's log threshold, in those of the weights. A log threshold moves by about one learning rate
a step, and thresholds must halve within the first hundreds of steps. measured on 1000 steps, k 32: with 1, L0
does not come near k; with 10 it swings between 17 and 51 before it does; with 100 a tenth of the latents die."""
THRESHOLD_STEP = 0.05
"""... and at most this: a threshold that leaps out of its latent's reach has no gradient to come back by."""
CLIP_NORM = 1.0
"""Largest gradient norm of a step of Adam on all weights together."""
BETAS = (0.9, 0.999)
"""Adam's memory of gradients and their squares, as all of the field has it."""


class RowRms:
    """RMSprop with one mean square for each latent's row, taken at the steps at which the latent fires; no momentum.

    Biases and thresholds, which are small, keep Adam.

    Adam keeps two numbers per weight, this one per row: half the memory of training, and less to read at each step.
    A row without a gradient stays what it is to the bit, so that a small batch moves only the latents that fired.

    A mean over all steps would be small for a latent that fires rarely. A penalty, whose gradient comes at every step,
    would be divided by that small number, and weigh more against the error the rarer the latent. Here both are divided
    by the same number, whatever the latent's frequency.
    """

    takes_rows = True
    """Whether the gradient may be that of some rows alone."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.rows = {name: weight for name, weight in weights.items() if weight.ndim == 2}
        self.vectors = {name: weight for name, weight in weights.items() if weight.ndim == 1}
        self.adam = _make_adam(self.vectors)
        self.mean_square = {name: weight.new_zeros(len(weight)) for name, weight in self.rows.items()}
        """name -> [d_sae]"""
        self.events = {name: weight.new_zeros(len(weight)) for name, weight in self.rows.items()}
        """name -> [d_sae]: gradients that are in the mean square"""

    @torch.no_grad()
    def update(self, gradient: Weights, rows: Int[Tensor, " n"] | None, step: int, lr: float) -> None:
        """One step. rows: which latents the gradients of encoder and W_dec are of, if not of all; they are overwritten."""
        fired = gradient.b_enc != 0  # of the error or AuxK; penalties have none for biases
        _adam_step(self.adam, self.vectors, gradient, lr, self._clipped_norms(gradient))
        for name, weight in self.rows.items():
            rate = lr * (ENCODER_SHARE if name == "encoder" else 1.0)
            for part, which in _pieces(getattr(gradient, name), rows, weight.is_cpu):
                moved = weight[which] if isinstance(which, slice) else weight.index_select(0, which)  # a view or a copy
                if name == "W_dec":
                    part.addcmul_(moved, torch.linalg.vecdot(part, moved)[:, None], value=-1)
                square = torch.linalg.vector_norm(part, dim=1).square_().div_(part.shape[1])
                scale = self._scale(name, square, fired[which], which)
                moved.addcmul_(part, scale[:, None], value=-rate)
                if name == "W_dec":  # a row that did not move keeps its last bit too
                    moved.div_(torch.linalg.vector_norm(moved, dim=1).masked_fill_(scale == 0, 1)[:, None])
                if not isinstance(which, slice):
                    weight.index_copy_(0, which, moved)

    def _clipped_norms(self, gradient: Weights) -> list[Tensor]:
        """Norms of what Adam clips together."""
        return [getattr(gradient, name).norm() for name in self.vectors]

    def _scale(self, name: str, square: Tensor, fired: Tensor, which: slice | Tensor) -> Tensor:
        """Take the squares of gradients of some rows where they fired; what to multiply these gradients by.

        That is one over the root of the mean square; less for a gradient far above it; 0 before the first one.
        """
        events, mean = self.events[name][which], self.mean_square[name][which]
        usual = torch.where(events > 0, torch.minimum(square, mean * MOST**2), square)
        events = events + fired
        mean = torch.lerp(mean, usual, events.clamp_min(1).reciprocal_().clamp_min_(NEWEST) * fired)
        self.events[name][which], self.mean_square[name][which] = events, mean
        clipped = (usual / square.clamp_min(TINY**2)).sqrt_()
        return torch.where(events > 0, clipped / mean.sqrt().clamp_min_(TINY), 0.0)

    def forget(self, names: list[str], rows: Int[Tensor, " n"]) -> None:
        """Of latents that were given new weights."""
        _adam_forget(self.adam, self.vectors, names, rows)
        for name in self.rows.keys() & set(names):
            self.mean_square[name][rows] = 0
            self.events[name][rows] = 0

    def state(self) -> dict[str, Tensor]:
        return _adam_state(self.adam, self.vectors) | self._row_state()

    def _row_state(self) -> dict[str, Tensor]:
        kept = {"mean_square": self.mean_square, "events": self.events}
        return {f"{key}.{name}": value for key, values in kept.items() for name, value in values.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        _adam_restore(self.adam, self.vectors, state)
        for key, value in self._row_state().items():
            value.copy_(state[key])


def _pieces(gradient: Tensor, rows: Tensor | None, small: bool) -> Iterator[tuple[Tensor, slice | Tensor]]:
    """Pieces of a gradient with the rows of the weight that each is of."""
    length = PIECE if small else max(1, len(gradient))
    for first in range(0, len(gradient), length):
        part = gradient[first : first + length]
        yield part, slice(first, first + len(part)) if rows is None else rows[first : first + len(part)]


class Adam:
    """Adam (Kingma and Ba 2015, 1412.6980) with clipped gradients, as the field trains SAEs: the control of the other."""

    takes_rows = False

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.weights = weights
        self.adam = _make_adam(weights)

    @torch.no_grad()
    def update(self, gradient: Weights, rows: Int[Tensor, " n"] | None, step: int, lr: float) -> None:
        """One step with the gradients of all rows, which are overwritten."""
        assert rows is None, "Adam moves every row at every step"
        W_dec = self.weights.get("W_dec")  # a frozen one is not among them
        norms = [getattr(gradient, name).norm() for name in self.weights if name != "W_dec"]
        for part, which in _pieces(gradient.W_dec, None, gradient.W_dec.is_cpu) if W_dec is not None else ():
            part.addcmul_(W_dec[which], torch.linalg.vecdot(part, W_dec[which])[:, None], value=-1)  # pyright: ignore[reportOptionalSubscript]
            norms.append(part.norm())
        _adam_step(self.adam, self.weights, gradient, lr, norms)
        if W_dec is not None:
            W_dec /= W_dec.norm(dim=1, keepdim=True)

    def forget(self, names: list[str], rows: Int[Tensor, " n"]) -> None:
        """Of latents that were given new weights."""
        _adam_forget(self.adam, self.weights, names, rows)

    def state(self) -> dict[str, Tensor]:
        return _adam_state(self.adam, self.weights)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        _adam_restore(self.adam, self.weights, state)


def _make_adam(weights: Mapping[str, Tensor]) -> torch.optim.Adam:
    groups = [{"params": [weight], "name": name} for name, weight in weights.items()]
    return torch.optim.Adam(groups, betas=BETAS, eps=1e-8, fused=True)


def _adam_step(
    adam: torch.optim.Adam, weights: Mapping[str, Tensor], gradient: Weights, lr: float, norms: list[Tensor]
) -> None:
    """norms: of the gradients, or of parts of them."""
    norm = torch.stack(norms).norm()
    # Adam divides gradients by this as it reads them: clipping without a pass over them, or a wait for the norm
    adam.grad_scale = (norm / CLIP_NORM).clamp_min(1.0).float()  # pyright: ignore[reportAttributeAccessIssue]
    for group in adam.param_groups:
        name = group["name"]
        weights[name].grad = getattr(gradient, name)
        group["lr"] = min(THRESHOLD_LR * lr, THRESHOLD_STEP) if name == "log_threshold" else lr
    adam.step()
    adam.zero_grad(set_to_none=True)


def _adam_forget(
    adam: torch.optim.Adam, weights: Mapping[str, Tensor], names: list[str], rows: Int[Tensor, " n"]
) -> None:
    for name in weights.keys() & set(names):
        for moment in ("exp_avg", "exp_avg_sq"):
            adam.state[weights[name]][moment][rows] = 0


def _adam_state(adam: torch.optim.Adam, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        f"adam.{name}.{key}": value for name, weight in weights.items() for key, value in adam.state[weight].items()
    }


def _adam_restore(adam: torch.optim.Adam, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    for name, weight in weights.items():
        adam.state[weight] = {
            key.rpartition(".")[2]: value.to(weight.device, copy=True)
            for key, value in state.items()
            if key.startswith(f"adam.{name}.")
        }


def make_optimizer(name: str, weights: Mapping[str, Tensor]) -> RowRms | Adam:
    """name: ``row_rms`` or ``adam``, as in the settings."""
    return Adam(weights) if name == "adam" else RowRms(weights)
