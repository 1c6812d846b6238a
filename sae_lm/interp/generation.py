"""Let a language model go on with a prompt while SAEs are in it, steered or not."""

import warnings
from contextlib import ExitStack
from numbers import Integral
from typing import TYPE_CHECKING, Any

from jaxtyping import Int
from torch import Tensor

from sae_lm.errors import SaeError, SettingsError
from sae_lm.interp.positions import Keep
from sae_lm.interp.splice import SAEs, Steering, splice_all
from sae_lm.lm.bridge import remembers

if TYPE_CHECKING:
    from sae_lm.lm.bridge import TransformerBridge


def generate(
    model: "TransformerBridge",
    prompt: str | list[str] | Int[Tensor, "batch pos"] | Int[Tensor, " pos"],
    saes: SAEs | None = None,
    *,
    steering: Steering = None,
    max_new_tokens: int = 50,
    keep: Keep = "special",
    error_term: bool | None = None,
    do_sample: bool = False,
    **keywords: Any,
) -> Any:
    """What the model makes of a prompt: text for text, a list for a list, token ids for token ids, prompt included.

    prompt: token ids [pos] are a batch of one.
    saes, keep, error_term, steering: as in ``splice``, for the prompt's tokens and for those that are generated. Keep
        fits generation as "special", token ids or a function of them.
    do_sample: False takes the likeliest token each time.
    keywords: whatever else TransformerLens' ``generate`` takes: temperature, top_k, top_p, stop_at_eos, prepend_bos, ...

    Keys and values of earlier tokens are kept where that is found to work (``sae_lm.lm.bridge.remembers``); else every
    token is predicted from all before it, which is slower, and a warning says so. Raises SaeError for steering without
    SAEs and for a mask as ``keep``, SettingsError for another prompt and a wrong ``max_new_tokens``.
    """
    if saes is None and steering is not None:
        raise SaeError("steering names latents, but no SAE was given; give generate(model, prompt, sae, steering=...)")
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, Integral) or max_new_tokens < 1:
        raise SettingsError(f"max_new_tokens is {max_new_tokens!r}, expected a whole number from 1 on")
    several = isinstance(prompt, list) and bool(prompt) and all(isinstance(text, str) for text in prompt)
    if not several and not isinstance(prompt, str | Tensor):
        raise SettingsError(
            "the prompt is neither text, nor a list of texts, nor a tensor of token ids; give ids as torch.tensor([[...]])"
        )
    if isinstance(prompt, Tensor):
        if prompt.ndim not in (1, 2):
            raise SettingsError(
                f"the prompt is token ids of shape {tuple(prompt.shape)}, expected [batch, pos], or [pos] of one prompt"
            )
        prompt = prompt[None] if prompt.ndim == 1 else prompt
    if isinstance(keep, Tensor):
        raise SaeError(
            'keep is a mask, which does not fit tokens that are still to come; give keep="special", token ids or a '
            "function of token ids"
        )
    if not remembers(model) and keywords.get("use_past_kv_cache", True):
        warnings.warn(
            "this TransformerLens loses the keys and values of earlier tokens under this transformers, so text is "
            "generated without keeping them: the same text, more slowly",
            stacklevel=2,
        )
        keywords["use_past_kv_cache"] = False
    with ExitStack() as stack:
        if saes is not None:
            stack.enter_context(splice_all(model, saes, keep=keep, error_term=error_term, steering=steering))
        return model.generate(
            prompt, **{"verbose": False, **keywords}, max_new_tokens=max_new_tokens, do_sample=do_sample
        )
