"""Train SAEs with this project's decoder penalties inside SAELens: importing this registers the classes there.

    import sae_lm.interop.saelens
    config = sae_lm.interop.saelens.TopKConfig(d_in=768, d_sae=16384, k=32, arm="max_cos:0.25")

and ``config`` goes where SAELens takes one of its own: ``LanguageModelSAERunnerConfig(sae=config, ...)``. What is saved
is an SAE of the architecture without the penalty, which SAELens loads anywhere; the arm stands in its metadata.

The loss gets coefficient * penalty * variance, with the batch's variance as SAELens sums squared errors. So a
coefficient is in units where predicting the mean costs 1, as in ``sae-lm train``, and carries over. differs from
there: the penalty is computed at every step, over all rows. c2r is left out, as its gradient is one for
activations too.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sae_lm.errors import SettingsError
from sae_lm.penalties.arms import PENALTIES, Arm, parse_arm
from sae_lm.sae.sparse import Codes

try:
    from sae_lens import TrainingSAEConfig  # pyright: ignore[reportMissingImports]
    from sae_lens.registry import (  # pyright: ignore[reportMissingImports]
        SAE_TRAINING_CLASS_REGISTRY,
        get_sae_class,
        get_sae_training_class,
        register_sae_training_class,
    )
except ImportError:
    raise ImportError(
        "sae_lm.interop.saelens needs SAELens, which is not installed here; run pip install 'sae-lens>=6.54,<7' in an "
        "environment with transformer-lens below 4"
    ) from None

KINDS = ("topk", "batchtopk", "matryoshka_batchtopk", "jumprelu", "standard")
"""Training architectures of SAELens that get a twin with a penalty, ``sae_lm_topk`` and so on."""
FITTING = ("abs_cos", "sq_cos", "max_cos", "coactive", "freq_cos", "silent", "align")
OPTIONS = ("margin", "anchored", "chunk")
"""Options of an arm that mean the same in SAELens; the others belong to ``sae-lm train``."""
MEMORY = 0.99
"""Share of the firing frequency that stays from one batch to the next."""


def fitting_arm(text: str) -> Arm:
    """Read an arm. Raises SettingsError for a penalty or an option that SAELens' loop has no place for."""
    arm = parse_arm(text)
    if arm.penalty not in FITTING:
        raise SettingsError(
            f"arm {text!r}: SAELens' loop has no place for {arm.penalty}; expected {', '.join(FITTING)}"
        )
    kept = {"penalty", "coefficient", "exact", *OPTIONS}
    defaults = Arm._field_defaults
    if extra := [o for o in Arm._fields if o not in kept and getattr(arm, o) != defaults[o]]:
        raise SettingsError(
            f"arm {text!r}: {', '.join(extra)} belongs to sae-lm train; expected of the options only {', '.join(OPTIONS)}"
        )
    return arm


def penalty_of(
    arm: Arm, W_dec: Tensor, W_enc: Tensor, acts: Tensor | None = None, frequency: Tensor | None = None
) -> Tensor:
    """An arm's penalty [], without its coefficient, with gradients for W_dec [d_sae, d_in] (align: and W_enc [d_in, d_sae]).

    acts: [batch, d_sae] activations of a batch; frequency: [d_sae] shares of rows on which latents fire.
    """
    options: dict[str, Any] = {o: getattr(arm, o) for o in OPTIONS if getattr(arm, o) != Arm._field_defaults[o]}
    if arm.penalty == "align":
        options["encoder"] = W_enc.T
    codes = None
    if acts is not None and frequency is not None:
        codes = codes_of(acts, frequency)
    return PENALTIES[arm.penalty](W_dec, None, codes, **options)


def codes_of(acts: Tensor, frequency: Tensor) -> Codes:
    """The codes of dense activations [batch, d_sae]."""
    acts = acts.detach()
    acts = (acts.to_dense() if acts.is_sparse else acts).flatten(0, -2)
    row, latent = (acts > 0).nonzero(as_tuple=True)
    per_row = torch.bincount(row, minlength=len(acts))
    return Codes(torch.nn.functional.pad(per_row.cumsum(0), (1, 0)), latent, acts[row, latent].float(), frequency)


def variance(x: Tensor) -> Tensor:
    """The loss of predicting the mean, as SAELens sums squared errors: over d_in, with the mean over the batch."""
    x = x.detach().float().flatten(0, -2)
    return (x - x.mean(0)).square().sum(-1).mean()


class _Penalised:
    """What is put before a training class of SAELens."""

    cfg: Any
    W_dec: Tensor
    W_enc: Tensor
    firing_frequency: Tensor | None = None

    def get_coefficients(self) -> dict[str, Any]:
        inherited: dict[str, Any] = super().get_coefficients()  # pyright: ignore[reportAttributeAccessIssue]
        return {**inherited, "penalty": fitting_arm(self.cfg.arm).coefficient}

    def calculate_aux_loss(self, step_input: Any, feature_acts: Tensor, hidden_pre: Tensor, sae_out: Tensor) -> Any:
        losses = super().calculate_aux_loss(  # pyright: ignore[reportAttributeAccessIssue]
            step_input=step_input, feature_acts=feature_acts, hidden_pre=hidden_pre, sae_out=sae_out
        )
        losses = dict(losses) if isinstance(losses, dict) else {"auxiliary_loss": losses}
        arm, acts = fitting_arm(self.cfg.arm), feature_acts.detach()
        fires = ((acts.to_dense() if acts.is_sparse else acts).flatten(0, -2) > 0).float().mean(0)
        before = self.firing_frequency
        self.firing_frequency = fires if before is None else MEMORY * before + (1 - MEMORY) * fires
        value = penalty_of(arm, self.W_dec, self.W_enc, acts, self.firing_frequency)
        losses["penalty_loss"] = step_input.coefficients["penalty"] * variance(step_input.sae_in) * value
        return losses


def _register(kind: str) -> tuple[type, type]:
    """The training class and its config for a kind of SAELens' own. Importing twice registers once."""
    name = f"sae_lm_{kind}"
    if name in SAE_TRAINING_CLASS_REGISTRY:
        return get_sae_training_class(name)
    base, base_config = get_sae_training_class(kind)
    ordinary = base_config.get_inference_config_class is TrainingSAEConfig.get_inference_config_class

    def inference(self: Any) -> Any:
        return get_sae_class(kind)[1] if ordinary else base_config.get_inference_config_class(self)

    def check(self: Any) -> None:
        fitting_arm(self.arm)
        base_config.__post_init__(self)

    members = {
        "__annotations__": {"arm": str},
        "__doc__": f"SAELens' {base_config.__name__} with an arm: penalty[:coefficient][@option=value]...",
        "__module__": __name__,
        "arm": "max_cos",
        "architecture": classmethod(lambda cls: name),
        "get_inference_config_class": inference,
        "__post_init__": check,
    }
    config = dataclass(type(base_config.__name__.replace("TrainingSAE", ""), (base_config,), members))
    trained = type(base.__name__.replace("Training", "Penalised"), (_Penalised, base), {"__module__": __name__})
    register_sae_training_class(name, trained, config)
    return trained, config


TopK, TopKConfig = _register("topk")
BatchTopK, BatchTopKConfig = _register("batchtopk")
Matryoshka, MatryoshkaConfig = _register("matryoshka_batchtopk")
JumpReLU, JumpReLUConfig = _register("jumprelu")
Standard, StandardConfig = _register("standard")
