"""What latents say to the logits: the tokens that they promote and suppress, and metrics of what a model says."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lm.errors import SaeError
from sae_lm.interp.promoted_tokens import promoted_tokens, writes_residual
from sae_lm.interp.splice import expect, place
from sae_lm.interp.steering import is_whole
from sae_lm.sae.model import SAE

if TYPE_CHECKING:
    from sae_lm.lm.bridge import TransformerBridge


class TokenEffect(NamedTuple):
    token: str
    token_id: int
    effect: float
    """logits per unit of the latent's activation, less their mean over the vocabulary; of an SAE that divides each activation
    by its own size, times that size, ``sae.scale(x)``, which differs from row to row"""


class LogitEffect(NamedTuple):
    """Tokens whose logits a latent's decoder row raises and lowers most, the strongest first."""

    latent: int
    promoted: list[TokenEffect]
    suppressed: list[TokenEffect]
    times_size: bool = False
    """whether effects are yet to be multiplied by each activation's size, see `TokenEffect`"""

    def __str__(self) -> str:
        tokens = (", ".join(f"{one.token!r} {one.effect:+.2f}" for one in side) for side in self[1:3])
        said = "latent {}: promotes {}; suppresses {}".format(self.latent, *tokens)
        return said + "; times the size of each activation" * self.times_size


@torch.no_grad()
def logit_effect(
    model: "TransformerBridge",
    sae: SAE,
    latents: int | Sequence[int] | Int[Tensor, "*n"],
    *,
    top: int = 10,
    hook: str | None = None,
) -> list[LogitEffect]:
    """For each latent, the tokens that its decoder row promotes and suppresses by the direct path to the logits.

    Later blocks are passed by. What is read is W_dec times the final norm's weight times the unembedding, as on the
    page of latents and on public dashboards, see `sae_lm.interp.promoted_tokens`.
    Raises SaeError for a latent that is not there, a ``top`` below 1, and an SAE whose rows are no directions of the
    residual stream.
    """
    (name,) = place(model, sae, hook)
    if not writes_residual(model, name):
        raise SaeError(
            f"decoder rows of an SAE at {name} are no directions of the residual stream, so they have no direct effect on "
            "logits; give an SAE of a residual stream or of an MLP's or attention's output"
        )
    if not is_whole(top) or top < 1:
        raise SaeError(f"top is {top!r}, expected a whole number from 1 on")
    wanted = _numbers(latents, sae.config.d_sae)
    found = promoted_tokens(model, sae.W_dec[wanted], top)
    rows = zip(wanted, *(side.tolist() for side in found), strict=True)
    return [
        LogitEffect(latent, _tokens(model, high, above), _tokens(model, low, below), sae.config.rescales)
        for latent, high, above, low, below in rows
    ]


def _numbers(latents: Any, d_sae: int) -> list[int]:
    """One latent or several, as a list. Raises SaeError for what is no latent."""
    wanted = _listed(latents)
    for latent in wanted:
        if not is_whole(latent) or not 0 <= latent < d_sae:
            raise SaeError(
                f"latent {latent!r} is none of this SAE, which has latents 0 to {d_sae - 1}; give one of these numbers, or "
                "several as a list"
            )
    return [int(latent) for latent in wanted]


def _listed(given: Any) -> list[Any]:
    """One number or several, of a tensor or not."""
    given = given.tolist() if isinstance(given, Tensor) else given
    return list(given) if isinstance(given, Iterable) else [given]


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
    right: Answer,
    wrong: Answer,
    *,
    position: int | Sequence[int] | Int[Tensor, " batch"] = -1,
    model: "TransformerBridge | None" = None,
) -> Callable[[Float[Tensor, "batch pos d_vocab"]], Float[Tensor, " batch"]]:
    """The metric logit(right) - logit(wrong) at a position: for ``attribute``, or for logits of your own.

    right, wrong: a token id, ids [batch], one for each prompt, or a text that is one token of the model's, which is
        then given: " Paris". Raises SaeError for a text that is several tokens. The metric raises it for logits without
        the position, without a token id, or of another number of prompts.
    position: one for all prompts, or [batch]: where prompts are padded on the right, -1 is padding in all but the
        longest, and each prompt's own last token is asked for instead.
    """
    first, second = (_token_ids(answer, model) for answer in (right, wrong))
    places = _listed(position)

    def metric(logits: Float[Tensor, "batch pos d_vocab"]) -> Float[Tensor, " batch"]:
        _check_fits(logits, places, first, second)
        at = torch.tensor([int(place) for place in places], device=logits.device).expand(len(logits))
        said = logits[torch.arange(len(logits), device=logits.device), at].float()
        ids = (answer.to(said.device).expand(len(said))[:, None] for answer in (first, second))
        one, other = (said.gather(1, column)[:, 0] for column in ids)
        return one - other

    return metric


def _check_fits(logits: Tensor, places: list[Any], *answers: Int[Tensor, " _"]) -> None:
    """Raises SaeError where positions and answers are none of these logits."""
    if logits.ndim != 3:
        raise SaeError(f"logits have shape {tuple(logits.shape)}, expected [batch, pos, d_vocab]; give the model's own")
    prompts, length, d_vocab = logits.shape
    if len(places) not in (1, prompts):
        raise SaeError(
            f"position names {len(places)} positions, the logits are of {prompts} prompts; give one, or one for each prompt"
        )
    for position in places:
        if not is_whole(position) or not -length <= position < length:
            raise SaeError(
                f"position is {position!r}, the logits have positions 0 to {length - 1}; give one of them, or one from "
                f"{-length} on, counted from the end"
            )
    for ids in answers:
        if len(ids) not in (1, prompts):
            raise SaeError(
                f"an answer is {len(ids)} token ids, the logits are of {prompts} prompts; give one id, or one for each prompt"
            )
        beyond = ids[(ids < 0) | (ids >= d_vocab)]
        if len(beyond):
            raise SaeError(
                f"an answer is token id {int(beyond[0])}, the vocabulary has ids 0 to {d_vocab - 1}; give an id of this "
                "model's tokens"
            )


def _token_ids(answer: Answer, model: Any) -> Int[Tensor, " n"]:
    if not isinstance(answer, str):
        ids = answer.reshape(-1).tolist() if isinstance(answer, Tensor) else [answer]
        if not all(map(is_whole, ids)):
            raise SaeError(
                f"an answer is {answer!r}, expected a token id, token ids [batch] as a tensor, or a text that is one token"
            )
        return torch.tensor(ids, dtype=torch.long)
    expect(model, [])
    if model is None or model.tokenizer is None:
        raise SaeError(f"the answer {answer!r} is text; give logit_difference(..., model=model), or its token id")
    ids = model.tokenizer(answer, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        pieces = ", ".join(repr(token_text(model.tokenizer, token)) for token in ids)
        raise SaeError(f"the answer {answer!r} is {len(ids)} tokens ({pieces}); give a text that is one, or a token id")
    return torch.tensor(ids)
