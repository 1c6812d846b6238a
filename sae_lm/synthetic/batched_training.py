"""Train many small SAEs at once, every trial with every seed in one tensor program.

The step is that of ``sae-lm train`` (sae_lm.training.trainer): scaled inputs, the same start, schedule, clipping, unit decoder
rows; the tests train one SAE by both and compare weights. differs: penalties are taken anew at every step, and nothing
revives dead latents, since a toy shall show what a loss leads to. An SAE of 96 latents leaves a processor
idle between operations; in tensors [trials, seeds, ...] sixty cost what a few do one by one.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lm.penalties.arms import Arm
from sae_lm.penalties.c2r import scale as c2r_scale
from sae_lm.penalties.term import first_step, warm_up_share
from sae_lm.runtime.seeds import derive
from sae_lm.sae.directions import unit_rows
from sae_lm.synthetic.batched_optimizer import ManyWeights, hold, make_many
from sae_lm.synthetic.batched_penalties import penalties
from sae_lm.synthetic.worlds import Inputs, World, all_inputs, directions, inputs, some_inputs
from sae_lm.training.prefixes import drawn_widths, prefix_weights
from sae_lm.training.recipe import default_widths
from sae_lm.training.schedules import firing_weight, learning_rate, threshold_weight
from sae_lm.training.start import keep_near

MOMENTS = 20_000
"""Inputs from which mean and scale are taken where a world is not listed."""
AT_ONCE = 1_200_000
"""Activations of all SAEs trained together at most: more do not fit a processor's cache, and take longer each."""


class ToyTrial(NamedTuple):
    """An arm as ``sae-lm train`` reads it, and what only a toy can ask for."""

    arm: Arm
    stop: float = 1.0
    """share of the steps after which the penalty is off: does what it made stay?"""
    truth: Literal["unknown", "start", "fixed"] = "unknown"
    """first decoder rows (and encoder's) that are the true features: as the start, or held there in the decoder. What
    the loss alone makes of the truth, and what the truth costs: references for what any penalty can reach"""

    widths: tuple[int, ...] | None = None
    """matryoshka: the nested prefixes; None: the trainer's"""
    again: bool = False
    """from another start, on the same inputs: does it come to the same latents?"""

    @property
    def name(self) -> str:
        known = {"unknown": self.arm.name, "start": "truth at the start", "fixed": "truth held"}
        nested = f", widths {'/'.join(map(str, self.widths))}" if self.widths else ""
        ended = f", off at {self.stop:g}" if self.stop < 1 else ""
        return known[self.truth] + nested + ended + (", again" if self.again else "")


class ToyRecipe(NamedTuple):
    """How the SAEs of one world are trained. Arms say what else they want: ``@arch=``, ``@k=``."""

    d_sae: int
    arch: str
    steps: int
    lr: float
    k: int = 1
    l1: float = 0.0
    """relu: weight of the sum of activations, which are scaled as the inputs are"""
    batch: int = 256
    warm_up: float = 0.05
    decay: float = 0.2
    start: Literal["random", "inputs"] = "random"
    """first directions: random, or inputs with as much noise, which none is dead at"""
    bias: bool = True
    """b_dec, which starts at the mean; False: none, and the origin is known"""
    optimizer: Literal["row_rms", "adam"] = "adam"
    """measured, see configs/README.md: row_rms at its default rate leaves more of so few latents dead"""


class Saes(NamedTuple):
    """One SAE per trial and seed, for inputs as the world makes them."""

    encoder: Float[Tensor, "trials seeds d_sae d_in"]
    b_enc: Float[Tensor, "trials seeds d_sae"]
    W_dec: Float[Tensor, "trials seeds d_sae d_in"]
    """rows of norm 1"""
    b_dec: Float[Tensor, "trials seeds d_in"]
    threshold: Float[Tensor, "trials seeds"]
    """batchtopk, matryoshka: what a pre-activation must be above; else 0"""


def train(world: World, trials: Sequence[ToyTrial], recipe: ToyRecipe, seeds: int) -> Saes:
    """Train every trial with every seed.

    Trials of a seed share directions, start and inputs. All must be of one `kind`.
    """
    rows = len(all_inputs(world, 1).weight) if world.listed else recipe.batch
    at_once = max(1, AT_ONCE // (seeds * rows * recipe.d_sae))
    order = sorted(range(len(trials)), key=lambda i: _form(trials[i].arm))  # equal penalties are one product
    parts = [
        _train([trials[i] for i in order[a : a + at_once]], world, recipe, seeds) for a in range(0, len(order), at_once)
    ]
    back = torch.tensor(order).argsort()
    return Saes(*(torch.cat(tensors)[back] for tensors in zip(*parts, strict=True)))


class Kind(NamedTuple):
    """What SAEs of one tensor program share."""

    arch: str
    k: int
    widths: tuple[int, ...] | None
    """matryoshka: the nested prefixes"""
    balance: float
    prefixes: int
    """matryoshka: how many are drawn at every step instead; 0: none"""


def kind(trial: ToyTrial, recipe: ToyRecipe) -> Kind:
    arm, arch = trial.arm, trial.arm.arch or recipe.arch
    k = arm.k or recipe.k
    if arch != "matryoshka" or arm.balance == 0:
        return Kind(arch, k, None, 1.0, 0)
    widths = trial.widths or arm.widths or default_widths(recipe.d_sae)
    return Kind(arch, k, widths, arm.balance, arm.prefixes or 0)


def _train(trials: Sequence[ToyTrial], world: World, recipe: ToyRecipe, seeds: int) -> Saes:
    (of_all,) = {kind(trial, recipe) for trial in trials}
    arch, k = of_all.arch, of_all.k
    drawn_by = [torch.Generator().manual_seed(derive("prefixes", seed)) for seed in range(seeds)]
    features = torch.stack([directions(world, seed) for seed in range(seeds)])
    mean, scale = moments(world, features)
    truth = features / scale[:, None, None]  # what the first rows would be in scaled units, but for the norm
    weights = _start(trials, world, recipe, features, mean / scale[:, None])
    optimizer = make_many(recipe.optimizer, weights)
    frequency = torch.zeros(len(trials), seeds, recipe.d_sae)
    threshold = torch.zeros(len(trials), seeds)
    groups = list(_groups(trials))
    fixed = torch.tensor([trial.truth == "fixed" for trial in trials])
    held = [(i, weights.W_dec[i].detach().clone(), trial.arm) for i, trial in enumerate(trials) if trial.arm.is_held]
    batches = _batches(world, seeds, recipe.batch)
    for step in range(recipe.steps):
        batch = next(batches)
        x = batch.sizes @ truth
        centred = x - weights.b_dec.unsqueeze(-2)
        pre = centred @ weights.encoder.mT + weights.b_enc.unsqueeze(-2)
        fires, smallest = _fires(pre.detach(), arch, k)
        z = torch.where(fires, pre, 0.0)
        nested = _nested(of_all, recipe.d_sae, drawn_by)
        loss = (_errors(centred, z, weights.W_dec, nested, of_all.balance) * batch.weight).sum()
        if recipe.l1 and arch == "relu":
            share = warm_up_share(step, recipe.warm_up * recipe.steps)
            loss = loss + recipe.l1 * share * (z.sum(-1) * batch.weight).sum()
        for first, last, group in groups:
            coefficient = torch.tensor([_coefficient(trial, step, recipe.steps) for trial in group])
            if coefficient.any():
                here = slice(first, last)
                value = _penalties(group, weights, z[here], fires[here], batch.weight, frequency[here], here)
                loss = loss + (coefficient[:, None] * value).sum()
        for weight in weights:
            weight.grad = None
        loss.backward()
        for i, _, arm in held:
            _drop_gradients(weights, i, arm)
        hold(weights, fixed, world.size, recipe.bias)
        optimizer.update(weights, learning_rate(step, recipe.steps, recipe.lr, recipe.warm_up, recipe.decay))
        for i, first, arm in held:
            if arm.decoder is not None:
                keep_near(weights.W_dec.data[i], first, 1.0 if arm.decoder == "frozen" else float(arm.decoder))
        frequency.lerp_((fires * batch.weight[:, None]).sum(-2), firing_weight(step))
        if smallest is not None:
            threshold.lerp_(smallest.clamp_min(0), threshold_weight(step, recipe.steps))
    with torch.no_grad():
        return Saes(
            encoder=weights.encoder.detach(),
            b_enc=weights.b_enc.detach() * scale[:, None],
            W_dec=weights.W_dec.detach(),
            b_dec=weights.b_dec.detach() * scale[:, None],
            threshold=threshold * scale,
        )


def moments(
    world: World, features: Float[Tensor, "seeds features d_in"]
) -> tuple[Float[Tensor, "seeds d_in"], Float[Tensor, " seeds"]]:
    """Mean input, and the root of the squared error of predicting it."""
    sample = inputs(world, len(features), MOMENTS, "moments")
    x = sample.sizes @ features
    mean = (x * sample.weight[:, None]).sum(1)
    return mean, ((x - mean[:, None]).square().sum(-1) * sample.weight).sum(-1).sqrt()


def _start(
    trials: Sequence[ToyTrial], world: World, recipe: ToyRecipe, features: Tensor, mean: Float[Tensor, "seeds d_in"]
) -> ManyWeights:
    """First weights, equal for all trials of a seed but those that know the truth, or begin elsewhere."""
    rows = _first_rows(world, recipe, features, "weights").repeat(len(trials), 1, 1, 1)
    for i, trial in enumerate(trials):
        if trial.again:
            rows[i] = _first_rows(world, recipe, features, "other weights")
        if trial.truth != "unknown":
            rows[i, :, : world.size] = features
    b_dec = mean.repeat(len(trials), 1, 1) if recipe.bias else torch.zeros(len(trials), *mean.shape)
    b_enc = torch.zeros(rows.shape[:-1])
    return ManyWeights(*(w.clone().requires_grad_() for w in (rows, b_enc, rows, b_dec)))


def _first_rows(world: World, recipe: ToyRecipe, features: Tensor, purpose: str) -> Float[Tensor, "seeds d_sae d_in"]:
    first = []
    for seed in range(len(features)):
        generator = torch.Generator().manual_seed(derive(purpose, seed))
        rows = torch.randn(recipe.d_sae, world.d_in, generator=generator)
        if recipe.start == "inputs":
            some = all_inputs(world, 1) if world.listed else some_inputs(world, MOMENTS, [generator])
            weight = some.weight * (some.sizes[0].sum(1) > 0)
            drawn = torch.multinomial(weight, recipe.d_sae, replacement=True, generator=generator)
            rows = some.sizes[0, drawn] @ features[seed] + rows / world.d_in**0.5
        first.append(unit_rows(rows))
    return torch.stack(first)


def _batches(world: World, seeds: int, batch: int) -> Iterator[Inputs]:
    generators = [torch.Generator().manual_seed(derive("batches", seed)) for seed in range(seeds)]
    listed = all_inputs(world, seeds) if world.listed else None
    while True:
        yield listed or some_inputs(world, batch, generators)


def _groups(trials: Sequence[ToyTrial]) -> Iterator[tuple[int, int, list[ToyTrial]]]:
    """Neighbouring trials whose penalties differ by coefficient and margin alone: (first, last, trials)."""
    first = 0
    for last in range(1, len(trials) + 1):
        if last == len(trials) or _form(trials[first].arm) != _form(trials[last].arm):
            if trials[first].arm.penalty != "none":
                yield first, last, list(trials[first:last])
            first = last


def _form(arm: Arm) -> tuple[str, bool, str]:
    """What the penalties of one product have in common."""
    return arm.penalty, arm.anchored, arm.on or "decoder"


def _penalties(
    group: Sequence[ToyTrial],
    weights: ManyWeights,
    z: Float[Tensor, "group seeds n d_sae"],
    fires: Bool[Tensor, "group seeds n d_sae"],
    weight: Float[Tensor, " n"],
    firing_frequency: Float[Tensor, "group seeds d_sae"],
    here: slice,
) -> Float[Tensor, "group seeds"]:
    """The penalty of each SAE of a group, which is ``here`` among all trials."""
    penalty, anchored, on = _form(group[0].arm)
    coactivation, norms = None, None
    if penalty == "c2r":
        squares = c2r_scale(1, z.shape[-1]) * (z.square() * weight[:, None]).sum(-2)
        norms = torch.where(squares > 0, squares.clamp_min(1e-30).sqrt(), 0)
    if penalty in ("coactive", "silent"):
        fired = fires.float()
        coactivation = (fired * weight[:, None]).mT @ fired
    margin = torch.tensor([trial.arm.margin for trial in group])[:, None, None]
    rows = weights.encoder if on == "encoder" else weights.W_dec
    return penalties(
        penalty, rows[here], firing_frequency, coactivation, margin, anchored, norms, weights.encoder[here]
    )


def _drop_gradients(weights: ManyWeights, trial: int, arm: Arm) -> None:
    """What is frozen has no gradient, and no part in the norm that is clipped."""
    for weight, how in ((weights.W_dec, arm.decoder), (weights.encoder, arm.encoder)):
        if how == "frozen" and weight.grad is not None:
            weight.grad[trial] = 0


def _coefficient(trial: ToyTrial, step: int, steps: int) -> float:
    """As sae_lm.penalties.term schedules it, and 0 once it is off."""
    arm = trial.arm
    first = first_step(steps, arm.start or 0.0, arm)
    if step < first or step >= trial.stop * steps:
        return 0.0
    return arm.coefficient * warm_up_share(step - first, (arm.warm_up or 0.0) * steps)


@torch.no_grad()
def _fires(
    pre: Float[Tensor, "trials seeds n d_sae"], arch: str, k: int
) -> tuple[Bool[Tensor, "trials seeds n d_sae"], Float[Tensor, "trials seeds"] | None]:
    """Which latents fire, and for those chosen over a batch the smallest that was."""
    if arch == "topk":
        cut = pre.amax(-1, keepdim=True)
        for _ in range(k - 1):  # measured: at k 3 of 96 a quarter of the time of torch.topk
            cut = pre.masked_fill(pre >= cut, -torch.inf).amax(-1, keepdim=True)
        return (pre >= cut) & (pre > 0), None
    if arch == "relu":
        return pre > 0, None
    assert arch in ("batchtopk", "matryoshka")
    flat, count = pre.flatten(-2), k * pre.shape[-2]
    last = flat.shape[-1] - count
    # measured: numpy's partition takes a tenth of the time of torch.topk
    smallest = torch.from_numpy(np.partition(flat.numpy(), last)[..., last, None])
    above, ties = flat > smallest, flat == smallest  # equal inputs tie, those without a feature first of all
    left = count - above.sum(-1, keepdim=True)
    chosen = above | (ties & (ties.cumsum(-1, dtype=torch.int32) <= left))
    return chosen.view_as(pre) & (pre > 0), smallest[..., 0]


def _nested(
    of_all: Kind, d_sae: int, drawn_by: Sequence[torch.Generator]
) -> tuple[int, ...] | Int[Tensor, "seeds slices"] | None:
    """This step's prefixes: None, the same at every step, or each seed's own draw."""
    if not of_all.prefixes:
        return of_all.widths
    return torch.stack([drawn_widths(of_all.prefixes, d_sae, generator) for generator in drawn_by])


def _errors(
    centred: Float[Tensor, "trials seeds n d_in"],
    z: Float[Tensor, "trials seeds n d_sae"],
    W_dec: Float[Tensor, "trials seeds d_sae d_in"],
    nested: tuple[int, ...] | Int[Tensor, "seeds slices"] | None,
    balance: float,
) -> Float[Tensor, "trials seeds n"]:
    """Squared error, the weighted mean over nested prefixes of the dictionary where there are."""
    if nested is None:
        return (centred - z @ W_dec).square().sum(-1)
    total = []
    if isinstance(nested, tuple):
        residual, first = centred, 0
        for width in nested:
            residual = residual - z[..., first:width] @ W_dec[..., first:width, :]
            total.append(residual.square().sum(-1))
            first = width
    else:
        for widths in nested.T:
            within = torch.arange(W_dec.shape[-2]) < widths[:, None, None]
            total.append((centred - torch.where(within, z, 0.0) @ W_dec).square().sum(-1))
    if balance == 1:
        return torch.stack(total).mean(0)
    weights = prefix_weights(torch.tensor(balance, dtype=torch.float64), len(total)).to(z.dtype)
    return torch.stack(total, -1) @ weights


@torch.no_grad()
def encode(
    saes: Saes, x: Float[Tensor, "seeds n d_in"], trial: int, arch: str, k: int
) -> Float[Tensor, "seeds n d_sae"]:
    """One trial's codes, as the SAE would be used: with its threshold where it has one."""
    pre = (x - saes.b_dec[trial, :, None]) @ saes.encoder[trial].mT + saes.b_enc[trial, :, None]
    if arch in ("topk", "relu"):
        fires = _fires(pre[None], arch, k)[0][0]
    else:
        fires = (pre > saes.threshold[trial, :, None, None]) & (pre > 0)
    return torch.where(fires, pre, 0.0)
