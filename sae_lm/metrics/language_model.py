"""Measure what it costs the language model to read an SAE's reconstruction: cross-entropy and KL divergence."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lm.lm.device_map import input_device
from sae_lm.metrics.codes import active, decode_active
from sae_lm.metrics.reconstruction import share_of
from sae_lm.sae.model import SAE

if TYPE_CHECKING:
    from sae_lm.lm.bridge import TransformerBridge


Name = TypeVar("Name")


LOGITS = 1 << 26
"""Logits of one batch of contexts, at most: 256 MiB in float32, of which a few copies are held."""
FEW, AHEAD = 8, 0.02
"""Tokens of which the last is changed, and the change of the others' logits, in their norm, from which a model looks
ahead. measured: 0 on SmolLM2 in float32 and in bfloat16, .39 to .69 on a small BERT."""


class CrossEntropy(NamedTuple):
    """Nats per token, over predictions made from tokens that are not special."""

    tokens: int
    clean: float
    """the model as it is"""
    spliced: float
    """with the SAE's reconstruction at its hook, special tokens left alone, no error term"""
    ablated: float
    """with zeros at the hook, at every position"""
    kl_spliced: float = float("nan")
    """KL(P_clean || P_spliced)"""
    kl_ablated: float = float("nan")
    """KL(P_clean || P_ablated)"""
    mean_ablated: float = float("nan")
    """cross-entropy with the mean row at the hook, special tokens left alone: another reference than zeros, and not the
    one that others report; NaN where no mean was given"""

    @property
    def recovered(self) -> float:
        """(ablated - spliced) / (ablated - clean): 1 is lossless, 0 is as bad as zeros; NaN where zeros cost nothing."""
        return share_of(self.ablated - self.spliced, self.ablated - self.clean)

    @property
    def kl_recovered(self) -> float:
        """(KL_ablated - KL_spliced) / KL_ablated, the KL counterpart of ``recovered``."""
        return share_of(self.kl_ablated - self.kl_spliced, self.kl_ablated)

    @property
    def recovered_from_mean(self) -> float:
        """``recovered`` with the mean row in the place of zeros."""
        return share_of(self.mean_ablated - self.spliced, self.mean_ablated - self.clean)


class HeldOutText(NamedTuple):
    """Contexts whose next tokens are predicted, and the hook at which reconstructions stand in."""

    blocks: Int[Tensor, "contexts pos"]
    """token ids"""
    special: Bool[Tensor, "contexts pos"]
    """tokens whose activation is left alone and from which no prediction counts"""
    hook: str
    mean: Float[Tensor, " d_in"] | None = None
    """the hook's mean row, for the mean-ablated reference"""

    def split(self, contexts: int) -> "list[HeldOutText]":
        """The text so many contexts at a time."""
        parts = zip(self.blocks.split(contexts), self.special.split(contexts), strict=True)
        return [self._replace(blocks=blocks, special=special) for blocks, special in parts]


@dataclass
class Tally:
    """Sums over the predictions of one kind of pass: with zeros, with the mean row, or with one SAE's reconstruction."""

    loss: float = 0.0
    """cross-entropy, nats"""
    divergence: float = 0.0
    """KL divergence from the model as it is, nats"""

    def add(self, logits: Float[Tensor, "n d_vocab"], clean: "_Clean") -> None:
        scale = float(logits.logsumexp(1).double().sum())
        self.loss += scale - _sum_at(logits, clean.target)
        self.divergence += clean.negative_entropy + scale - _inner(clean.probability, logits)


class _Clean(NamedTuple):
    """The model's own predictions on a batch of contexts."""

    target: Int[Tensor, " n"]
    log_probability: Float[Tensor, "n d_vocab"]
    probability: Float[Tensor, "n d_vocab"]
    negative_entropy: float
    """sum of p log p"""


@torch.no_grad()
def looks_ahead(model: "TransformerBridge", tokens: Int[Tensor, " pos"]) -> bool:
    """Whether predictions change with a token that comes after them, as a BERT's do: none is of the next token then."""
    from sae_lm.lm.bridge import FORWARD_KWARGS

    both = tokens[:FEW].long().repeat(2, 1).to(input_device(model))
    both[1, -1] = (both[1, -1] + 1) % model.cfg.d_vocab
    one, other = model(both, return_type="logits", **FORWARD_KWARGS)[:, :-1].float()
    return bool((one - other).norm() > AHEAD * one.norm())


@torch.no_grad()
def cross_entropies(
    model: "TransformerBridge",
    text: HeldOutText,
    saes: Mapping[Name, SAE],
    batch_size: int = 16,
    tell: Callable[[int], object] = lambda contexts: None,
) -> dict[Name, CrossEntropy]:
    """Cross-entropy and KL divergence with each SAE spliced in; the clean and the ablated pass are shared by all.

    Of the model only what follows the hook runs for each SAE (see ``PrefixCache``). Each SAE is asked for once in a batch,
    and one is held at a time, so that the mapping may load them when they are asked for.

    tell: called with the contexts done for an SAE.
    The model has to be causal (see `looks_ahead`): what pads a context at its end changes nothing before it then.
    Definition: SAEBench evals/core/main.py, pooled per token over all contexts, a ratio of means.
    """
    batch_size = max(1, min(batch_size, LOGITS // max(1, text.blocks.shape[1] * model.cfg.d_vocab)))
    device = input_device(model)
    prefix = PrefixCache(model, text.hook)
    count, clean_loss = 0, 0.0
    ablated, mean_ablated, spliced = Tally(), Tally(), {name: Tally() for name in saes}
    for number, batch in enumerate(text.split(batch_size)):
        batch = batch._replace(blocks=batch.blocks.long().to(device), special=batch.special.to(device))
        with prefix.recorded():
            logits = _logits(model, batch, _unchanged)
        if number == 0:
            prefix.check(lambda batch=batch: _logits(model, batch, _unchanged), logits)
        clean = _clean(logits, batch)
        count += len(clean.target)
        clean_loss -= _sum_at(clean.log_probability, clean.target)
        with prefix.replayed():
            ablated.add(_logits(model, batch, torch.zeros_like), clean)
            if text.mean is not None:
                mean_ablated.add(_logits(model, batch, _everywhere_but(batch.special, _constant(text.mean))), clean)
            for name, tally in spliced.items():
                splice = _everywhere_but(batch.special, _reconstruction(saes[name]))
                tally.add(_logits(model, batch, splice), clean)
                del splice  # with its SAE, before the next is loaded
                tell(len(batch.blocks))

    def per_token(total: float) -> float:
        return total / count if count else float("nan")

    shared = {
        "tokens": count,
        "clean": per_token(clean_loss),
        "ablated": per_token(ablated.loss),
        "kl_ablated": per_token(ablated.divergence),
        "mean_ablated": float("nan") if text.mean is None else per_token(mean_ablated.loss),
    }
    return {
        name: CrossEntropy(spliced=per_token(tally.loss), kl_spliced=per_token(tally.divergence), **shared)
        for name, tally in spliced.items()
    }


def _logits(
    model: "TransformerBridge", batch: HeldOutText, function: Callable[[Tensor], Tensor]
) -> Float[Tensor, "n d_vocab"]:
    """Of the predictions that count, with the hook's activation [batch, pos, d_in] replaced by this function of it."""
    from sae_lm.lm.bridge import FORWARD_KWARGS, replace_activation

    with replace_activation(model, batch.hook, function):
        logits = model(batch.blocks, return_type="logits", **FORWARD_KWARGS)
    return logits[:, :-1][~batch.special[:, :-1]].float()


def _clean(logits: Tensor, batch: HeldOutText) -> _Clean:
    """The logits are normalised in place."""
    target = batch.blocks[:, 1:][~batch.special[:, :-1]]
    logits -= logits.logsumexp(1, keepdim=True)
    probability = logits.exp()
    return _Clean(target, logits, probability, _inner(probability, logits))


def _sum_at(logits: Tensor, target: Tensor) -> float:
    """Sum of the logits at the targets, in float64."""
    return float(logits.gather(1, target[:, None]).double().sum())


def _inner(left: Tensor, right: Tensor) -> float:
    """Sum of the rows' inner products: each in its own dtype, their sum in float64."""
    return float(torch.linalg.vecdot(left, right).double().sum())


def _unchanged(x: Tensor) -> Tensor:
    return x


def _constant(row: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: row.to(x).expand_as(x)


def _reconstruction(sae: SAE) -> Callable[[Tensor], Tensor]:
    def reconstruct(x: Tensor) -> Tensor:
        rows = x.flatten(0, -2).to(sae.W_dec)
        return decode_active(sae, *active(sae, rows), rows).view_as(x).to(x)

    return reconstruct


def _everywhere_but(keep: Tensor, function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.where(keep.to(x.device)[..., None], x, function(x))


class PrefixCache:
    """The output of the blocks before a hook, which is the same in every pass over a batch.

    Inside ``recorded()`` the model runs as it is, and the output of the last of these blocks is kept. Inside
    ``replayed()`` none of them runs: each returns that output. Blocks that hand on more than their output (keys shared
    between layers, say) cannot be left out: ``check`` finds that, and then they run in every pass.
    """

    def __init__(self, model: "TransformerBridge", hook: str) -> None:
        from sae_lm.lm.bridge import resolve_hook

        place = re.fullmatch(r"blocks\.(\d+)\.(.+)", resolve_hook(model, hook))
        count = int(place[1]) + (place[2] == "hook_out") if place else 0
        self.blocks: list[Any] = [block.original_component for block in list(model.blocks)[:count]] if count else []
        self.output: Any = None

    @contextmanager
    def recorded(self) -> Iterator[None]:
        if not self.blocks:
            yield
            return

        def keep(module: Any, inputs: Any, output: Any) -> None:
            self.output = _copied(output)

        handle = self.blocks[-1].register_forward_hook(keep)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def replayed(self) -> Iterator[None]:
        forwards = [vars(block).get("forward") for block in self.blocks]
        try:
            for block in self.blocks:
                block.forward = lambda *inputs, **keywords: _copied(self.output)
            yield
        finally:
            for block, forward in zip(self.blocks, forwards, strict=True):
                if forward is None:
                    vars(block).pop("forward", None)
                else:
                    block.forward = forward

    def check(self, run: Callable[[], Tensor], expected: Tensor) -> None:
        """Replay the recorded pass; unless it comes to the same, no block is left out from here on."""
        try:
            with self.replayed():
                same = torch.allclose(run(), expected, rtol=1e-3, atol=1e-3)
        except Exception:  # a block missed what an earlier one did not leave it; it may say so in any way
            same = False
        if not same:
            self.blocks = []


def _copied(output: Any) -> Any:
    """A block's output, its residual stream copied, so that writing into it in place changes no later pass."""
    return output.clone() if isinstance(output, Tensor) else (output[0].clone(), *output[1:])
