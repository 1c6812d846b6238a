"""What latents say to the logits: the tokens that they promote and suppress, and metrics of what a model says."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lm.errors import SaeError
from sae_lm.interp.promoted_tokens import promoted_tokens, writes_residual
from sae_lm.interp.splice import place
from sae_lm.sae.model import SAE

if TYPE_CHECKING:
    from sae_lm.lm.bridge import TransformerBridge


class TokenEffect(NamedTuple):
    token: str
    token_id: int
    effect: float
    """logits per unit of the latent's activation, less their mean over the vocabulary"""


class LogitEffect(NamedTuple):
    """Tokens whose logits a latent's decoder row raises and lowers most, the strongest first."""

    latent: int
    promoted: list[TokenEffect]
    suppressed: list[TokenEffect]

    def __str__(self) -> str:
        tokens = (", ".join(f"{one.token!r} {one.effect:+.2f}" for one in side) for side in self[1:3])
        return "latent {}: promotes {}; suppresses {}".format(self.latent, *tokens)


@torch.no_grad()
def logit_effect(
    model: "TransformerBridge", sae: SAE, latents: int | Sequence[int], *, top: int = 10, hook: str | None = None
) -> list[LogitEffect]:
    """For each latent, the tokens that its decoder row promotes and suppresses by the direct path to the logits.

    Later blocks are passed by. What is read is W_dec times the final norm's weight times the unembedding, as on the
    page of latents and on public dashboards, see `sae_lm.interp.promoted_tokens`.
    Raises SaeError for a latent that is not there, and for an SAE whose rows are no directions of the residual stream.
    """
    (name,) = place(model, sae, hook)
    if not writes_residual(model, name):
        raise SaeError(
            f"decoder rows of an SAE at {name} are no directions of the residual stream, so they have no direct effect on "
            "logits; give an SAE of a residual stream or of an MLP's or attention's output"
        )
    wanted = [latents] if isinstance(latents, int) else list(latents)
    for latent in wanted:
        if not 0 <= latent < sae.config.d_sae:
            raise SaeError(f"latent {latent} is none of this SAE, which has latents 0 to {sae.config.d_sae - 1}")
    found = promoted_tokens(model, sae.W_dec[wanted], top)
    rows = zip(wanted, *(side.tolist() for side in found), strict=True)
    return [
        LogitEffect(latent, _tokens(model, high, above), _tokens(model, low, below))
        for latent, high, above, low, below in rows
    ]


def _tokens(model: Any, ids: Sequence[int], effects: Sequence[float]) -> list[TokenEffect]:
    return [
        TokenEffect(token_text(model.tokenizer, token), token, effect)
        for token, effect in zip(ids, effects, strict=True)
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
