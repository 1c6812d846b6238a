"""Steer a language model by a latent: add it, clamp it, ablate it, or set the activation along its direction.

Strengths are in multiples of the largest activation that the latent is known to have, so that 1 is as strongly as it
ever fires, whatever its scale.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from numbers import Integral, Real
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lm.data.store import Store
from sae_lm.errors import SaeError
from sae_lm.interp.max_activating import chunk_rows, fitting_hook
from sae_lm.runtime.progress import Progress
from sae_lm.sae.model import SAE

ACTIONS = ("add", "clamp", "ablate", "orthogonal")
LARGEST = "largest_activations"
"""Key of an SAE's metadata: one number for each latent, as ``largest_activations`` measures them. ``sae-lm train``
writes it, of the store's last rows."""


@dataclass(frozen=True)
class Steer:
    """What is done with one latent, at every position that is not left alone.

    With a = strength * largest and w the latent's row of W_dec:
      add: a more on the latent: the activation moves by a w
      clamp: the latent is a, whatever it was
      ablate: the latent is 0
      orthogonal: of the activation, what is orthogonal to w stays as it is, and the component along w becomes a |w|
    """

    latent: int
    action: str = "add"
    strength: int | float = 1.0
    """in multiples of ``largest``; may be negative"""
    largest: int | float | None = None
    """the latent's largest activation, above 0; default the SAE's ``metadata["largest_activations"]``, which SAEs of
    ``sae-lm train`` have. With 1, ``strength`` is the latent's activation itself"""
    hook: str | None = None
    """which SAE, where there are several"""

    def __post_init__(self) -> None:
        if self.action not in ACTIONS:
            raise SaeError(f"action is {self.action!r}, expected one of {', '.join(ACTIONS)}")
        if not is_whole(self.latent) or self.latent < 0:
            raise SaeError(f"steering names latent {self.latent!r}, expected a whole number from 0 on")
        for name in ("strength", "largest"):
            value = getattr(self, name)
            if not (is_finite(value) or (name == "largest" and value is None)):
                raise SaeError(f"{name} of the steering of latent {self.latent} is {value!r}, expected a finite number")
        if self.largest is not None and not self.largest > 0:
            raise SaeError(
                f"largest of the steering of latent {self.latent} is {float(self.largest):g}, expected a number above 0: where it was "
                "searched the latent never fired; give largest=1 for a strength in units of the latent"
            )


def is_whole(value: Any) -> bool:
    """Whether this is a whole number: of Python or NumPy, or a tensor of one."""
    value = _one(value)
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_finite(value: Any) -> bool:
    """Whether this is a real number, neither infinite nor NaN: of Python or NumPy, or a tensor of one."""
    value = _one(value)
    return isinstance(value, Real) and isfinite(value)


def _one(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value


@dataclass(frozen=True)
class Edit:
    """A ``Steer`` that was checked against its SAE; ``amount`` is in units of the latent's activation."""

    latent: int
    action: str
    amount: float


def as_list(steering: Any) -> list[Steer]:
    """None, one or several, as a list. Raises SaeError for anything else."""
    given = list(steering) if isinstance(steering, Sequence) else [] if steering is None else [steering]
    for steer in given:
        if not isinstance(steer, Steer):
            raise SaeError(f"steering holds {steer!r}, expected sae_lm.Steer(latent=..., action=..., strength=...)")
    return given


def edits(sae: SAE, steering: Sequence[Steer]) -> list[Edit]:
    """Steering in units of the SAE's latents. Raises SaeError for a latent it has not, or one of unknown size."""
    return [Edit(int(steer.latent), steer.action, _amount(sae, steer)) for steer in steering]


def _amount(sae: SAE, steer: Steer) -> float:
    if not 0 <= steer.latent < sae.config.d_sae:
        raise SaeError(
            f"steering names latent {steer.latent}, this SAE has latents 0 to {sae.config.d_sae - 1}; give one of them"
        )
    if steer.action == "ablate":
        return 0.0
    largest = _known(sae, steer.latent) if steer.largest is None else steer.largest
    if steer.largest is None and not largest:
        why = "is not known" if largest is None else "is not known: it never fired where the SAE's training looked"
        raise SaeError(
            f"strength {steer.strength} of the steering of latent {steer.latent} is in multiples of its largest "
            f"activation, which {why}; give largest=float(sae_lm.largest_activations(sae, store)[latent]), "
            "or largest=1 for a strength in units of the latent"
        )
    return float(steer.strength) * float(largest or 0)


def _known(sae: SAE, latent: int) -> float | None:
    """The latent's largest activation as the SAE's metadata says; None where it does not, or says no such number."""
    known: Any = sae.config.metadata.get(LARGEST)
    if not isinstance(known, Sequence) or len(known) != sae.config.d_sae:
        return None
    value: Any = known[latent]
    return float(value) if isinstance(value, int | float) and 0 <= value < float("inf") else None


def steer_latents(z: Float[Tensor, "*batch d_sae"], edits: Sequence[Edit]) -> Float[Tensor, "*batch d_sae"]:
    """The latents after all edits but the orthogonal ones, one after the other; z itself stays as it is."""
    inside = [edit for edit in edits if edit.action != "orthogonal"]
    if inside:
        z = z.clone()
    for edit in inside:
        if edit.action == "add":
            z[..., edit.latent] += edit.amount
        else:
            z[..., edit.latent] = edit.amount
    return z


def steer_output(
    y: Float[Tensor, "*batch d_in"], x: Float[Tensor, "*batch d_in"], sae: SAE, edits: Sequence[Edit]
) -> Float[Tensor, "*batch d_in"]:
    """The activation y that is handed on, after the orthogonal edits, one after the other; x: as it came."""
    for edit in edits:
        if edit.action == "orthogonal":
            direction = sae.W_dec[edit.latent].to(y.dtype)
            direction = direction / direction.norm().clamp_min(torch.finfo(y.dtype).tiny)
            none = x.new_zeros(*x.shape[:-1], sae.config.d_sae, dtype=sae.W_dec.dtype)
            alone = none.clone()
            alone[..., edit.latent] = edit.amount
            part = (sae.decode(alone, x) - sae.decode(none, x)).to(y.dtype)  # amount times the row, unless it is scaled
            y = y + ((part - y) @ direction)[..., None] * direction
    return y


@torch.no_grad()
def largest_activations(
    sae: SAE, store: Store, *, start: int = 0, stop: int | None = None, silent: bool = False
) -> Float[Tensor, " d_sae"]:
    """Each latent's largest activation on rows start to stop of a store of its hook; 0 for those that never fire.

    A row of a damaged store on which an activation is a NaN or an infinity is passed over.
    silent: without a progress bar. Raises SaeError where SAE and store do not fit.
    """
    if not isinstance(store, Store):
        raise SaeError(f"store is {str(store)!r}, a name; give sae_lm.open_store({str(store)!r})")
    hook = fitting_hook("given", sae, store)
    stop = len(store) if stop is None else min(stop, len(store))
    largest = torch.zeros(sae.config.d_sae)
    with Progress("largest activations", max(0, stop - start), "tok", silent=silent) as bar:
        for first in range(start, stop, size := chunk_rows(store, sae)):
            z = sae.encode(store.rows(hook, first, min(stop, first + size)).to(sae.W_enc))
            most = z.amax(0)
            if not most.isfinite().all():
                most = z.masked_fill(~z.isfinite().all(1, keepdim=True), 0).amax(0)
            largest = torch.maximum(largest, most.float().cpu())
            bar.update(len(z))
    return largest
