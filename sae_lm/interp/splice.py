"""Run a language model with an SAE's reconstruction in place of the activation that the SAE was trained on."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge

from sae_lm.errors import SaeError
from sae_lm.lm.bridge import replace_activation
from sae_lm.sae.model import SAE


@contextmanager
def splice(
    model: TransformerBridge,
    sae: SAE,
    *,
    hook: str | None = None,
    keep: Bool[Tensor, "batch pos"] | None = None,
    error_term: bool = False,
) -> Iterator["SplicedSAE"]:
    """Inside the block, the model computes with the SAE's reconstruction at ``hook``.

    hook: default the SAE's own ``metadata["hook_name"]``.
    keep: positions whose activation stays as it is (BOS, padding); forward passes of another shape
        than the mask's raise SaeError.
    error_term: add back the SAE's error, x - x_hat, computed before any edit: without edits the
        model's output is then its own.

    Yields a HookedRootModule, with ``hook_sae_input``, ``hook_sae_acts_pre``, ``hook_sae_acts_post``,
    ``hook_sae_recons`` and ``hook_sae_error``; cache, ablate or steer latents there::

        with splice(model, sae) as latents, latents.hooks(fwd_hooks=[("hook_sae_acts_post", ablate)]):
            logits = model(tokens)

    They are hook points of what is yielded, not of the model: register hooks on it and run the model.
    """
    name = hook or sae.config.metadata.get("hook_name")
    if not name:
        raise SaeError("this SAE does not say which hook it belongs to; give splice(..., hook='blocks.N.hook_out')")
    if sae.config.d_in != model.cfg.d_model:
        raise SaeError(
            f"this SAE has d_in {sae.config.d_in}, the model's residual stream has width {model.cfg.d_model}; load the model it was trained on"
        )
    spliced = SplicedSAE(sae, error_term)

    def reconstruct(x: Tensor) -> Tensor:
        y = spliced(x).to(x.dtype)
        if keep is None:
            return y
        if keep.shape != x.shape[:-1]:
            raise SaeError(f"keep has shape {tuple(keep.shape)}, the forward pass has {tuple(x.shape[:-1])}")
        return torch.where(keep.to(x.device)[..., None], x, y)

    with replace_activation(model, str(name), reconstruct):
        yield spliced


class SplicedSAE(HookedRootModule):
    """An SAE with a hook point after each of its steps."""

    def __init__(self, sae: SAE, error_term: bool) -> None:
        super().__init__()
        self.sae, self.error_term = sae, error_term
        self.hook_sae_input = HookPoint()
        self.hook_sae_acts_pre = HookPoint()
        self.hook_sae_acts_post = HookPoint()
        self.hook_sae_recons = HookPoint()
        self.hook_sae_error = HookPoint()
        self.setup()

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        x = self.hook_sae_input(x)
        z = self.sae.activate(self.hook_sae_acts_pre(self.sae.pre_activations(x)))
        error = x - self.sae.decode(z, x) if self.error_term else None  # now: a hook may edit z in place
        recons = self.hook_sae_recons(self.sae.decode(self.hook_sae_acts_post(z), x))
        return recons if error is None else recons + self.hook_sae_error(error)
