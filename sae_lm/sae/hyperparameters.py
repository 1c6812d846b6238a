"""what all arms of a comparison share: sizes, schedules and weights of the loss; defaults that papers give."""

from typing import NamedTuple

import torch


class Hyperparameters(NamedTuple):
    """What all arms of a comparison share, where an arm does not say otherwise."""

    arch: str
    """relu, topk, batchtopk, jumprelu or matryoshka"""
    k: int
    """active latents per row: exactly (topk), in the batch's mean (batchtopk, matryoshka), aimed at (relu, jumprelu)"""
    steps: int
    lr: float
    warm_up: float
    decay: float
    penalty_every: int
    penalty_start: float
    penalty_on: str
    aux_coefficient: float
    aux_k: int
    dead_after: int
    matmul: torch.dtype
    widths: tuple[int, ...] | None = None
    """matryoshka's nested prefixes, ascending, the last is d_sae; None: `default_widths`"""
    sparsity_coefficient: float | None = None
    """of L1 (relu) or L0 (jumprelu) in the loss; None: whatever gives k active latents"""
    bandwidth: float = 0.03
    """of jumprelu's straight-through estimators, in scaled units"""
    penalty_warm_up: float = 0.0
    """share of the steps, from the penalty's start, over which its coefficient rises from 0"""
    resample_every: int = 0
    """steps between resamplings of dead latents; 0: never"""


def default_lr(d_sae: int) -> float:
    """2e-4 / sqrt(d_sae / 2^14): figure 3 of Gao et al. 2024 (2406.04093), as dictionary_learning applies it."""
    return 2e-4 / (d_sae / 2**14) ** 0.5


def default_widths(d_sae: int) -> tuple[int, ...]:
    """1/32, 3/32, 7/32, 15/32 and all of the latents: 2048 to 65,536 in Bussmann et al. 2025 (2503.17547), section 4.3."""
    return (*dict.fromkeys(d_sae * share // 32 for share in (1, 3, 7, 15) if d_sae * share >= 32), d_sae)


def learning_rate(step: int, h: Hyperparameters) -> float:
    """Linear warm-up over the first share of steps, constant, linear decay to 0 over the last share."""
    rise = (step + 1) / max(1.0, h.warm_up * h.steps)
    fall = (h.steps - step) / max(1.0, h.decay * h.steps)
    return h.lr * min(1.0, rise, fall)
