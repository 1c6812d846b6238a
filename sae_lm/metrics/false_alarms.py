"""Count holes at equal false alarms: what main latents miss once they may fire wrongly as often as those of other SAEs.

Hole rate alone can be had for nothing. Multiply the encoder weights and biases of a concept's main latents by 1.4 and
divide their decoder rows by as much: they fire more often, fewer tokens are holes, and nothing is absorbed less. So
before holes are counted, the main latents of every SAE are turned up or down by that same edit, one factor per concept,
until they fire on the same share of tokens without the concept. What the edit can give then counts for nobody.

The factor needs no search. A row's *gate ratio* is how far above its gate the strongest main latent is: they fire where
it is above 1, and turned up by a factor they fire where it is above 1 over that factor. A threshold on the strengths
of the codes would not do: it can only turn down, and after the edit above it still left .012 to .035 fewer holes.

No factor makes a latent fire where its pre-activation is negative. Where the rows above 0 are too few for the share
that all are brought to, those follow for which pre-activation times gate is nearest below 0: an order that the edit
leaves as it is, and in which a row with less to pass comes first. So every share has its threshold; where it is below 0
no factor reaches it, and the threshold is of no SAE. A report says of how many concepts, and gives holes without these.

Why false alarms and not precision. Every rate of false alarms can be reached by every SAE; a precision cannot, and then
nothing can be compared. It also rests on all rows without the concept, not on a ratio of two small counts. And of two
SAEs with equal false alarms the one with fewer holes has the higher precision, unless it fires more where the probe
wrongly says yes: such rows are in neither rate, and a report says where precision falls. Measured on three SAEs of the
embedded model that differ by seed alone, 16 concepts: a concept's holes vary over seeds by .135 at equal false alarms
and .174 at equal precision; and held to the precision of one, another seems to have .018 more holes, where at false
alarms that all share it has none more.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_lm.metrics.codes import Ranked, TokenCodes
from sae_lm.metrics.graded_saes import PlantedSAE
from sae_lm.sae.model import SAE

LEAST_GATE = 1e-9
"""A gate at or below 0 counts as this: pre-activations above 0 fire, and keep their order."""


class OperatingPoint(NamedTuple):
    """What main latents do as a detector, taken to fire where any of them does. NaN where there are no such rows."""

    false_alarms: float
    """share of the rows without the concept, by label and by probe, on which they fire"""
    precision: float
    """share of the rows on which they fire that have the concept"""


def operating_point(
    fires: Bool[Tensor, " n"], labels: Bool[Tensor, " n"], absent: Bool[Tensor, " n"]
) -> OperatingPoint:
    """labels: rows with the concept. absent: rows that lack it by their label and by the probe."""
    firing = int(fires.sum())
    return OperatingPoint(
        false_alarms=float(fires[absent].double().mean()),
        precision=int((fires & labels).sum()) / firing if firing else math.nan,
    )


def points_by_count(
    codes: TokenCodes, ranking: Sequence[int], labels: Bool[Tensor, " n"], absent: Bool[Tensor, " n"]
) -> list[OperatingPoint]:
    """With the first 1, 2, ... latents of the ranking, as the SAE is."""
    fires = codes.columns([*ranking]).gt(0).cumsum(1) > 0
    return [operating_point(fires[:, count], labels, absent) for count in range(len(ranking))]


@torch.no_grad()
def gate_ratios(
    sae: SAE, batches: Iterable[Float[Tensor, "_ d_in"]], main: Sequence[Sequence[int]], ranked: Ranked | None = None
) -> Float[Tensor, "n concepts"]:
    """Of each row and each concept's main latents, the largest pre-activation over the gate that it has to pass (times it,
    where that is negative).

    topk: the gate is the k-th largest pre-activation of the other latents. jumprelu: the latent's threshold. Both are
    passed above 1, and so is groupmax's: the largest of the others of the latent's block. standard: a factor changes
    nothing there, the edit that is free is one of the bias; the largest pre-activation times norm of the decoder row
    stands for the ratio, and the gate is passed above 0. Negative where all pre-activations of the main latents are.
    A planted latent passes its gate where its probe says yes, however it is turned; the ratio is negative elsewhere, and
    minus infinity, which no threshold is below, where another latent absorbs it.
    main: of each concept, one latent or more. ranked: of these rows, where `encode_sparse` kept it with as many
    runners-up as a concept has main latents; then the others' pre-activations are not made again.
    """
    if ranked is not None:
        return _ratios_ranked(sae, batches, main, ranked)
    parts = [torch.stack([ratio.float().cpu() for ratio in _ratios(sae, x.to(sae.W_dec), main)], 1) for x in batches]
    return torch.cat(parts) if parts else torch.zeros(0, len(main))


def has_gate(sae: SAE) -> bool:
    """Whether it is a factor that main latents are turned by, which reaches no row of negative pre-activations."""
    return sae.config.architecture != "standard"


def _ratios(sae: SAE, x: Tensor, main: Sequence[Sequence[int]]) -> list[Tensor]:
    if isinstance(sae, PlantedSAE):
        return _ratios_planted(sae, x, main)
    architecture = sae.config.architecture
    if architecture in ("jumprelu", "standard"):
        return _ratios_alone(sae, x, main)
    pre = sae.pre_activations(x)
    if architecture == "topk":
        width = min((sae.config.k or 0) + max(map(len, main)), pre.shape[1])
        largest = pre.topk(width, dim=1)
        gates = [_gate(largest.values, largest.indices, own, sae) for own in main]
        return [_over(pre[:, [*own]].amax(1), gate) for own, gate in zip(main, gates, strict=True)]
    return [_over(pre[:, [*own]], _largest_of_others(pre, own, sae.config.k or 1)).amax(1) for own in main]


def _over(pre: Tensor, gate: Tensor) -> Tensor:
    """pre / gate; where that is negative pre * gate, so that a higher gate is further from 0 there too. A factor on pre
    leaves both orders as they are."""
    return torch.where(pre >= 0, pre / gate, pre * gate)


def _ratios_ranked(
    sae: SAE, batches: Iterable[Float[Tensor, "_ d_in"]], main: Sequence[Sequence[int]], ranked: Ranked
) -> Float[Tensor, "n concepts"]:
    """A main latent that is not among the largest is below all of them: only there does its own value come from x."""
    latents, place = _places(main)
    pre = torch.cat([sae.pre_activations(x.to(sae.W_dec), latents).float().cpu() for x in batches])
    values, of_values = ranked
    ratios = []
    for own in main:
        is_own = torch.zeros(sae.config.d_sae, dtype=torch.bool)
        is_own[[*own]] = True
        there = values.masked_fill(~is_own[of_values], -torch.inf).amax(1)
        lower = pre[:, [place[latent] for latent in own]].amax(1)
        ratios.append(_over(there.maximum(lower), _gate(values, of_values, own, sae)))
    return torch.stack(ratios, 1)


def _places(main: Sequence[Sequence[int]]) -> tuple[list[int], dict[int, int]]:
    """All main latents, and where each is among them."""
    latents = sorted({latent for own in main for latent in own})
    return latents, {latent: number for number, latent in enumerate(latents)}


def _ratios_planted(sae: PlantedSAE, x: Tensor, main: Sequence[Sequence[int]]) -> list[Tensor]:
    """The trained latents compete with each other alone, as they did before others were planted beside them."""
    count = sae.trained.config.d_sae
    logits = sae.logits(x).float()
    planted = torch.where(logits > 0, 1 + logits / LEAST_GATE, logits)
    trained = [[latent for latent in own if latent < count] for own in main]
    ratios = []
    for own, kept, ratio in zip(main, trained, _ratios(sae.trained, x, [kept or [0] for kept in trained]), strict=True):
        columns = [planted[:, latent - count] for latent in own if latent >= count]
        ratios.append(torch.stack([*columns, ratio] if kept else columns).amax(0))
    return ratios


def _ratios_alone(sae: SAE, x: Tensor, main: Sequence[Sequence[int]]) -> list[Tensor]:
    """Where no other latent decides whether one fires, the others' pre-activations are not made."""
    latents, place = _places(main)
    pre = sae.pre_activations(x, latents)
    if sae.config.architecture == "jumprelu":
        ratios = _over(pre, sae.threshold[latents].clamp_min(LEAST_GATE))
    else:
        ratios = pre * sae.W_dec[latents].norm(dim=1)
    return [ratios[:, [place[latent] for latent in own]].amax(1) for own in main]


def _gate(values: Tensor, latents: Tensor, main: Sequence[int], sae: SAE) -> Tensor:
    """[n] the k-th largest of the others' pre-activations, given the largest of all in descending order."""
    other = torch.ones(sae.config.d_sae, dtype=torch.bool, device=values.device)
    other[[*main]] = False
    place = (other[latents].cumsum(1) < (sae.config.k or 0)).sum(1, keepdim=True)
    there = place < values.shape[1]  # where there are not k others, nothing keeps a main latent from firing
    gate = values.gather(1, place.clamp_max(values.shape[1] - 1))
    return torch.where(there, gate, 0.0)[:, 0].clamp_min(LEAST_GATE)


def _largest_of_others(pre: Tensor, main: Sequence[int], blocks: int) -> Tensor:
    """[n, main] for each main latent the largest pre-activation in its block that is no main latent's."""
    others = pre.clone()
    others[:, [*main]] = -torch.inf
    size = pre.shape[1] // blocks
    largest = others.unflatten(1, (blocks, size)).amax(2)
    return largest[:, [latent // size for latent in main]].clamp_min(LEAST_GATE)


def threshold_at_false_alarms(ratio: Float[Tensor, " n"], rate: float) -> float:
    """The threshold above which this share of the rows lies, by whole rows; of ties at it none.

    ratio: of rows without the concept. Minus infinity where all rows are to lie above.
    """
    ordered = ratio.sort(descending=True).values
    count = round(rate * len(ordered))
    return float(ordered[count]) if count < len(ordered) else -math.inf


def threshold_at_precision(ratio: Float[Tensor, " n"], labels: Bool[Tensor, " n"], precision: float) -> float:
    """The lowest threshold above which at least this share of the rows have the concept; infinity where none has."""
    order = ratio.argsort(descending=True, stable=True)
    ordered = ratio[order]
    reached = labels[order].double().cumsum(0) / torch.arange(1, len(order) + 1) >= precision
    reached[:-1] &= ordered[1:] < ordered[:-1]  # of equal ratios all rows are in or none
    reached &= ordered > -math.inf  # such rows never fire
    if not reached.any():
        return math.inf
    last = int(reached.nonzero().max())
    return float(ordered[last + 1]) if last + 1 < len(ordered) else -math.inf
