"""decoder rows -> one number to be added to the loss: how far the rows are from orthogonal.

Every penalty takes ``rows [d_sae, d_in]`` (the decoder, or ``W_enc.T`` as the control) of any norm
and depends on directions alone. Coefficients are in units where predicting the mean activation
costs 1, so they carry over between models. Both penalties are exact and hold no [d_sae, d_sae]
matrix: rows are compared tile by tile, the gradient is written out by hand.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lm.errors import SettingsError
from sae_lm.sae.topk import csr

TILE = 2048
"""Rows compared at a time: 16 MiB of cosines in float32."""
CHUNK = 8192
"""OrtSAE's chunk (section 3.2 of 2509.22033): larger dictionaries are partitioned at random."""


class Arm(NamedTuple):
    """One experimental condition: a penalty and its coefficient."""

    penalty: str
    coefficient: float

    @property
    def name(self) -> str:
        """Name of the arm in tables and folders: ``none``, ``abs_cos:1``."""
        return self.penalty if self.penalty == "none" else f"{self.penalty}:{self.coefficient:g}"


Penalty = Callable[[Float[Tensor, "d_sae d_in"], torch.Generator], Float[Tensor, ""]]


class _AbsCos(torch.autograd.Function):
    """mean |cos|: with V the unit rows, the gradient for V is 2 sign(V V^T) V / (m (m - 1))."""

    @staticmethod
    def forward(ctx, unit: Tensor) -> Tensor:
        m = len(unit)
        total = unit.new_zeros((), dtype=torch.float64)
        gradient = torch.empty_like(unit)
        for first in range(0, m, TILE):
            cosines = unit[first : first + TILE] @ unit.T
            cosines.diagonal(offset=first).zero_()
            total += cosines.abs().sum(dtype=torch.float64)
            gradient[first : first + TILE] = cosines.sign_() @ unit
        pairs = m * (m - 1)
        ctx.save_for_backward(gradient.mul_(2 / pairs))
        return (total / pairs).to(unit.dtype)

    @staticmethod
    def backward(ctx, grad_output: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,) = ctx.saved_tensors
        return grad_output * gradient


class _NearestCos(torch.autograd.Function):
    """Cosine of each row to its nearest other row, with both rows' gradients.

    A row may be nearest to many, whose gradients meet in it. They are added as one sparse product: torch's own
    backward of ``unit[nearest]`` adds them in the order threads arrive, and training would not repeat bit for bit.
    """

    @staticmethod
    def forward(ctx, unit: Tensor) -> Tensor:
        nearest = nearest_row(unit)
        ctx.save_for_backward(unit, nearest)
        return (unit * unit[nearest]).sum(1)

    @staticmethod
    def backward(ctx, grad_output: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        unit, nearest = ctx.saved_tensors
        sought, order = nearest.sort(stable=True)
        counts = torch.bincount(sought, minlength=len(unit))
        starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        arriving = csr(starts, order, grad_output[order], (len(unit), len(unit))) @ unit
        return grad_output[:, None] * unit[nearest] + arriving


def unit_rows(rows: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_in"]:
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-8)


def abs_cos(rows: Float[Tensor, "d_sae d_in"], generator: torch.Generator | None = None) -> Float[Tensor, ""]:
    """Mean absolute cosine similarity over all ordered pairs i != j of rows; in [0, 1].

    This project's own penalty. Random directions already score sqrt(2 / (pi d_in)), and for
    d_sae > d_in no set of rows scores 0.
    """
    del generator  # exact: nothing is drawn
    return _AbsCos.apply(unit_rows(rows.float() if rows.dtype != torch.float64 else rows))  # pyright: ignore[reportReturnType]


def max_cos(rows: Float[Tensor, "d_sae d_in"], generator: torch.Generator | None = None) -> Float[Tensor, ""]:
    """Mean over rows of the squared, clamped cosine to the nearest other row; in [0, 1].

    OrtSAE, equation 5 of 2509.22033: rows are partitioned at random into ceil(d_sae / 8192) equal
    chunks and the neighbour is sought inside the chunk. The maximum is signed and clamped at 0,
    so antiparallel rows cost nothing. The neighbour is found without a graph; the gradient of the
    chosen pairs is that of the whole expression, at a third of the work.
    """
    m = len(rows)
    unit = unit_rows(rows.float() if rows.dtype != torch.float64 else rows)
    chunks = -(-m // CHUNK)
    if chunks == 1:
        return _NearestCos.apply(unit).clamp_min(0).square().mean()
    order = torch.randperm(m, generator=generator).to(rows.device)
    parts = [_NearestCos.apply(unit[chunk]).clamp_min(0).square().mean() for chunk in order.tensor_split(chunks)]
    return torch.stack(parts).mean()


def nearest_row(unit: Float[Tensor, "n d_in"]) -> Tensor:
    """Index of the row with the largest signed cosine to each row, itself excluded: [n]."""
    nearest = []
    for first in range(0, len(unit), TILE):
        cosines = unit[first : first + TILE] @ unit.T
        cosines.diagonal(offset=first).fill_(-2.0)
        nearest.append(cosines.argmax(1))
    return torch.cat(nearest)


PENALTIES: dict[str, Penalty] = {"abs_cos": abs_cos, "max_cos": max_cos}
DEFAULT_COEFFICIENTS = {"abs_cos": 1.0, "max_cos": 0.25}
"""abs_cos: where trials showed a first effect; max_cos: OrtSAE's published value."""


def parse_arm(text: str) -> Arm:
    """``none``, ``abs_cos``, ``max_cos:0.5`` -> Arm. Raises SettingsError."""
    name, _, number = text.strip().partition(":")
    if name == "none" and not number:
        return Arm("none", 0.0)
    if name not in PENALTIES:
        known = ", ".join(["none", *PENALTIES])
        raise SettingsError(
            f"arms: unknown penalty {name!r} in {text!r}; expected penalty[:coefficient] with one of {known}"
        )
    try:
        coefficient = float(number) if number else DEFAULT_COEFFICIENTS[name]
    except ValueError:
        coefficient = -1.0
    if not 0 <= coefficient < float("inf"):
        raise SettingsError(
            f"arms: coefficient {number!r} in {text!r} is not a number >= 0; write for example {name}:{DEFAULT_COEFFICIENTS[name]:g}"
        )
    return Arm(name, coefficient)
