"""Feature absorption: how often a concept's own latents stay silent while another latent carries the concept.

A hole is a candidate row on which all main latents are silent: a false negative of theirs where the probe says yes.
Candidates are rows of unseen words that have the concept and whose probe says so. The scores
are those of SAEBench 0.6.0 (feature_absorption_calculator.py), with latent strengths z_i ||d_i|| so
that decoders of any norm give the same. A penalty on decoder cosines can push an absorber under the
cosine gates while the hole stays; therefore the hole rate, which sees no geometry, stands beside
them, and "less absorption" needs both to fall. ``ungated_scores`` has no gate, ``gate_sweep`` shows
how far the gates decide, ``control`` what latents that have nothing to do with the concept would score.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lm.metrics.codes import TokenCodes, at_entries
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
FREQUENCY_NEIGHBOURS, REPEATS = 10, 8
"""Of the control: latents nearest in firing frequency among which a main latent's stand-in is drawn; repeats averaged."""


class Centre(NamedTuple):
    """Means over all rows, for scores that ask what a row has beyond the average."""

    x: Float[Tensor, " d_in"]
    strength: Float[Tensor, " d_sae"]


@dataclass(frozen=True)
class ConceptAtSae:
    """A concept's candidate rows as one SAE codes them; the main latents are what callers vary."""

    codes: TokenCodes
    x: Float[Tensor, "n d_in"]
    token_id: Int[Tensor, " n"]
    W_dec: Float[Tensor, "d_sae d_in"]
    probe: Float[Tensor, " d_in"]
    """direction of the concept, of any norm"""
    b_dec: Float[Tensor, " d_in"] | None = None
    """the decoder's bias, which `Absorption.recovered` leaves out; None: 0"""

    @cached_property
    def cosine(self) -> Float[Tensor, " d_sae"]:
        """Of each decoder row with the probe."""
        return probe_cosines(self.W_dec, self.probe)

    @cached_property
    def raw(self) -> "Along":
        """Along the probe, whatever the main latents are."""
        return _along(self, None)


class Along(NamedTuple):
    """What firing latents and activations have along a probe, raw or beyond their means."""

    along: Float[Tensor, " entries"]
    """each firing latent's part of the projection on the probe: strength times cosine"""
    cosine: Float[Tensor, " entries"]
    """cosine of that latent's decoder row with the probe"""
    top: Float[Tensor, " n"]
    """the largest part of the projection; -infinity where nothing fires"""
    top_entry: Int[Tensor, " n"]
    """the entry that has it; -1 where nothing fires"""
    whole: Float[Tensor, " n"]
    """the activation's projection on the probe"""


class Projections(NamedTuple):
    """What scores of any gates are made of. Only latents that fire can absorb."""

    codes: TokenCodes
    """of the n rows; its entries are those of ``along``, ``cosine`` and ``is_main``"""
    along: Float[Tensor, " entries"]
    """as in `Along`, and so are ``cosine``, ``top``, ``top_entry`` and ``whole``"""
    cosine: Float[Tensor, " entries"]
    is_main: Bool[Tensor, " entries"]
    top: Float[Tensor, " n"]
    top_entry: Int[Tensor, " n"]
    whole: Float[Tensor, " n"]
    carried: Float[Tensor, " n"]
    """the main latents' part of it"""
    silent: Bool[Tensor, " n"]
    """whether all main latents are"""


def projections(concept: ConceptAtSae, main: list[int], centre: Centre | None = None) -> Projections:
    """Projections on the probe's direction; with ``centre``, of what x and strengths are beyond their means."""
    codes, parts = concept.codes, concept.raw if centre is None else _along(concept, centre)
    of_main = torch.zeros(codes.d_sae, dtype=torch.bool)
    of_main[main] = True
    is_main = of_main.index_select(0, codes.latent)
    entry = is_main.nonzero().flatten()
    # a silent main latent is below its mean
    means = torch.zeros(codes.d_sae) if centre is None else centre.strength.to(codes.strength) * concept.cosine
    below = means[main].sum() - codes.sums(means[codes.latent[entry]], entry)
    return Projections(
        codes=codes,
        along=parts.along,
        cosine=parts.cosine,
        is_main=is_main,
        top=parts.top,
        top_entry=parts.top_entry,
        whole=parts.whole,
        carried=codes.sums(parts.along[entry], entry) - below,
        silent=codes.sums((codes.strength[entry] >= SILENT).float(), entry) == 0,
    )


def _along(concept: ConceptAtSae, centre: Centre | None) -> Along:
    codes, x, probe = concept.codes, concept.x, concept.probe
    strength, cosine = codes.strength, concept.cosine.index_select(0, codes.latent)
    if centre is not None:
        x = x - centre.x.to(x)
        strength = strength - centre.strength.to(strength).index_select(0, codes.latent)
    along = strength * cosine
    return Along(along, cosine, *codes.largest(along), x @ (probe / probe.norm()))


def probe_cosines(W_dec: Float[Tensor, "d_sae d_in"], probe: Float[Tensor, " d_in"]) -> Float[Tensor, " d_sae"]:
    """Cosine of each decoder row with the probe; 0 for a row of zeros."""
    return (W_dec @ (probe / probe.norm())) / W_dec.norm(dim=1).clamp_min(1e-12)


def full_scores(parts: Projections, cos: float = COS_FULL, share: float = SHARE) -> Bool[Tensor, " n"]:
    """All main latents silent, and one other, of at least this cosine, carries at least this share of the projection.

    As in SAEBench, only the latent with the largest projection is asked for its cosine.
    """
    top, cosine = parts.top, at_entries(parts.cosine, parts.top_entry)
    return parts.silent & (cosine >= cos) & (parts.whole > 0) & (top > 0) & (top >= share * parts.whole)


def fraction_scores(parts: Projections, cos: float = COS_FRACTION, share: float = SHARE) -> Float[Tensor, " n"]:
    """The part of the projection carried by the top absorbers instead of the main latents, 0 to 1.

    0 where they carry less than this share, and where they carry nothing.
    """
    others = (~parts.is_main & (parts.cosine >= cos) & (parts.along > 0)).nonzero().flatten()
    absorbed = parts.codes.top_sums(parts.along[others], others, ABSORBERS)
    part = torch.minimum(absorbed, parts.whole - parts.carried)
    fraction = torch.where(parts.carried <= 0, 1.0, (part / (part + parts.carried)).clamp(0, 1))
    none = (parts.whole <= 0) | (parts.carried >= parts.whole) | (absorbed < share * parts.whole) | (absorbed <= 0)
    return torch.where(none, 0.0, fraction)


def ungated_scores(parts: Projections) -> Float[Tensor, " n"]:
    """The part of the projection that all other latents together carry instead of the main ones, 0 to 1.

    No cosine, no share and no number of latents is asked for, so that an absorber cut into many scores as before. What
    others take away from the projection is counted too: many that mean nothing for the concept then cancel, and do not
    fill a hole as they would at gates of 0.
    """
    others = (~parts.is_main).nonzero().flatten()
    carried = parts.carried.clamp_min(0)
    part = torch.minimum(parts.codes.sums(parts.along[others], others), parts.whole - carried).clamp_min(0)
    return torch.where(parts.whole > 0, part / parts.whole.clamp_min(1e-12), 0.0)


class Absorption(NamedTuple):
    """One concept's scores, averaged within token types first, so that frequent tokens do not decide."""

    candidates: int
    types: int
    full: float
    fraction: float
    ungated_fraction: float
    """mean of `ungated_scores`"""
    hole_rate: float
    """share of candidates on which all main latents are silent"""
    recovered: float
    """on those holes, projection of x_hat - b_dec on the probe over that of x - b_dec; NaN without holes"""


def absorption(concept: ConceptAtSae, main: list[int]) -> Absorption | None:
    """Scores of one concept on its candidate rows; None without candidates or main latents."""
    x, token_id, probe = concept.x, concept.token_id, concept.probe
    if not len(x) or not main:
        return None
    parts = projections(concept, main)
    actual = (x if concept.b_dec is None else x - concept.b_dec) @ (probe / probe.norm())
    holes = parts.silent & (actual > 0)
    rebuilt = parts.along[holes[parts.codes.token]].double().sum()
    return Absorption(
        candidates=len(x),
        types=len(token_id.unique()),
        full=type_mean(full_scores(parts), token_id),
        fraction=type_mean(fraction_scores(parts), token_id),
        ungated_fraction=type_mean(ungated_scores(parts), token_id),
        hole_rate=type_mean(parts.silent, token_id),
        recovered=float(rebuilt / actual[holes].double().sum()) if holes.any() else float("nan"),
    )


class Gate(NamedTuple):
    """Scores at one pair of gates. At share 0 anything a latent carries is enough."""

    centred: bool
    cos: float
    share: float
    full: float
    fraction: float


def gate_sweep(concept: ConceptAtSae, main: list[int], centre: Centre) -> list[Gate]:
    """Both scores at every pair of gates, each gate for both, on raw and on centred activations.

    Empty without candidates or main latents.
    """
    if not len(concept.x) or not main:
        return []
    gates = []
    for centred in (False, True):
        parts = projections(concept, main, centre if centred else None)
        for cos in SWEPT_COS:
            for share in SWEPT_SHARE:
                full = type_mean(full_scores(parts, cos, share), concept.token_id)
                fraction = type_mean(fraction_scores(parts, cos, share), concept.token_id)
                gates.append(Gate(centred, cos, share, full, fraction))
    return gates


class MainLatents(NamedTuple):
    """A concept's main latents taken as a detector that says yes where any of them fires; no regression, no threshold."""

    recall: float
    """share of the concept's rows on which a main latent fires; NaN without such rows"""
    precision: float
    """share of the rows on which a main latent fires that have the concept; NaN if none ever fires"""
    hubs: list[int]
    """those that fire on half of all rows or more: they fill holes without meaning the concept"""


def main_latents(codes: TokenCodes, labels: Bool[Tensor, " n"], main: list[int]) -> MainLatents:
    """How far the main latents are the concept's, on rows with and without it."""
    fires = codes.columns(main) > 0
    predicted = fires.any(1)
    hits, actual, positive = (float(rows.sum()) for rows in (predicted & labels, labels, predicted))
    return MainLatents(
        recall=hits / actual if actual else float("nan"),
        precision=hits / positive if positive else float("nan"),
        hubs=[latent for latent, share in zip(main, fires.double().mean(0).tolist(), strict=True) if share >= HUB],
    )


def control(
    concept: ConceptAtSae, main: list[int], firing_frequency: Float[Tensor, " d_sae"], seed: int
) -> Absorption | None:
    """``absorption`` with as many random latents that fire as often in the main latents' place, the mean of some repeats.

    firing_frequency: share of all rows on which each latent fires. ``recovered`` is the mean over repeats that have holes.
    """
    repeats = [
        absorption(concept, stand_ins(firing_frequency, main, derive("control", seed, repeat)))
        for repeat in range(REPEATS)
    ]
    scored = [repeat for repeat in repeats if repeat is not None]
    if not scored:
        return None

    def mean(key: str) -> float:
        return float(torch.tensor([getattr(repeat, key) for repeat in scored], dtype=torch.float64).nanmean())

    scores = {key: mean(key) for key in ("full", "fraction", "ungated_fraction", "hole_rate", "recovered")}
    return Absorption(scored[0].candidates, scored[0].types, **scores)


def stand_ins(firing_frequency: Float[Tensor, " d_sae"], main: list[int], seed: int) -> list[int]:
    """For each main latent a random other one, all different, of those nearest to it in log firing frequency.

    Fewer than there are main latents only if there are not as many others.
    """
    generator = torch.Generator().manual_seed(seed)
    free = torch.ones(len(firing_frequency), dtype=torch.bool)
    free[main] = False
    level = firing_frequency.double().clamp_min(1e-12).log()
    chosen: list[int] = []
    for latent in main[: int(free.sum())]:
        distance = torch.where(free, (level - level[latent]).abs(), torch.inf)
        near = distance.topk(min(FREQUENCY_NEIGHBOURS, int(free.sum())), largest=False).indices
        chosen.append(int(near[torch.randint(len(near), (1,), generator=generator)]))
        free[chosen[-1]] = False
    return chosen


def type_mean(values: Tensor, token_id: Tensor) -> float:
    """Mean over token types of the mean over their rows."""
    _, types = token_id.unique(return_inverse=True)
    sums = torch.zeros(int(types.max()) + 1, dtype=torch.float64).index_add_(0, types, values.double())
    return float((sums / torch.bincount(types)).mean())
