"""Penalties over all pairs of an SAE's directions, with their gradients written out by hand.

Autograd through a [m, m] matrix of cosines would hold it, and compute every product twice. Here a
penalty is a function of unit rows that returns its value and, where wanted, its gradient; `of_directions`
makes of it a differentiable number for rows of any norm.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lm.runtime.device import to_device
from sae_lm.sae.directions import TILE, Evaluated, of_directions, product_dtype, row_products
from sae_lm.sae.sparse import Codes


def abs_cos(
    rows: Float[Tensor, "m d"],
    generator: torch.Generator | None = None,
    codes: Codes | None = None,
    *,
    margin: float = 0.0,
    sample: int | None = None,
    matmul_dtype: torch.dtype = torch.float32,
) -> Float[Tensor, ""]:
    """Mean over ordered pairs i != j of relu(|cos(row_i, row_j)| - margin); in [0, 1].

    This project's own penalty. Random directions score sqrt(2 / (pi d)) without a margin, and for m > d no
    rows score 0; a margin above that floor, of a few 1 / sqrt(d), leaves it to the pairs that stand out. The
    mean over m (m - 1) pairs pulls on what many rows share with a strength that does not depend on m, and on
    one pair of near-duplicates with a strength that falls as 1 / m beside the reconstruction's.

    sample: compare all rows with this many, drawn from ``generator`` without replacement. None: with all.
        In a sample a row pulls and does not yield, so each pull counts twice; value and gradient have the exact
        ones as expectation.
    matmul_dtype: dtype of the products. In bfloat16 a pair within 1e-4 of orthogonal may be pulled the wrong way.
    """
    m = len(rows)
    chosen = _sample_indices(m, sample, generator, rows.device)

    def evaluate(unit: Tensor, wanted: bool) -> Evaluated:
        every = unit.to(product_dtype(unit, matmul_dtype))
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
    generator: torch.Generator | None = None,
    codes: Codes | None = None,
    *,
    sample: int | None = None,
    matmul_dtype: torch.dtype = torch.float32,
) -> Float[Tensor, ""]:
    """Mean over ordered pairs i != j of cos(row_i, row_j)^2; in [0, 1]. Exact in O(m d^2).

    With V the unit rows, sum_ij cos^2 = ||V^T V||^2 (the frame potential), whose gradient is 4 V (V^T V).
    For m > d no rows score below (m - d) / (d (m - 1)) (Welch's bound), which random directions nearly
    attain at 1 / d: it flattens the spectrum of the dictionary more than it parts near-duplicates.
    sample: as in `abs_cos`: V^T V of this many rows.
    """
    m = len(rows)
    chosen = _sample_indices(m, sample, generator, rows.device)

    def evaluate(unit: Tensor, wanted: bool) -> Evaluated:
        weight = unit.new_full((m, 1), 1 / (m * (m - 1)) ** 0.5)
        return _frame_potential(unit, weight, chosen, wanted, matmul_dtype)

    return of_directions(rows, evaluate)


def freq_cos(
    rows: Float[Tensor, "m d"],
    generator: torch.Generator | None = None,
    codes: Codes | None = None,
    *,
    sample: int | None = None,
    matmul_dtype: torch.dtype = torch.float32,
) -> Float[Tensor, ""]:
    """Sum over ordered pairs i != j of p_i p_j cos(row_i, row_j)^2, over L0 = sum of p, with p the firing frequencies:
    `coactive`, were latents to fire independently of each other. Exact in O(m d^2), as `sq_cos`.

    It counts pairs that are on at once, not latents: rare and dead ones weigh little, and a wider dictionary
    at the same L0 scores the same. Random directions score about L0 / d.
    codes: its ``firing_frequency`` is p.
    sample: as in `abs_cos`.
    """
    assert codes is not None
    frequency = codes.firing_frequency.to(torch.float64 if rows.dtype == torch.float64 else torch.float32)
    chosen = _sample_indices(len(rows), sample, generator, rows.device)

    def evaluate(unit: Tensor, wanted: bool) -> Evaluated:
        weight = (frequency / frequency.sum().clamp_min(1e-8).sqrt())[:, None]
        return _frame_potential(unit, weight, chosen, wanted, matmul_dtype)

    return of_directions(rows, evaluate)


def _sample_indices(
    m: int, sample: int | None, generator: torch.Generator | None, device: torch.device
) -> Tensor | None:
    """Indices of a sample of m rows; None for all of them."""
    if sample is None or sample >= m:
        return None
    return to_device(torch.randperm(m, generator=generator)[:sample], device)


def _frame_potential(
    unit: Tensor, weight: Tensor, chosen: Tensor | None, wanted: bool, matmul_dtype: torch.dtype
) -> Evaluated:
    """Sum over i != j of w_i w_j cos^2 for weights [m, 1], over all j or m / sample times over the chosen."""
    m, dtype = len(unit), product_dtype(unit, matmul_dtype)
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
