"""A sparse autoencoder as it is used after training: activation to latents, and latents to activation.

With x an activation, every architecture computes

    pre = (x - b_dec) @ W_enc + b_enc        (without b_dec where apply_b_dec_to_input is false)
    standard: z = relu(pre)
    topk:     z = relu(pre) at its k largest entries, 0 elsewhere
    jumprelu: z = relu(pre) where pre > threshold, 0 elsewhere
    x_hat = z @ W_dec + b_dec

which is what SAELens computes for a directory of the same ``cfg.json``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae_lm.errors import SaeError
from sae_lm.runtime.seeds import derive
from sae_lm.sae.directions import unit_rows


@dataclass(frozen=True, kw_only=True)
class SaeConfig:
    """What is needed to run an SAE, and where it came from."""

    architecture: str
    """standard, topk or jumprelu"""
    d_in: int
    d_sae: int
    k: int | None = None
    """active latents per token; topk only"""
    apply_b_dec_to_input: bool = True
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """model_name, hook_name, store, penalty, coefficient, seed, ..."""

    def __post_init__(self) -> None:
        if self.architecture not in ("standard", "topk", "jumprelu"):
            raise SaeError(f"architecture {self.architecture!r} is unknown; expected standard, topk or jumprelu")
        if self.architecture == "topk" and (self.k is None or not 1 <= self.k <= self.d_sae):
            raise SaeError(f"k is {self.k}, a topk SAE with {self.d_sae} latents needs 1 to {self.d_sae}")


class SAE(nn.Module):
    """W_enc [d_in, d_sae], b_enc [d_sae], W_dec [d_sae, d_in], b_dec [d_in], threshold [d_sae] for jumprelu.

    A latent is a column of W_enc and a row of W_dec. Parameters are frozen; set requires_grad to tune.
    """

    W_enc: Float[Tensor, "d_in d_sae"]
    b_enc: Float[Tensor, " d_sae"]
    W_dec: Float[Tensor, "d_sae d_in"]
    b_dec: Float[Tensor, " d_in"]
    threshold: Float[Tensor, " d_sae"]

    def __init__(self, config: SaeConfig, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.config = config
        for name in check_shapes(config, {name: tuple(value.shape) for name, value in weights.items()}):
            if not torch.isfinite(weights[name]).all():
                raise SaeError(f"{name} holds NaN or infinite values; this SAE was saved from a broken run")
            self.register_parameter(name, nn.Parameter(weights[name].clone(), requires_grad=False))

    def __repr__(self) -> str:
        c = self.config
        k = f", k={c.k}" if c.k else ""
        return f"SAE({c.architecture}, d_in={c.d_in}, d_sae={c.d_sae}{k}, hook={c.metadata.get('hook_name')!r})"

    def pre_activations(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        if x.shape[-1] != self.config.d_in:
            raise SaeError(f"activation has width {x.shape[-1]}, this SAE was trained on width {self.config.d_in}")
        x = x.to(self.W_enc.dtype)
        if self.config.apply_b_dec_to_input:
            x = x - self.b_dec
        return nn.functional.linear(x, self.W_enc.T, self.b_enc)  # one pass over what comes out, not two

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Latent activations, dense, >= 0."""
        return self.activate(self.pre_activations(x))

    def activate(self, pre: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """Which latents fire, given their pre-activations."""
        if self.config.architecture == "topk":
            values, indices = pre.topk(self.config.k or 0, dim=-1, sorted=False)
            return torch.zeros_like(pre).scatter_(-1, indices, values.relu())
        if self.config.architecture == "jumprelu":
            return pre.relu() * (pre > self.threshold)
        return pre.relu()

    def decode(self, z: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_in"]:
        return z @ self.W_dec + self.b_dec

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """Reconstruction of x, in x's dtype."""
        return self.decode(self.encode(x)).to(x.dtype)


def check_shapes(config: SaeConfig, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """The names of an SAE's tensors. Raises SaeError where those that are there have other names or shapes."""
    expected = {
        "W_enc": (config.d_in, config.d_sae),
        "b_enc": (config.d_sae,),
        "W_dec": (config.d_sae, config.d_in),
        "b_dec": (config.d_in,),
    }
    if config.architecture == "jumprelu":
        expected["threshold"] = (config.d_sae,)
    if set(shapes) != set(expected):
        raise SaeError(f"a {config.architecture} SAE has tensors {sorted(expected)}, got {sorted(shapes)}")
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise SaeError(f"{name} has shape {shapes[name]}, the configuration says {shape}")
    return list(expected)


def random_sae(like: SAE, l0: float, seed: int) -> SAE:
    """A control: random unit decoder rows, the encoder their transpose, the decoder's bias of ``like``.

    The l0 largest latents of a token fire, rounded, whatever the architecture of ``like``: of thresholds or biases
    that are learned for another encoder any number would.
    """
    generator = torch.Generator().manual_seed(derive("random SAE", seed))
    d_sae = like.config.d_sae
    rows = unit_rows(torch.randn(d_sae, like.config.d_in, generator=generator))
    config = replace(like.config, architecture="topk", k=min(d_sae, max(1, round(l0))))
    return SAE(
        config, {"W_dec": rows, "W_enc": rows.T, "b_enc": torch.zeros(d_sae), "b_dec": like.b_dec.detach().cpu()}
    )
