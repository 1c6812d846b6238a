"""what all arms of a comparison share: sizes, schedules and weights of the loss; defaults that papers give."""

from typing import Any, NamedTuple

import torch

from sae_lm.data.store import Store
from sae_lm.errors import SettingsError
from sae_lm.penalties.arms import Arm
from sae_lm.settings import TrainSettings


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


FEWEST_BATCHES = 2000
"""By default, where the store is small. measured on the demo's store (2048 latents, k 16): FVU on held-out rows .381
after one epoch of 175 batches, .280 after 488, .234 after 976, .201 after 1953."""


NOT_IN_RECIPE = (
    "out",
    "store",
    "device",
    "log_every",
    "arms",
    "seeds",
    "arms_at_once",
    "checkpoint_seconds",
    "ranks_per_sae",
    "trackers",
)
"""Settings that may differ between the runs of one folder: they do not change what an SAE is (another device
changes its rounding)."""


PER_ARM = "k"
"""The setting that SAEs of one folder may have of their own: arms are compared at equal L0. Were another to differ, a
difference between arms would be its."""


def recipe_facts(
    settings: TrainSettings, store: Store, hook: str, context: int, row: int, arms: list[Arm]
) -> dict[str, Any]:
    """Everything an SAE's weights depend on besides arm and seed, as it is recorded with it."""
    k = max(arm.k or settings.k for arm in arms)
    if k > settings.d_sae:
        raise SettingsError(f"k is {k}, more than the {settings.d_sae} latents of d_sae; give a smaller one")
    widths = settings.widths
    if widths is not None and (sorted(set(widths)) != list(widths) or widths[0] < 1 or widths[-1] != settings.d_sae):
        raise SettingsError(
            f"widths is {', '.join(map(str, widths))}; expected ascending widths from 1, the last d_sae ({settings.d_sae})"
        )
    if row >= len(store):
        raise SettingsError(
            f"held_out is {settings.held_out}, which keeps no context of {settings.store} back; give more"
        )
    if row < settings.batch_size:
        raise SettingsError(
            f"store {settings.store} has {row:,} rows for training, fewer than one batch of {settings.batch_size:,}; "
            "cache more tokens or give a smaller --batch-size"
        )
    rows = settings.tokens or max(row, FEWEST_BATCHES * settings.batch_size)
    if rows < settings.batch_size:
        raise SettingsError(f"tokens is {rows}, fewer than one batch of {settings.batch_size}; give more --tokens")
    facts = {key: value for key, value in settings.model_dump(mode="json").items() if key not in NOT_IN_RECIPE}
    resolved = {
        "hook": hook,
        "tokens": rows // settings.batch_size * settings.batch_size,
        "lr": settings.lr or default_lr(settings.d_sae),
        "aux_k": settings.aux_k or max(1, store.hooks[hook] // 2),
        "dead_after": settings.dead_after or max(1, min(10_000_000, rows // 10)),
    }
    moments = store.moments(hook, row)  # of training rows: held-out ones are not looked at
    if moments.variance <= 0:
        raise SettingsError(
            f"store {settings.store}: all rows of {hook} are equal, there is nothing to learn; cache another hook"
        )
    return {
        **facts,
        **resolved,
        "store_id": store.manifest.id,
        "held_out_from_context": context,
        "held_out_from_row": row,
        "scale": moments.variance**0.5,
    }


def make_hyperparameters(settings: TrainSettings, facts: dict[str, Any]) -> Hyperparameters:
    return Hyperparameters(
        arch=settings.arch,
        k=settings.k,
        steps=facts["tokens"] // settings.batch_size,
        lr=facts["lr"],
        warm_up=settings.warm_up,
        decay=settings.decay,
        penalty_every=settings.penalty_every,
        penalty_start=settings.penalty_start,
        penalty_on=settings.penalty_on,
        penalty_warm_up=settings.penalty_warm_up,
        aux_coefficient=settings.aux_coefficient,
        aux_k=facts["aux_k"],
        dead_after=facts["dead_after"],
        matmul=getattr(torch, settings.matmul),
        widths=settings.widths,
        sparsity_coefficient=settings.sparsity_coefficient,
        bandwidth=settings.bandwidth,
        resample_every=settings.resample_every,
    )
