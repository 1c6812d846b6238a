"""Find out whether an SAE fits activations as it was loaded, or would fit with one of the mistakes of loading undone.

What people get wrong: a bias that is or is not subtracted from the input, a decoder read the wrong way round,
activations that are or are not scaled, centred or normalised, another hook than the SAE's, contexts with or without a
BOS. Each is tried on the same rows, and where that helps or nothing fits, every two of them together. What counts is
FVU: it is 0 for a perfect SAE, and reconstructions of what an SAE was not made for have 1 or more.
"""

import math
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from sae_lm.metrics.reconstruction import Quality, quality
from sae_lm.sae.model import NORMS, SAE

AT_ONCE = 2048
"""Rows encoded together."""
CLEAR = 0.8
"""Share of the FVU as loaded below which a change counts as an improvement, and not as chance or taste."""
LEAST = 0.03
"""The same as a difference: of two good fits neither is a mistake. A neighbouring layer may fit nearly as well."""
POOR = 0.7
"""FVU from which on an SAE does not fit: of those in use, L0 of 10 or more, few have more than .4."""
FOLDS = (1e-6, 1e6)

PAIR_ROWS = 1024
"""Rows on which pairs of changes are tried: there are over a hundred pairs."""

Rows = Mapping[str, Float[Tensor, "rows d_in"]]
"""Where rows were taken -> the rows; the first are those that the SAE is for."""


class Reading(NamedTuple):
    """An SAE in one way of using it."""

    changes: tuple[str, ...]
    """what is otherwise than loaded, each as a piece of a sentence; empty: as it was loaded"""
    place: str
    """which rows"""
    quality: Quality

    @property
    def fvu(self) -> float:
        return self.quality.fvu


class Fit(NamedTuple):
    readings: list[Reading]
    """as it was loaded; then every single change; then, where that is not the end of it, the best pair of changes"""
    best: Reading
    """as it was loaded, unless a change is clearly better, and a pair of changes clearly better than that"""

    @property
    def loaded(self) -> Reading:
        return self.readings[0]


def find_fit(sae: SAE, rows: Rows) -> Fit:
    """Try the usual mistakes, alone and in pairs. rows: at least one set; all of width d_in."""
    own = next(iter(rows))
    loaded = Reading((), own, _quality(sae, rows[own]))
    single = [Reading((said,), place, _quality(changed, rows[place])) for said, place, changed in _changes(sae, rows)]
    least = min(single, key=lambda reading: _order(reading.fvu), default=loaded)
    readings, best = [loaded, *single], _better_of(loaded, least)
    if best is not loaded or not loaded.fvu < POOR:
        pair = _best_pair(sae, rows)
        readings += [pair] if pair else []
        best = _better_of(best, pair) if pair else best
    return Fit(readings, best)


def _best_pair(sae: SAE, rows: Rows) -> Reading | None:
    """Of all second changes beside a first one: found on few rows, measured on all. SAEs are large: one is kept."""
    few = {place: x[:: max(1, len(x) // PAIR_ROWS)] for place, x in rows.items()}
    best, least = None, math.inf
    for said, place, changed in _pairs(sae, rows, few):
        if (fvu := _quality(changed, few[place]).fvu) < least:
            best, least = (said, place, changed), fvu
    return Reading(best[0], best[1], _quality(best[2], rows[best[1]])) if best else None


def _pairs(sae: SAE, rows: Rows, few: Rows) -> Iterator[tuple[tuple[str, str], str, SAE]]:
    for first, at, changed in _changes(sae, rows):
        for second, place, further in _changes(changed, few, at, sae):
            yield (first, second), place, further


def _better_of(one: Reading, other: Reading) -> Reading:
    return other if is_better(other, one) else one


def is_better(one: Reading, other: Reading) -> bool:
    """It fits, and clearly better, not merely by a little. NaN, as of rows without variance, is no fit."""
    a, b = one.fvu, other.fvu
    return a < POOR and (not math.isfinite(b) or (a < CLEAR * b and a < b - LEAST))


def _order(fvu: float) -> float:
    return fvu if math.isfinite(fvu) else math.inf


def _quality(sae: SAE, x: Tensor) -> Quality:
    return quality(sae, x.split(AT_ONCE))[0]


def _changes(
    sae: SAE, rows: Rows, place: str | None = None, loaded: SAE | None = None
) -> Iterator[tuple[str, str, SAE]]:
    """(what is changed, rows, SAE): every single change of an SAE at one set of rows, and every other set of rows.

    loaded: the SAE before an earlier change, which is not to be undone.
    """
    first = next(iter(rows))
    place = first if place is None else place
    for other in rows:
        if other != place and place == first:
            yield f"on {other}", other, sae
    config = sae.config
    for said, change in _configurations(sae):
        if loaded is None or replace(config, **change) != loaded.config:
            yield said, place, _with(sae, {}, **change)
    if config.d_in == config.d_sae:
        for names in (("W_dec",), ("W_enc",), ("W_enc", "W_dec")):
            said = f"{' and '.join(names)} transposed"
            yield said, place, _with(sae, {name: getattr(sae, name).T for name in names})
    if config.normalize_activations == "none" and (loaded is None or loaded.W_enc is sae.W_enc):
        for said, factor in _factors(rows[place], config.d_in):
            yield said, place, scaled(sae, factor)


def _configurations(sae: SAE) -> Iterator[tuple[str, dict[str, Any]]]:
    config = sae.config
    if bool(sae.b_dec.any()):
        subtracted = config.apply_b_dec_to_input
        said = f"b_dec {'not ' if subtracted else ''}subtracted from the input"
        yield said, {"apply_b_dec_to_input": not subtracted}
    for norm in NORMS:
        if norm != config.normalize_activations:
            said = "activations not normalised" if norm == "none" else f"activations normalised ({norm})"
            yield said, {"normalize_activations": norm}
    if config.normalize_activations != "layer_norm":
        centred = config.centred_input
        yield f"activations {'not ' if centred else ''}centred", {"centred_input": not centred}


def _factors(x: Tensor, d_in: int) -> Iterator[tuple[str, float]]:
    """What activations may have to be multiplied by: to a mean norm of sqrt(d_in) or 1, or back from there."""
    norm = float(x.double().norm(dim=1).mean())
    if not FOLDS[0] < norm < FOLDS[1]:
        return
    for said, size in (("sqrt(d_in)", math.sqrt(d_in)), ("1", 1.0)):
        yield f"activations times {size / norm:.4g} (to a mean norm of {said})", size / norm
        yield f"activations times {norm / size:.4g} (as if that were folded twice)", norm / size


def scaled(sae: SAE, factor: float) -> SAE:
    """The SAE that multiplies activations by a factor before it encodes them, and divides its reconstruction by it."""
    weights = {"W_enc": sae.W_enc * factor, "W_dec": sae.W_dec / factor, "b_dec": sae.b_dec / factor}
    return _with(sae, weights)


def _with(sae: SAE, weights: Mapping[str, Tensor], **config: object) -> SAE:
    """What is not changed is shared with the SAE, so that a change of its configuration takes no memory."""
    changed = deepcopy(sae, {id(shared): shared for shared in (sae.config, *sae.parameters())})
    changed.config = replace(sae.config, **config)
    for name, value in weights.items():
        setattr(changed, name, nn.Parameter(value, requires_grad=False))
    return changed
