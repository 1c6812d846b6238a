"""rows -> a penalty over all pairs of their directions, with its gradient written out by hand.

Autograd through a [m, m] matrix of cosines would hold it, and compute every product twice. Here a
penalty is a function of unit rows that returns its value and, where wanted, its gradient; `of_directions`
makes of it a differentiable number for rows of any norm.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lm.sae.codes import Codes, csr

TILE = 2048
"""Rows compared at a time: at 8192 latents 64 MiB of cosines in float32."""


class Evaluated(NamedTuple):
    """A penalty at some unit rows [m, d]."""

    value: Tensor
    gradient: Tensor | None = None
    """[m, d], up to a factor; it may be overwritten"""
    factor: float = 1.0
    along: Tensor | None = None
    """[m, 1], the gradient's products with the rows (up to the factor), where they are known already"""


Evaluate = Callable[[Tensor, bool], Evaluated]
"""unit rows [m, d], whether a gradient is wanted -> the value and, where wanted, the gradient."""


def of_directions(rows: Float[Tensor, "m d"], evaluate: Evaluate) -> Float[Tensor, ""]:
    """evaluate(rows / ||rows||), differentiable for rows; float32 at least, under autocast too. A zero row
    has no direction: it counts as orthogonal to all and gets no gradient."""
    return _OfDirections.apply(rows, evaluate)  # pyright: ignore[reportReturnType]


class _OfDirections(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor, evaluate: Evaluate) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        with torch.autocast(rows.device.type, enabled=False):
            unit, inverse = _unit(rows)
            value, gradient, factor, along = evaluate(unit, ctx.needs_input_grad[0])
            if gradient is not None:
                # the part along a row changes its norm, which the penalty does not see
                along = row_products(gradient, unit) if along is None else along
                gradient.addcmul_(unit, along, value=-1).mul_(inverse * factor)
                ctx.gradient = gradient.to(rows.dtype)
        return value

    @staticmethod
    def backward(ctx, grad_output: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        gradient, ctx.gradient = ctx.gradient, None  # given away, so that it can be scaled in place
        assert gradient is not None, "backward goes through a penalty once"
        return gradient.mul_(grad_output), None


def _unit(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Unit rows in float32 or float64, and the inverse norms [m, 1]; both 0 for a zero row."""
    rows = rows if rows.dtype == torch.float64 else rows.float()
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    inverse = torch.where(norm > 1e-8, 1 / norm, 0)
    return rows * inverse, inverse


def unit_rows(rows: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_in"]:
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-8)


def row_products(
    left: Float[Tensor, "m d"], right: Float[Tensor, "n d"], columns: Int[Tensor, "m c"] | None = None
) -> Float[Tensor, "m c"]:
    """left[i] . right[columns[i, j]]; without columns left[i] . right[i], [m, 1].

    measured: a third of the time of a product element by element and its sum, a sixth where rows are gathered.
    """
    m, n = len(left), 1 if columns is None else columns.shape[1]
    columns = torch.arange(m, device=left.device) if columns is None else columns.flatten()
    starts = torch.arange(0, m * n + 1, n, device=left.device)
    pattern = csr(starts, columns, left.new_zeros(m * n), (m, len(right)))
    return torch.sparse.sampled_addmm(pattern, left, right.T, beta=0.0).values().view(m, n)


def sums_by(
    into: Int[Tensor, " e"],
    size: int,
    rows: Float[Tensor, "n d"],
    entry: Int[Tensor, " e"],
    weight: Float[Tensor, " e"] | None = None,
) -> Float[Tensor, "size d"]:
    """out[j] = sum of weight[e] * rows[entry[e]] over the e with into[e] = j.

    Sorted and added row by row: an accumulating index_put adds in the order threads arrive, and training would
    not repeat bit for bit.
    """
    into, order = into.sort(stable=True)
    starts = torch.searchsorted(into, torch.arange(size + 1, device=rows.device))
    weight = None if weight is None else weight[order]
    return torch.nn.functional.embedding_bag(
        entry[order], rows, starts, mode="sum", per_sample_weights=weight, include_last_offset=True
    )


def product_dtype(unit: Tensor, matmul: torch.dtype) -> torch.dtype:
    """The dtype to multiply in: what was asked for, except that float64 stays float64."""
    return torch.float64 if unit.dtype == torch.float64 else matmul


def abs_cos(
    rows: Float[Tensor, "m d"],
    draws: torch.Generator | None = None,
    codes: Codes | None = None,
    *,
    margin: float = 0.0,
    sample: int | None = None,
    matmul: torch.dtype = torch.float32,
) -> Float[Tensor, ""]:
    """Mean over ordered pairs i != j of relu(|cos(row_i, row_j)| - margin); in [0, 1].

    This project's own penalty. Random directions score sqrt(2 / (pi d)) without a margin, and for m > d no
    rows score 0; a margin above that floor, of a few 1 / sqrt(d), leaves it to the pairs that stand out. The
    mean over m (m - 1) pairs pulls on what many rows share with a strength that does not depend on m, and on
    one pair of near-duplicates with a strength that falls as 1 / m beside the reconstruction's.

    sample: compare all rows with this many, drawn from ``draws`` without replacement. None: with all.
        In a sample a row pulls and does not yield, so each pull counts twice; value and gradient have the exact
        ones as expectation.
    matmul: dtype of the products. In bfloat16 a pair within 1e-4 of orthogonal may be pulled the wrong way.
    """
    m = len(rows)
    chosen = _draw(m, sample, draws, rows.device)

    def evaluate(unit: Tensor, wanted: bool) -> Evaluated:
        every = unit.to(product_dtype(unit, matmul))
        some = every if chosen is None else every.index_select(0, chosen)
        pairs = len(some) * (m - 1)
        total, pulls = unit.new_zeros((), dtype=torch.float64), []
        tile = TILE if chosen is None else m
        for first in range(0, m, tile):
            cosines = every[first : first + tile] @ some.T
            if chosen is None:
                cosines.diagonal(offset=first).zero_()
            else:
                cosines[chosen, torch.arange(len(chosen), device=unit.device)] = 0
            if margin:
                cosines = torch.nn.functional.hardshrink(cosines, margin)
            total += torch.linalg.vector_norm(cosines, 1, dtype=unit.dtype)
            signs = cosines.sign_()
            if margin:
                total -= margin * signs.count_nonzero().double()
            if wanted:
                pulls.append(signs @ some)
        value = (total / pairs).to(unit.dtype)
        return Evaluated(value, torch.cat(pulls).to(unit.dtype), 2 / pairs) if wanted else Evaluated(value)

    return of_directions(rows, evaluate)


def sq_cos(
    rows: Float[Tensor, "m d"],
    draws: torch.Generator | None = None,
    codes: Codes | None = None,
    *,
    sample: int | None = None,
    matmul: torch.dtype = torch.float32,
) -> Float[Tensor, ""]:
    """Mean over ordered pairs i != j of cos(row_i, row_j)^2; in [0, 1]. Exact in O(m d^2).

    With V the unit rows, sum_ij cos^2 = ||V^T V||^2 (the frame potential), whose gradient is 4 V (V^T V).
    For m > d no rows score below (m - d) / (d (m - 1)) (Welch's bound), which random directions nearly
    attain at 1 / d: it flattens the spectrum of the dictionary more than it parts near-duplicates.
    sample: as in `abs_cos`: V^T V of this many rows.
    """
    m = len(rows)
    chosen = _draw(m, sample, draws, rows.device)

    def evaluate(unit: Tensor, wanted: bool) -> Evaluated:
        weight = unit.new_full((m, 1), 1 / (m * (m - 1)) ** 0.5)
        return _frame_potential(unit, weight, chosen, wanted, matmul)

    return of_directions(rows, evaluate)


def freq_cos(
    rows: Float[Tensor, "m d"],
    draws: torch.Generator | None = None,
    codes: Codes | None = None,
    *,
    sample: int | None = None,
    matmul: torch.dtype = torch.float32,
) -> Float[Tensor, ""]:
    """Sum over ordered pairs i != j of p_i p_j cos(row_i, row_j)^2, over L0 = sum of p, with p the firing rates:
    `coactive`, were latents to fire independently of each other. Exact in O(m d^2), as `sq_cos`.

    It counts pairs that are on at once, not latents: rare and dead ones weigh little, and a wider dictionary
    at the same L0 scores the same. Random directions score about L0 / d.
    codes: its ``rate`` is p.
    sample: as in `abs_cos`.
    """
    assert codes is not None
    rate = codes.rate.double() if rows.dtype == torch.float64 else codes.rate.float()
    chosen = _draw(len(rows), sample, draws, rows.device)

    def evaluate(unit: Tensor, wanted: bool) -> Evaluated:
        weight = (rate / rate.sum().clamp_min(1e-8).sqrt())[:, None]
        return _frame_potential(unit, weight, chosen, wanted, matmul)

    return of_directions(rows, evaluate)


def _draw(m: int, sample: int | None, draws: torch.Generator | None, device: torch.device) -> Tensor | None:
    """Indices of a sample of m rows; None for all of them."""
    return None if sample is None or sample >= m else torch.randperm(m, generator=draws)[:sample].to(device)


def _frame_potential(
    unit: Tensor, weight: Tensor, chosen: Tensor | None, wanted: bool, matmul: torch.dtype
) -> Evaluated:
    """Sum over i != j of w_i w_j cos^2 for weights [m, 1], over all j or m / sample times over the chosen."""
    m, dtype = len(unit), product_dtype(unit, matmul)
    squared = torch.linalg.vector_norm(unit, dim=1, keepdim=True).square()  # 1, or 0 for a zero row
    some, weights, own = (v if chosen is None else v[chosen] for v in (unit, weight, weight * squared))
    frame = (some.to(dtype).T @ (some * weights).to(dtype)).to(unit.dtype) * (m / len(some))  # [d, d]
    # a multiple of the identity pulls along the row alone; without it bfloat16 keeps what matters
    level = frame.diagonal().mean()
    frame.diagonal().sub_(level)
    pulls = (unit.to(dtype) @ frame.to(dtype)).to(unit.dtype).mul_(weight)
    along = row_products(pulls, unit)
    value = (along + level * weight * squared).sum(dtype=torch.float64) - own.double().square().sum() * (m / len(some))
    return Evaluated(value.to(unit.dtype), pulls if wanted else None, 4.0, along)
