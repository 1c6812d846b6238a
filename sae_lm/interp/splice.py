"""Run a language model with an SAE's reconstruction in place of the activation that the SAE was trained on."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from copy import deepcopy
from os import PathLike
from typing import Any, TypeAlias, overload

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge

from sae_lm.errors import ModelError, SaeError
from sae_lm.interp.positions import Keep, kept_positions
from sae_lm.interp.steering import Edit, Steer, as_list, edits, steer_latents, steer_output
from sae_lm.interp.value_biases import fitted
from sae_lm.lm.bridge import hook_width, replace_activation, resolve_hook
from sae_lm.sae.model import SAE

SAEs: TypeAlias = SAE | Mapping[str, SAE] | Sequence[SAE]
"""One SAE, several at the hooks they name, or several at the hooks that are given with them."""
Steering: TypeAlias = Steer | Sequence[Steer] | None


@overload
def splice(
    model: TransformerBridge,
    sae: SAE,
    *,
    hook: str | None = None,
    keep: Keep = "special",
    error_term: bool | None = None,
    steering: Steering = None,
) -> "AbstractContextManager[SplicedSAE]": ...


@overload
def splice(
    model: TransformerBridge,
    sae: Mapping[str, SAE] | Sequence[SAE],
    *,
    keep: Keep = "special",
    error_term: bool | None = None,
    steering: Steering = None,
) -> "AbstractContextManager[dict[str, SplicedSAE]]": ...


def splice(
    model: TransformerBridge,
    sae: SAEs,
    *,
    hook: str | None = None,
    keep: Keep = "special",
    error_term: bool | None = None,
    steering: Steering = None,
) -> "AbstractContextManager[Any]":
    """Inside the block, the model computes with the SAE's reconstruction at its hook.

    sae: one SAE; several, ``[sae, sae]``, each at its own ``metadata["hook_name"]``; or ``{hook: sae}``.
        Hooks may be residual streams, outputs of MLPs and of attention, and ``hook_z``, whose heads are laid side by side.
    hook: for one SAE, in place of its ``metadata["hook_name"]``.
    keep: positions whose activation stays as it is. "special" (the default): tokens that are no text, see
        ``special_ids``. Token ids, or a function from token ids [batch, pos] to a boolean tensor of that shape:
        these fit passes of any shape, those of generation too. A boolean mask [batch, pos]: passes of another shape
        raise SaeError. None: no position is left alone.
    error_term: add back the SAE's error, x - x_hat, computed before any edit, at whichever hook: without edits the
        model's output is then its own. The SAE is applied twice for it. The error is a constant to gradients, so that
        latents have theirs. Default: with steering only.
    steering: edits of latents, see ``Steer``.

    Yields, for one SAE, a HookedRootModule with ``hook_sae_input``, ``hook_sae_acts_pre``, ``hook_sae_acts_post``,
    ``hook_sae_recons``, ``hook_sae_error`` and ``hook_sae_output``; cache, ablate or steer latents there::

        with splice(model, sae) as latents, latents.hooks(fwd_hooks=[("hook_sae_acts_post", ablate)]):
            logits = model(tokens)

    They are hook points of what is yielded, not of the model: register hooks on it and run the model. For several SAEs
    a dictionary of these is yielded, under the names of the hooks as they were given.

    Devices: an SAE computes where its activation is. One that lies elsewhere is copied there once; the SAE that was
    given stays where it is. Raises ModelError for a hook the model has not, SaeError for what does not fit it.
    """
    return _splice(model, sae, hook=hook, keep=keep, error_term=error_term, steering=steering)


@contextmanager
def _splice(model: TransformerBridge, sae: SAEs, **options: Any) -> Iterator[Any]:
    with splice_all(model, sae, **options) as spliced:
        yield next(iter(spliced.values())) if isinstance(sae, SAE) else spliced


@contextmanager
def splice_all(
    model: TransformerBridge,
    sae: SAEs,
    *,
    hook: str | None = None,
    keep: Keep = "special",
    error_term: bool | None = None,
    steering: Steering = None,
) -> Iterator[dict[str, "SplicedSAE"]]:
    """``splice``, which yields a dictionary for one SAE too."""
    given = as_list(steering)
    placed = place(model, sae, hook)
    shares = share_steering(model, placed, given)
    with_error = bool(given) if error_term is None else error_term
    spliced = {name: SplicedSAE(one, with_error, edits(one, shares[name])) for name, one in placed.items()}
    with ExitStack() as stack:
        kept = stack.enter_context(kept_positions(model, keep))
        for name, module in spliced.items():
            stack.enter_context(replace_activation(model, name, lambda x, module=module: module(x, kept(x))))
        yield spliced


def expect(model: Any, saes: Any) -> None:
    """Raises ModelError and SaeError where names are given in place of a model and of SAEs."""
    if isinstance(model, str | PathLike):
        raise ModelError(f"model is {str(model)!r}, a name; give sae_lm.load_model({str(model)!r})")
    listed = isinstance(saes, Sequence) and not isinstance(saes, str)
    for one in saes.values() if isinstance(saes, Mapping) else saes if listed else [saes]:
        if not isinstance(one, SAE):
            shown = f"{str(one)!r}, a name" if isinstance(one, str | PathLike) else f"of type {type(one).__name__}"
            raise SaeError(f"an SAE is {shown}; give what sae_lm.load gives")


def place(model: TransformerBridge, sae: SAEs, hook: str | None = None) -> dict[str, SAE]:
    """{name of the hook as given: SAE}, checked against the model and fitted to its value biases. Raises ModelError and SaeError."""
    expect(model, sae)
    if isinstance(sae, SAE):
        named = [(_own_hook(sae) if hook is None else hook, sae)]
    elif hook is not None:
        raise SaeError(f"hook is {hook!r}, which is for one SAE; give several as {{hook: sae}}")
    else:
        named = list(sae.items()) if isinstance(sae, Mapping) else [(_own_hook(one), one) for one in sae]
    if not named:
        raise SaeError("no SAE is given; give one, several as a list, or {hook: sae}")
    taken: dict[HookPoint, str] = {}
    for name, one in named:
        point = _hook_point(model, name)
        if point in taken:
            raise SaeError(
                f"two SAEs are given for one hook, {taken[point]} and {name}; splice one, or run the model with each in turn"
            )
        taken[point] = name
        width = hook_width(model, name)
        if one.config.d_in != width:
            what = "the model's residual stream" if width == model.cfg.d_model else f"the model's {name}"
            raise SaeError(
                f"this SAE has d_in {one.config.d_in}, {what} has width {width}; load the model it was trained on"
            )
    return {name: fitted(model, resolve_hook(model, name), one) for name, one in named}


def _hook_point(model: TransformerBridge, name: str) -> HookPoint:
    """Aliases of a hook are one hook point. Raises ModelError."""
    return model.hook_dict[resolve_hook(model, name)]


def _own_hook(sae: SAE) -> str:
    name = sae.config.metadata.get("hook_name")
    if not name:
        raise SaeError("this SAE does not say which hook it belongs to; give splice(..., hook='blocks.N.hook_out')")
    return str(name)


def share_steering(model: TransformerBridge, placed: dict[str, SAE], steering: list[Steer]) -> dict[str, list[Steer]]:
    """Which steering is for which SAE. Raises SaeError where that is not told."""
    shares: dict[str, list[Steer]] = {name: [] for name in placed}
    for steer in steering:
        if steer.hook is None and len(placed) == 1:
            shares[next(iter(placed))].append(steer)
            continue
        wanted = steer.hook and _hook_point(model, steer.hook)
        fitting = [name for name in placed if _hook_point(model, name) is wanted]
        if not fitting:
            raise SaeError(
                f"steering of latent {steer.latent} is for hook {steer.hook!r}, there are SAEs at {', '.join(placed)}; "
                "give Steer(..., hook=...) one of these"
            )
        shares[fitting[0]].append(steer)
    return shares


class SplicedSAE(HookedRootModule):
    """An SAE with a hook point after each of its steps."""

    def __init__(self, sae: SAE, error_term: bool = False, edits: Sequence[Edit] = ()) -> None:
        super().__init__()
        self.sae, self.error_term, self.edits = sae, error_term, list(edits)
        self.copies: dict[torch.device, list[SAE]] = {}
        self.hook_sae_input = HookPoint()
        self.hook_sae_acts_pre = HookPoint()
        self.hook_sae_acts_post = HookPoint()
        self.hook_sae_recons = HookPoint()
        self.hook_sae_error = HookPoint()
        self.hook_sae_output = HookPoint()
        self.setup()

    def forward(
        self, x: Float[Tensor, "batch pos *width"], keep: Bool[Tensor, "batch pos"] | None = None
    ) -> Float[Tensor, "batch pos *width"]:
        """What the model goes on with; heads [batch, pos, heads, d_head] are laid side by side for the SAE."""
        sae = self.at(x.device)
        error = _error(sae, x.flatten(2)) if self.error_term else None  # before any hook: one may edit in place
        flat = self.hook_sae_input(x.flatten(2))
        z = sae.activate(self.hook_sae_acts_pre(sae.pre_activations(flat)))
        z = self.hook_sae_acts_post(steer_latents(z, self.edits))
        y = self.hook_sae_recons(sae.decode(z, flat))
        if error is not None:
            y = y + self.hook_sae_error(error)
        y = steer_output(y, flat, sae, self.edits).to(x.dtype)
        if keep is not None:
            y = torch.where(keep.to(x.device)[..., None], x.flatten(2), y)
        return self.hook_sae_output(y).reshape(x.shape)

    def at(self, device: torch.device) -> SAE:
        """The SAE on this device: itself, or a copy that is made once. Raises SaeError for one that is being trained."""
        own = self.sae.W_dec.device
        if own == device:
            return self.sae
        if device not in self.copies:
            if any(weight.requires_grad for weight in self.sae.parameters()):
                raise SaeError(
                    f"the SAE is on {own}, its activation on {device}, and a copy would not train the SAE's own "
                    f'weights; move it first: sae.to("{device}")'
                )
            self.copies[device] = [deepcopy(self.sae).to(device)]  # in a list: no submodule of this one
        return self.copies[device][0]


@torch.no_grad()
def _error(sae: SAE, x: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_in"]:
    """What the SAE misses of x. A constant: its gradient to the latents would cancel the reconstruction's."""
    return x - sae.decode(sae.encode(x), x)
