"""What it costs the language model to read an SAE's reconstruction: cross-entropy and KL divergence."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lm.metrics.codes import active, decode_active
from sae_lm.metrics.reconstruction import share_of
from sae_lm.sae.model import SAE

if TYPE_CHECKING:
    from sae_lm.lm.bridge import TransformerBridge


Name = TypeVar("Name")


LOGITS = 1 << 26
"""Logits of one batch of contexts, at most: 256 MiB in float32, of which a few copies are held."""


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


@torch.no_grad()
def cross_entropies(
    model: "TransformerBridge",
    blocks: Int[Tensor, "contexts pos"],
    special: Bool[Tensor, "contexts pos"],
    hook: str,
    saes: Mapping[Name, SAE],
    batch_size: int = 16,
    mean: Float[Tensor, " d_in"] | None = None,
    tell: Callable[[int], object] = lambda contexts: None,
) -> dict[Name, CrossEntropy]:
    """Cross-entropy and KL divergence with each SAE spliced in; the clean and the ablated pass are shared by all.

    Of the model only what follows the hook runs for each SAE (see ``PrefixCache``). Each SAE is asked for once in a batch,
    and one is held at a time, so that the mapping may load them when they are asked for.

    mean: the hook's mean row, for the mean-ablated reference. tell: called with the contexts done for an SAE.
    Definition: SAEBench evals/core/main.py, pooled per token over all contexts, a ratio of means.
    """
    from sae_lm.lm.bridge import FORWARD_KWARGS, replace_activation

    device = next(model.parameters()).device
    batch_size = max(1, min(batch_size, LOGITS // max(1, blocks.shape[1] * model.cfg.d_vocab)))
    loss: dict[tuple, float] = defaultdict(float)
    divergence: dict[tuple, float] = defaultdict(float)
    count, before = 0, PrefixCache(model, hook)

    for first in range(0, len(blocks), batch_size):
        ids = blocks[first : first + batch_size].long().to(device)
        keep = special[first : first + batch_size].to(device)
        counted = ~keep[:, :-1]
        target = ids[:, 1:][counted]
        count += len(target)

        def logits(function: Callable[[Tensor], Tensor], ids: Tensor = ids, counted: Tensor = counted) -> Tensor:
            with replace_activation(model, hook, function):
                return model(ids, return_type="logits", **FORWARD_KWARGS)[:, :-1][counted].float()

        with before.recorded():
            clean = logits(lambda x: x)
        if first == 0:
            before.check(lambda: logits(lambda x: x), clean)
        clean -= clean.logsumexp(1, keepdim=True)
        likely = clean.exp()
        loss["clean",] -= _at(clean, target)
        negative_entropy = _inner(likely, clean)

        for key, function in _splices(saes, mean, keep):
            with before.replayed():
                found = logits(function)
            scale = float(found.logsumexp(1).double().sum())
            loss[key] += scale - _at(found, target)
            divergence[key] += negative_entropy + scale - _inner(likely, found)
            del found
            if key[0] == "with":
                tell(len(ids))

    def per_token(sums: dict[tuple, float], *key: Name | str) -> float:
        return sums[key] / count if key in sums and count else float("nan")

    def result(name: Name) -> CrossEntropy:
        return CrossEntropy(
            tokens=count,
            clean=per_token(loss, "clean"),
            spliced=per_token(loss, "with", name),
            ablated=per_token(loss, "ablated"),
            kl_spliced=per_token(divergence, "with", name),
            kl_ablated=per_token(divergence, "ablated"),
            mean_ablated=per_token(loss, "mean"),
        )

    return {name: result(name) for name in saes}


def _splices(
    saes: Mapping[Name, SAE], mean: Tensor | None, keep: Tensor
) -> Iterator[tuple[tuple, Callable[[Tensor], Tensor]]]:
    """What stands in the hook's place in each pass."""
    yield ("ablated",), torch.zeros_like
    if mean is not None:
        yield ("mean",), _everywhere_but(keep, lambda x: mean.to(x).expand_as(x))
    for name in saes:
        yield ("with", name), _everywhere_but(keep, _reconstruction(saes[name]))


def _at(logits: Tensor, target: Tensor) -> float:
    """Sum of the logits at the targets, in float64."""
    return float(logits.gather(1, target[:, None]).double().sum())


def _inner(left: Tensor, right: Tensor) -> float:
    """Sum of the rows' inner products: each in its own dtype, their sum in float64."""
    return float(torch.linalg.vecdot(left, right).double().sum())


def _reconstruction(sae: SAE) -> Callable[[Tensor], Tensor]:
    def reconstruct(x: Tensor) -> Tensor:
        return decode_active(sae, *active(sae, x.flatten(0, -2).to(sae.W_dec))).view_as(x).to(x.dtype)

    return reconstruct


def _everywhere_but(keep: Tensor, function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.where(keep[..., None], x, function(x))


class PrefixCache:
    """The blocks before a hook. They do the same in every pass over a batch, so that one pass will do.

    In ``recorded()`` the model runs as it is and what comes out of the last of these blocks is kept; in
    ``replayed()`` they run no more and that is what comes out of each. Blocks that hand on more than their output
    (keys shared between layers, say) cannot be left out: ``check`` finds that, and then they run in every pass.
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
        own = [vars(block).get("forward") for block in self.blocks]
        try:
            for block in self.blocks:
                block.forward = lambda *inputs, **keywords: _copied(self.output)
            yield
        finally:
            for block, forward in zip(self.blocks, own, strict=True):
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
    """A block's output, its residual stream copied, so that whoever writes into it in place spoils no later pass."""
    return output.clone() if isinstance(output, Tensor) else (output[0].clone(), *output[1:])
