"""Which next tokens a latent's decoder row promotes and suppresses through the model's unembedding alone.

The direct path: W_dec @ diag(w) @ W_U, with w the weight of the final norm, each latent's logits less their mean over
the vocabulary. What later layers make of the latent is left out, and so is the norm's division, which scales all of a
row's logits alike. Public dashboards show the same product.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lm.errors import ModelError

LATENTS_AT_ONCE = 512


class PromotedTokens(NamedTuple):
    """Of each latent the tokens at both ends, outermost first, with their logits per unit of activation."""

    promoted: Int[Tensor, "d_sae n"]
    promoted_logit: Float[Tensor, "d_sae n"]
    suppressed: Int[Tensor, "d_sae n"]
    suppressed_logit: Float[Tensor, "d_sae n"]


@torch.no_grad()
def promoted_tokens(model: Any, W_dec: Float[Tensor, "d_sae d_model"], count: int) -> PromotedTokens:
    """model: a TransformerBridge or HookedTransformer. Raises ModelError where the widths do not fit."""
    unembedding = model.W_U.detach().float()
    if W_dec.shape[1] != unembedding.shape[0]:
        raise ModelError(
            f"the SAE's decoder rows have width {W_dec.shape[1]}, the model's residual stream has {unembedding.shape[0]}; "
            "promoted tokens need an SAE of the residual stream"
        )
    weight = getattr(getattr(model, "ln_final", None), "w", None)
    if weight is None:
        weight = getattr(getattr(model, "ln_final", None), "weight", None)
    if weight is not None:
        unembedding = weight.detach().float()[:, None] * unembedding
    count = min(count, unembedding.shape[1])
    parts = []
    for rows in W_dec.split(LATENTS_AT_ONCE):
        logits = rows.to(unembedding) @ unembedding
        logits -= logits.mean(1, keepdim=True)
        high, low = logits.topk(count), logits.topk(count, largest=False)
        parts.append((high.indices.cpu(), high.values.cpu(), low.indices.cpu(), low.values.cpu()))
    return PromotedTokens(*(torch.cat(columns) for columns in zip(*parts, strict=True)))
