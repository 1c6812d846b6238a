"""SAE x activations -> how sparse and how faithful; SAE x model -> what the splice costs."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lm.sae.model import SAE

if TYPE_CHECKING:
    from sae_lm.data.activations import TransformerBridge

DENSE = 0.1
"""A latent that fires on more than this share of tokens counts as dense (SAEBench core)."""


class Quality(NamedTuple):
    rows: int
    """tokens measured; special tokens are not among them"""
    l0: float
    """mean number of latents above 0 per token"""
    fvu: float
    """mean ||x - x_hat||^2 over mean ||x - mean x||^2: fraction of variance unexplained"""
    nmse: float
    """mean ||x - x_hat||^2 over mean ||x||^2"""
    dead: float
    """share of latents that never fired on these rows; falls as rows grow"""
    dense: float
    """share of latents that fired on more than 10% of these rows"""
    l2_ratio: float
    """mean ||x_hat|| / ||x||: below 1 is shrinkage"""


@torch.no_grad()
def quality(sae: SAE, batches: Iterable[Float[Tensor, "_ d_in"]]) -> tuple[Quality, Bool[Tensor, " d_sae"]]:
    """Stream over activations; sums in float64, each ratio divided once at the end. Also: which latents fired.

    FVU's mean is per dimension over all rows, as in SAELens (evals.py). SAEBench 0.6.0's
    ``explained_variance`` differs: it takes the mean of squares where the square of the mean belongs.
    """
    n, fired, firings = 0, torch.zeros(sae.config.d_sae, dtype=torch.float64), 0.0
    total = torch.zeros(sae.config.d_in, dtype=torch.float64)
    squares = missed = ratios = 0.0
    for x in batches:
        x = x.to(sae.W_dec)
        z = sae.encode(x)
        x_hat = sae.decode(z)
        n += len(x)
        fired += (z > 0).sum(0).double().cpu()
        firings += float((z > 0).sum())
        exact, error = x.double(), (x - x_hat).double()
        total += exact.sum(0).cpu()
        squares += float(exact.square().sum())
        missed += float(error.square().sum())
        ratios += float((x_hat.norm(dim=1) / x.norm(dim=1).clamp_min(1e-12)).double().sum())
    if n == 0:
        return Quality(0, *[float("nan")] * 6), fired > 0
    variance = squares / n - float((total / n).square().sum())
    measured = Quality(
        rows=n,
        l0=firings / n,
        fvu=missed / n / variance if variance > 0 else float("nan"),
        nmse=missed / squares if squares else float("nan"),
        dead=float((fired == 0).double().mean()),
        dense=float((fired / n > DENSE).double().mean()),
        l2_ratio=ratios / n,
    )
    return measured, fired > 0


class CrossEntropy(NamedTuple):
    """Nats per token, over predictions made from tokens that are not special."""

    tokens: int
    clean: float
    """the model as it is"""
    spliced: float
    """with the SAE's reconstruction at its hook, special tokens left alone, no error term"""
    ablated: float
    """with zeros at the hook, at every position"""

    @property
    def recovered(self) -> float:
        """(ablated - spliced) / (ablated - clean): 1 is lossless, 0 is as bad as zeros."""
        return (self.ablated - self.spliced) / (self.ablated - self.clean)


@torch.no_grad()
def cross_entropies(
    model: "TransformerBridge",
    blocks: Int[Tensor, "contexts pos"],
    special: Bool[Tensor, "contexts pos"],
    hook: str,
    saes: Mapping[str, SAE],
    batch_size: int = 16,
) -> dict[str, CrossEntropy]:
    """Cross-entropy with each SAE spliced in; the clean and the ablated pass are shared by all.

    Definition: SAEBench evals/core/main.py, pooled per token over all contexts, a ratio of means.
    """
    from sae_lm.data.activations import replaced
    from sae_lm.sae.splice import splice

    device = next(model.parameters()).device
    sums = {name: 0.0 for name in ("clean", "ablated", *saes)}
    count = 0

    def add(name: str, ids: Tensor, counted: Tensor) -> None:
        logits = model(ids, return_type="logits", use_cache=False, output_attentions=False)
        losses = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none"
        )
        sums[name] += float(losses[counted.flatten()].double().sum())

    for first in range(0, len(blocks), batch_size):
        ids = blocks[first : first + batch_size].long().to(device)
        keep = special[first : first + batch_size].to(device)
        counted = ~keep[:, :-1]
        count += int(counted.sum())
        add("clean", ids, counted)
        with replaced(model, hook, torch.zeros_like):
            add("ablated", ids, counted)
        for name, sae in saes.items():
            with splice(model, sae, hook=hook, keep=keep):
                add(name, ids, counted)
    mean = {name: value / count if count else float("nan") for name, value in sums.items()}
    return {name: CrossEntropy(count, mean["clean"], mean[name], mean["ablated"]) for name in saes}
