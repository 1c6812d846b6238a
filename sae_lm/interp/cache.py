"""Run a language model with SAEs in it and keep their latents in the model's cache, under SAELens' names."""

from collections.abc import Callable, Collection, Iterable
from contextlib import ExitStack
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sae_lm.errors import ModelError, SaeError
from sae_lm.interp.positions import Keep
from sae_lm.interp.splice import SAEs, Steering, place, splice_all
from sae_lm.lm.bridge import hook_names

if TYPE_CHECKING:
    from sae_lm.lm.bridge import TransformerBridge

PARTS = tuple(f"hook_sae_{part}" for part in ("input", "acts_pre", "acts_post", "recons", "error", "output"))
Filter = str | Iterable[str] | Callable[[str], bool] | None


def run_with_cache(
    model: "TransformerBridge",
    tokens: Any,
    saes: SAEs,
    *,
    keep: Keep = "special",
    error_term: bool | None = None,
    steering: Steering = None,
    names_filter: Filter = None,
    remove_batch_dim: bool = False,
    device: Any = None,
    **keywords: Any,
) -> tuple[Any, Any]:
    """``model.run_with_cache(tokens)`` with SAEs in the model: (output, cache), whose keys are those of SAELens.

    ``cache["blocks.8.hook_resid_post.hook_sae_acts_post"]`` are the latents [batch, pos, d_sae] of the SAE at that hook;
    beside it ``hook_sae_input``, ``hook_sae_acts_pre``, ``hook_sae_recons``, ``hook_sae_output`` and, with the error
    term, ``hook_sae_error``. Each is there under every name of the hook. The model's own activations are as the model
    had them, so after the SAE's hook they are those of the spliced model, and at it they are the SAE's output.

    saes, keep, error_term, steering: as in ``splice``. Latents at positions that are left alone are what the SAE would
        have had there, as in SAELens.
    names_filter: a name, names, or a function of a name; of the model's hooks and the SAEs'. Default: all.
    keywords: whatever else TransformerLens' ``run_with_cache`` takes.
    """
    if "pos_slice" in keywords:
        raise SaeError("pos_slice is not read by sae_lm.run_with_cache; take the positions from the cache instead")
    places = {name: hook_names(model, name) for name in place(model, saes)}
    known = {*model.hook_dict, *(f"{hook}.{part}" for hooks in places.values() for hook in hooks for part in PARTS)}
    wanted = _chooser(names_filter, known)
    seen: dict[str, Tensor] = {}
    with ExitStack() as stack:
        spliced = stack.enter_context(splice_all(model, saes, keep=keep, error_term=error_term, steering=steering))
        for name, hooks in places.items():
            stack.enter_context(spliced[name].hooks(fwd_hooks=_recorders(hooks, wanted, seen, device)))
        output, cache = model.run_with_cache(
            tokens, names_filter=names_filter and wanted, remove_batch_dim=remove_batch_dim, device=device, **keywords
        )
    held = getattr(cache, "cache_dict", cache)
    held.update({name: value[0] if remove_batch_dim else value for name, value in seen.items()})
    return output, cache


def _recorders(hooks: list[str], wanted: Callable[[str], bool], seen: dict[str, Tensor], device: Any) -> list[Any]:
    def recorder(names: list[str]) -> Callable[..., None]:
        def record(value: Tensor, hook: Any) -> None:
            kept = value.detach().to(device) if device is not None else value.detach()
            seen.update(dict.fromkeys(names, kept))

        return record

    chosen = {part: [name for hook in hooks if wanted(name := f"{hook}.{part}")] for part in PARTS}
    return [(part, recorder(names)) for part, names in chosen.items() if names]


def _chooser(names_filter: Filter, known: Collection[str]) -> Callable[[str], bool]:
    if names_filter is None:
        return lambda name: True
    if callable(names_filter):
        return names_filter
    names = {names_filter} if isinstance(names_filter, str) else set(names_filter)
    for name in names - set(known):
        near = ", ".join(get_close_matches(name, known, n=3)) or f"blocks.0.hook_out.{PARTS[2]}"
        raise ModelError(f"names_filter names {name!r}, which neither model nor SAEs have; the nearest are {near}")
    return lambda name: name in names
