"""What latents say to the logits: the tokens that they promote and suppress, and metrics of what a model says."""

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lm.errors import SaeError
from sae_lm.interp.splice import place
from sae_lm.lm.bridge import hook_names, read_logits
from sae_lm.sae.model import SAE

if TYPE_CHECKING:
    from sae_lm.lm.bridge import TransformerBridge

CHUNK = 64
"""Latents whose logits are read at once."""
_RESIDUAL = re.compile(
    r"blocks\.\d+\.(hook_(resid_(pre|mid|post)|mlp_out|attn_out|in|out))|hook_embed|ln_final\.hook_in"
)


class TokenEffect(NamedTuple):
    token: str
    token_id: int
    effect: float
    """logits, less their mean over the vocabulary"""


class LogitEffect(NamedTuple):
    """Tokens whose logits a latent's decoder row raises and lowers most, the strongest first."""

    latent: int
    promoted: list[TokenEffect]
    suppressed: list[TokenEffect]
    method: str
    """``logit_readout`` (TransformerLens 4), or ``ln_final and W_U``"""

    def __str__(self) -> str:
        tokens = (", ".join(f"{one.token!r} {one.effect:+.2f}" for one in side) for side in self[1:3])
        return "latent {}: promotes {}; suppresses {}".format(self.latent, *tokens)


@torch.no_grad()
def logit_effect(
    model: "TransformerBridge", sae: SAE, latents: int | Sequence[int], *, top: int = 10, hook: str | None = None
) -> list[LogitEffect]:
    """For each latent, the tokens that its decoder row promotes and suppresses by the direct path to the logits.

    Later blocks are passed by. The row is read as a residual stream of its own, through the final norm and the
    unembedding, so that its length does not matter: ranks are those of public dashboards, sizes are not.
    Raises SaeError for a latent that is not there, and for an SAE whose rows are no directions of the residual stream.
    """
    (name,) = place(model, sae, hook)
    if not any(_RESIDUAL.fullmatch(known) for known in hook_names(model, name)):
        raise SaeError(
            f"decoder rows of an SAE at {name} are no directions of the residual stream, so they have no direct effect on "
            "logits; give an SAE of a residual stream or of an MLP's or attention's output"
        )
    wanted = [latents] if isinstance(latents, int) else list(latents)
    for latent in wanted:
        if not 0 <= latent < sae.config.d_sae:
            raise SaeError(f"latent {latent} is none of this SAE, which has latents 0 to {sae.config.d_sae - 1}")
    found = []
    for first in range(0, len(wanted), CHUNK):
        part = wanted[first : first + CHUNK]
        logits, how = read_logits(model, sae.W_dec[part])
        logits = logits - logits.mean(1, keepdim=True)
        count = min(top, logits.shape[1])
        for latent, row in zip(part, logits.cpu(), strict=True):
            sides = (row.topk(count, largest=largest) for largest in (True, False))
            promoted, suppressed = (_tokens(model, *side) for side in sides)
            found.append(LogitEffect(latent, promoted, suppressed, how))
    return found


def _tokens(model: Any, effects: Tensor, ids: Tensor) -> list[TokenEffect]:
    return [
        TokenEffect(token_text(model.tokenizer, token), token, effect)
        for token, effect in zip(ids.tolist(), effects.tolist(), strict=True)
    ]


def token_text(tokenizer: Any, token: int) -> str:
    """A token's text, leading space included; the id in brackets where the model has no tokenizer."""
    if tokenizer is None or (piece := tokenizer.convert_ids_to_tokens(token)) is None:
        return f"<{token}>"
    text = tokenizer.decode([token], clean_up_tokenization_spaces=False)
    return f" {text}" if piece.startswith("\u2581") and not text.startswith(" ") else text


Answer = int | str | Tensor


def logit_difference(
    right: Answer, wrong: Answer, *, position: int = -1, model: "TransformerBridge | None" = None
) -> Callable[[Float[Tensor, "batch pos d_vocab"]], Float[Tensor, " batch"]]:
    """The metric logit(right) - logit(wrong) at a position: for ``attribute``, or for logits of your own.

    right, wrong: a token id, ids [batch], one for each prompt, or a text that is one token of the model's, which is
        then given: " Paris". Raises SaeError for a text that is several tokens.
    """
    first, second = (_token_ids(answer, model) for answer in (right, wrong))

    def metric(logits: Float[Tensor, "batch pos d_vocab"]) -> Float[Tensor, " batch"]:
        said = logits[:, position].float()
        ids = (answer.to(said.device).expand(len(said))[:, None] for answer in (first, second))
        one, other = (said.gather(1, column)[:, 0] for column in ids)
        return one - other

    return metric


def _token_ids(answer: Answer, model: Any) -> Tensor:
    if isinstance(answer, Tensor):
        return answer.long().reshape(-1)
    if isinstance(answer, int):
        return torch.tensor([answer])
    if model is None or model.tokenizer is None:
        raise SaeError(f"the answer {answer!r} is text; give logit_difference(..., model=model), or its token id")
    ids = model.tokenizer(answer, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        pieces = ", ".join(repr(token_text(model.tokenizer, token)) for token in ids)
        raise SaeError(f"the answer {answer!r} is {len(ids)} tokens ({pieces}); give a text that is one, or a token id")
    return torch.tensor(ids)
