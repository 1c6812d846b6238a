"""Which next tokens a latent's decoder row promotes and suppresses through the model's final norm and unembedding alone.

The direct path, the one way in which this project reads it: W_dec @ diag(w) @ W_U, less its mean over the vocabulary,
with w the weight of the final norm. Where that norm is a LayerNorm, the mean of the row is taken off first. Left out
are what later layers make of the latent, and what scales all of a row's logits alike: the norm's division, and a soft
cap or factor after the unembedding. So sizes are logits per unit of activation, and ranks those of the whole path. Of
an SAE that divides each activation by its own size they are yet to be multiplied by that.
Public dashboards show the same product: the models that they are made with have the norm folded in.
"""

import re
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lm.errors import ModelError
from sae_lm.lm.bridge import hook_names

RESIDUAL = re.compile(
    r"blocks\.\d+\.(hook_(resid_(pre|mid|post)|mlp_out|attn_out|in|out))|hook_embed|ln_final\.hook_in"
)
"""Hooks at which decoder rows are directions of the residual stream."""
LATENTS_AT_ONCE = 512
LONG = 1e3
"""Length of each entry of the rows by which a norm is tried: beside it, what a norm adds to the variance is nothing."""
NEAR = 0.05
"""Relative error up to which a norm is of the usual form, with weights of 16 bits too."""


class PromotedTokens(NamedTuple):
    """Of each latent the tokens at both ends, outermost first, with their logits per unit of activation, or times its size."""

    promoted: Int[Tensor, "d_sae n"]
    promoted_logit: Float[Tensor, "d_sae n"]
    suppressed: Int[Tensor, "d_sae n"]
    suppressed_logit: Float[Tensor, "d_sae n"]


def writes_residual(model: Any, hook: str) -> bool:
    """Whether decoder rows of an SAE at this hook are directions of the residual stream. Raises ModelError."""
    return any(RESIDUAL.fullmatch(known) for known in hook_names(model, hook))


def check_unembeds(model: Any, hook: str, d_in: int, d_vocab: int) -> None:
    """Raise ModelError where the rows of an SAE of this hook and width promote none of the tokens of this vocabulary."""
    width, tokens = model.W_U.shape
    if d_in != width or tokens != d_vocab:
        raise ModelError(
            f"the model given unembeds width {width} to {tokens} tokens, the SAE and store have width {d_in} and {d_vocab} "
            "tokens; give the store's model, or none"
        )
    if not writes_residual(model, hook):
        raise ModelError(
            f"decoder rows of an SAE at {hook} are no directions of the residual stream, so they promote no tokens by "
            "themselves; leave the model out"
        )


@torch.no_grad()
def promoted_tokens(model: Any, W_dec: Float[Tensor, "d_sae d_model"], count: int) -> PromotedTokens:
    """model: a TransformerBridge or HookedTransformer. Raises ModelError where the widths do not fit, and for a final
    norm that is neither a LayerNorm nor an RMSNorm."""
    if model.W_U.device.type == "meta":
        raise ModelError(
            "the model's unembedding waits on the CPU or on disk, and directions can be read by it only where it is on a "
            "device; load the model without device_map"
        )
    unembedding = model.W_U.detach().float()
    if W_dec.shape[1] != unembedding.shape[0]:
        raise ModelError(
            f"the SAE's decoder rows have width {W_dec.shape[1]}, the model's residual stream has {unembedding.shape[0]}; "
            "promoted tokens need an SAE of the residual stream"
        )
    weight, centred = _final_norm(model, unembedding)
    if weight is not None:
        unembedding = weight[:, None] * unembedding
    count = min(count, unembedding.shape[1])
    parts = []
    for rows in W_dec.split(LATENTS_AT_ONCE):
        rows = rows.detach().to(unembedding)
        logits = (rows - rows.mean(1, keepdim=True) if centred else rows) @ unembedding
        logits -= logits.mean(1, keepdim=True)
        high, low = logits.topk(count), logits.topk(count, largest=False)
        parts.append((high.indices.cpu(), high.values.cpu(), low.indices.cpu(), low.values.cpu()))
    return PromotedTokens(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _final_norm(model: Any, unembedding: Tensor) -> tuple[Tensor | None, bool]:
    """(what it multiplies each entry by, whether it takes off the row's mean), found by asking it: some models'
    parameter is not the factor itself, as Gemma's, which is one less. (None, False) without a norm."""
    norm = getattr(model, "ln_final", None)
    if norm is None:
        return None, False
    width = len(unembedding)
    signs = torch.ones(width)
    signs[1::2] = -1
    ramp = torch.linspace(-1, 1, width) ** 3 + 0.5
    dtype = getattr(model.W_U, "dtype", torch.float32)
    rows = torch.stack([torch.zeros(width), torch.ones(width), signs, ramp]).to(unembedding.device, dtype) * LONG
    empty, constant, read, other = norm(rows[None])[0].float().to(rows.device)  # a norm may lie on another device
    centred = bool((constant - empty).abs().max() <= 1e-3 * (read - empty).abs().max())

    def scaled(row: Tensor) -> Tensor:
        row = row.float() - row.float().mean() * centred
        return row / row.square().mean().sqrt()

    weight = (read - empty) / scaled(rows[2])
    expected = weight * scaled(rows[3])
    if not bool((other - empty - expected).norm() <= NEAR * expected.norm()):
        raise ModelError(
            "the model's final norm is neither a LayerNorm nor an RMSNorm, so the tokens that latents promote cannot be "
            "read off; leave the model out (--model none)"
        )
    return weight, centred
