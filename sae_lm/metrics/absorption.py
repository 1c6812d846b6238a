"""codes x concept -> where the concept's latents are silent and another carries it: feature absorption.

Candidates are rows of unseen token types that have the concept and whose probe says so. The scores
are those of SAEBench 0.6.0 (feature_absorption_calculator.py), with latent strengths z_i ||d_i|| so
that decoders of any norm give the same. A penalty on decoder cosines can push an absorber under the
cosine gates while the hole stays; therefore the hole rate, which sees no geometry, stands beside
them, and "less absorption" needs both to fall. ``gate_sweep`` shows how far the gates decide,
``control`` what latents that have nothing to do with the concept would score.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lm.metrics.codes import Codes
from sae_lm.runtime.seeds import derive

SILENT = 1e-8
"""Strength below which a main latent counts as silent."""
COS_FULL, COS_FRACTION = 0.025, 0.1
"""Least cosine of an absorbing latent with the probe, for the full and the fractional score."""
SHARE = 0.4
"""Least share of the activation's projection on the probe that absorbing latents must carry."""
ABSORBERS = 3
"""Absorbing latents summed in the fractional score."""
SWEPT_COS, SWEPT_SHARE = (0.0, 0.025, 0.05, 0.1), (0.0, 0.2, 0.4)
"""Gates of the sweep."""
HUB = 0.5
"""A latent that fires on this share of all rows or more says little about any concept."""
ALIKE, DRAWS = 10, 8
"""Of the control: latents nearest in density among which a main latent's stand-in is drawn; draws averaged."""


class Centre(NamedTuple):
    """Means over all rows, for scores that ask what a row has beyond the average."""

    x: Float[Tensor, " d_in"]
    strength: Float[Tensor, " d_sae"]


class Projections(NamedTuple):
    """What scores of any gates are made of. Only latents that fire can absorb."""

    along: Float[Tensor, "n width"]
    """each firing latent's part of the projection on the probe: strength times cosine"""
    cosine: Float[Tensor, "n width"]
    """cosine of that latent's decoder row with the probe"""
    is_main: Bool[Tensor, "n width"]
    whole: Float[Tensor, " n"]
    """the activation's projection on the probe"""
    carried: Float[Tensor, " n"]
    """the main latents' part of it"""
    silent: Bool[Tensor, " n"]
    """whether all main latents are"""


class Scores(NamedTuple):
    """Per candidate row."""

    full: Bool[Tensor, " n"]
    fraction: Float[Tensor, " n"]
    silent: Bool[Tensor, " n"]
    absorber: Int[Tensor, " n"]
    """latent with the largest projection on the probe"""


def projections(
    codes: Codes,
    x: Float[Tensor, "n d_in"],
    cosine: Float[Tensor, " d_sae"],
    probe: Float[Tensor, " d_in"],
    main: list[int],
    centre: Centre | None = None,
) -> Projections:
    """Projections on the probe's direction; with ``centre``, of what x and strengths are beyond their means.

    cosine: of each decoder row with the probe.
    """
    mean_x, mean = centre or Centre(x.new_zeros(x.shape[1]), x.new_zeros(codes.d_sae))
    mean = mean.to(codes.strength)
    fires = codes.strength > 0
    is_main = torch.isin(codes.latent, torch.tensor(main)) & fires
    along = torch.where(fires, codes.strength - mean[codes.latent], 0) * cosine[codes.latent]
    # a silent main latent is below its mean
    below = (mean * cosine)[main].sum() - ((mean * cosine)[codes.latent] * is_main).sum(1)
    return Projections(
        along=along,
        cosine=cosine[codes.latent],
        is_main=is_main,
        whole=(x - mean_x.to(x)) @ (probe / probe.norm()),
        carried=(along * is_main).sum(1) - below,
        silent=~(is_main & (codes.strength >= SILENT)).any(1),
    )


def probe_cosines(W_dec: Float[Tensor, "d_sae d_in"], probe: Float[Tensor, " d_in"]) -> Float[Tensor, " d_sae"]:
    """Cosine of each decoder row with the probe; 0 for a row of zeros."""
    return (W_dec @ (probe / probe.norm())) / W_dec.norm(dim=1).clamp_min(1e-12)


def full_scores(parts: Projections, cos: float = COS_FULL, share: float = SHARE) -> Bool[Tensor, " n"]:
    """All main latents silent, and one other, of at least this cosine, carries at least this share of the projection.

    As in SAEBench, only the latent with the largest projection is asked for its cosine.
    """
    top, slot = parts.along.max(1)
    cosine = parts.cosine.gather(1, slot[:, None])[:, 0]
    return parts.silent & (cosine >= cos) & (parts.whole > 0) & (top > 0) & (top >= share * parts.whole)


def fraction_scores(parts: Projections, cos: float = COS_FRACTION, share: float = SHARE) -> Float[Tensor, " n"]:
    """The part of the projection carried by the top absorbers instead of the main latents, 0 to 1.

    0 where they carry less than this share, and where they carry nothing.
    """
    others = torch.where(parts.is_main | (parts.cosine < cos), 0, parts.along).clamp_min(0)
    absorbed = others.topk(min(ABSORBERS, others.shape[1]), dim=1).values.sum(1)
    part = torch.minimum(absorbed, parts.whole - parts.carried)
    fraction = torch.where(parts.carried <= 0, 1.0, (part / (part + parts.carried)).clamp(0, 1))
    none = (parts.whole <= 0) | (parts.carried >= parts.whole) | (absorbed < share * parts.whole) | (absorbed <= 0)
    return torch.where(none, 0.0, fraction)


def absorption_scores(
    codes: Codes,
    x: Float[Tensor, "n d_in"],
    W_dec: Float[Tensor, "d_sae d_in"],
    probe: Float[Tensor, " d_in"],
    main: list[int],
) -> Scores:
    """Full and fractional absorption at SAEBench's gates."""
    parts = projections(codes, x, probe_cosines(W_dec, probe), probe, main)
    absorber = codes.latent.gather(1, parts.along.argmax(1, keepdim=True))[:, 0]
    return Scores(full_scores(parts), fraction_scores(parts), parts.silent, absorber)


class Absorption(NamedTuple):
    """One concept's scores, averaged within token types first, so that frequent tokens do not decide."""

    candidates: int
    types: int
    full: float
    fraction: float
    hole_rate: float
    """share of candidates on which all main latents are silent"""
    recovered: float
    """on those holes, projection of x_hat - b_dec on the probe over that of x - b_dec; NaN without holes"""


def absorption(
    codes: Codes,
    x: Float[Tensor, "n d_in"],
    token_id: Int[Tensor, " n"],
    W_dec: Float[Tensor, "d_sae d_in"],
    b_dec: Float[Tensor, " d_in"],
    probe: Float[Tensor, " d_in"],
    main: list[int],
) -> Absorption | None:
    """Scores of one concept on its candidate rows; None without candidates or main latents."""
    return _mean_scores(codes, x, token_id, probe_cosines(W_dec, probe), b_dec, probe, main)


def _mean_scores(
    codes: Codes, x: Tensor, token_id: Tensor, cosine: Tensor, b_dec: Tensor, probe: Tensor, main: list[int]
) -> Absorption | None:
    if not len(x) or not main:
        return None
    parts = projections(codes, x, cosine, probe, main)
    actual = (x - b_dec) @ (probe / probe.norm())
    holes = parts.silent & (actual > 0)
    rebuilt = parts.along[holes].double().sum()
    return Absorption(
        candidates=len(x),
        types=len(token_id.unique()),
        full=_type_mean(full_scores(parts), token_id),
        fraction=_type_mean(fraction_scores(parts), token_id),
        hole_rate=_type_mean(parts.silent, token_id),
        recovered=float(rebuilt / actual[holes].double().sum()) if holes.any() else float("nan"),
    )


class Gate(NamedTuple):
    """Scores at one pair of gates. At share 0 anything a latent carries is enough."""

    centred: bool
    cos: float
    share: float
    full: float
    fraction: float


def gate_sweep(
    codes: Codes,
    x: Float[Tensor, "n d_in"],
    token_id: Int[Tensor, " n"],
    W_dec: Float[Tensor, "d_sae d_in"],
    probe: Float[Tensor, " d_in"],
    main: list[int],
    centre: Centre,
) -> list[Gate]:
    """Both scores at every pair of gates, each gate for both, on raw and on centred activations.

    Empty without candidates or main latents.
    """
    if not len(x) or not main:
        return []
    gates, cosine = [], probe_cosines(W_dec, probe)
    for centred in (False, True):
        parts = projections(codes, x, cosine, probe, main, centre if centred else None)
        for cos in SWEPT_COS:
            for share in SWEPT_SHARE:
                full = _type_mean(full_scores(parts, cos, share), token_id)
                fraction = _type_mean(fraction_scores(parts, cos, share), token_id)
                gates.append(Gate(centred, cos, share, full, fraction))
    return gates


class MainLatents(NamedTuple):
    """A concept's main latents taken as a detector that says yes where any of them fires; no regression, no threshold."""

    recall: float
    """share of the concept's rows on which a main latent fires; NaN without such rows"""
    precision: float
    """share of the rows on which a main latent fires that have the concept; NaN if none ever fires"""
    f1: float
    hubs: list[int]
    """those that fire on half of all rows or more: they fill holes without meaning the concept"""


def main_latents(codes: Codes, labels: Bool[Tensor, " n"], main: list[int]) -> MainLatents:
    """How far the main latents are the concept's, on rows with and without it."""
    fires = codes.columns(main) > 0
    told = fires.any(1)
    hits, actual, said = (float(rows.sum()) for rows in (told & labels, labels, told))
    return MainLatents(
        recall=hits / actual if actual else float("nan"),
        precision=hits / said if said else float("nan"),
        f1=2 * hits / (actual + said) if actual + said else 0.0,
        hubs=[latent for latent, share in zip(main, fires.double().mean(0).tolist(), strict=True) if share >= HUB],
    )


def control(
    codes: Codes,
    x: Float[Tensor, "n d_in"],
    token_id: Int[Tensor, " n"],
    W_dec: Float[Tensor, "d_sae d_in"],
    b_dec: Float[Tensor, " d_in"],
    probe: Float[Tensor, " d_in"],
    main: list[int],
    density: Float[Tensor, " d_sae"],
    seed: int,
) -> Absorption | None:
    """``absorption`` with as many random latents that fire as often in the main latents' place, the mean of some draws.

    density: share of all rows on which each latent fires. ``recovered`` is the mean over draws that have holes.
    """
    cosine = probe_cosines(W_dec, probe)
    drawn = [stand_ins(density, main, derive("control", seed, draw)) for draw in range(DRAWS)]
    draws = [_mean_scores(codes, x, token_id, cosine, b_dec, probe, latents) for latents in drawn]
    kept = [draw for draw in draws if draw is not None]
    if not kept:
        return None

    def mean(key: str) -> float:
        return float(torch.tensor([getattr(draw, key) for draw in kept], dtype=torch.float64).nanmean())

    scores = {key: mean(key) for key in ("full", "fraction", "hole_rate", "recovered")}
    return Absorption(kept[0].candidates, kept[0].types, **scores)


def stand_ins(density: Float[Tensor, " d_sae"], main: list[int], seed: int) -> list[int]:
    """For each main latent a random other one, all different, of those nearest to it in log density.

    Fewer than there are main latents only if there are not as many others.
    """
    generator = torch.Generator().manual_seed(seed)
    free = torch.ones(len(density), dtype=torch.bool)
    free[main] = False
    level = density.double().clamp_min(1e-12).log()
    chosen: list[int] = []
    for latent in main[: int(free.sum())]:
        distance = torch.where(free, (level - level[latent]).abs(), torch.inf)
        near = distance.topk(min(ALIKE, int(free.sum())), largest=False).indices
        chosen.append(int(near[torch.randint(len(near), (1,), generator=generator)]))
        free[chosen[-1]] = False
    return chosen


def _type_mean(values: Tensor, token_id: Tensor) -> float:
    """Mean over token types of the mean over their rows."""
    _, types = token_id.unique(return_inverse=True)
    sums = torch.zeros(int(types.max()) + 1, dtype=torch.float64).index_add_(0, types, values.double())
    return float((sums / torch.bincount(types)).mean())
