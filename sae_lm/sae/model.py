"""A sparse autoencoder as it is used after training: activation to latents, and latents to activation.

With x an activation, every architecture computes

    pre = (x - b_dec) @ W_enc + b_enc        (without b_dec where apply_b_dec_to_input is false)
    standard: z = relu(pre)
    topk:     z = relu(pre) at its k largest entries, 0 elsewhere
    jumprelu: z = relu(pre) where pre > threshold, 0 elsewhere
    groupmax: z = relu(pre) at the largest entry of each of k equal blocks of latents, 0 elsewhere
    x_hat = z @ W_dec + b_dec

which is what SAELens computes for a directory of the same ``cfg.json`` (groupmax: what sparsify computes). A gated
SAE needs no formula of its own: it is a jumprelu SAE with W_enc exp(r_mag), b_mag and threshold b_mag - b_gate exp(r_mag).

Some SAEs change every activation before it is encoded: they subtract its mean over d_in (``centred_input``,
``layer_norm``) or divide it by its own size (``layer_norm``, ``constant_norm_rescale``). No weights can do that, so it
is done here, and undone in the reconstruction: for such an SAE ``decode`` needs the activation as well.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae_lm.errors import SaeError
from sae_lm.fields import has_heads
from sae_lm.runtime.html import bars_html, facts_html
from sae_lm.runtime.seeds import derive
from sae_lm.sae.directions import unit_rows

ARCHITECTURES = ("standard", "topk", "jumprelu", "groupmax")
NORMS = ("none", "layer_norm", "constant_norm_rescale")
VALUE_BIASES = ("kept", "folded", "folded with norm")
LAYER_NORM_EPSILON = 1e-5
"""Added to the standard deviation before dividing, not when the division is undone: as SAELens and OpenAI have it."""


@dataclass(frozen=True, kw_only=True)
class SaeConfig:
    """What is needed to run an SAE, and where it came from."""

    architecture: str
    """standard, topk, jumprelu or groupmax"""
    d_in: int
    d_sae: int
    k: int | None = None
    """active latents per token (topk), or blocks of latents (groupmax)"""
    apply_b_dec_to_input: bool = True
    normalize_activations: str = "none"
    """none, layer_norm or constant_norm_rescale: each activation to norm sqrt(d_in)"""
    centred_input: bool = False
    """the mean over d_in is subtracted from each activation: trained on a model with ``center_writing_weights``"""
    value_biases: str = "kept"
    """of hook_z, as in `VALUE_BIASES`: folded where it was trained on a model with ``fold_value_biases``, whose activation
    lacks them, with norm where ``fold_ln`` came before; `sae_lm.interp.value_biases` fits it to a raw model"""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """model_name, hook_name, store, penalty, coefficient, seed, ..."""

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise SaeError(f"architecture {self.architecture!r} is unknown; expected {', '.join(ARCHITECTURES)}")
        if self.normalize_activations not in NORMS:
            raise SaeError(f"normalize_activations is {self.normalize_activations!r}; expected {', '.join(NORMS)}")
        if self.value_biases not in VALUE_BIASES:
            raise SaeError(f"value_biases is {self.value_biases!r}; expected {', '.join(VALUE_BIASES)}")
        if self.architecture in ("topk", "groupmax") and (self.k is None or not 1 <= self.k <= self.d_sae):
            raise SaeError(
                f"k is {self.k}, a {self.architecture} SAE with {self.d_sae} latents needs 1 to {self.d_sae}"
            )
        if self.architecture == "groupmax" and self.d_sae % (self.k or 1):
            raise SaeError(f"k is {self.k}, a groupmax SAE needs one that divides its {self.d_sae} latents")

    @property
    def normalises(self) -> bool:
        """Whether each activation is changed before it is encoded, so that decoding needs it as well."""
        return self.centred_input or self.rescales

    @property
    def rescales(self) -> bool:
        """Whether each activation is divided by its own size, in units of which latents then are (`SAE.scale`)."""
        return self.normalize_activations != "none"


class SAE(nn.Module):
    """W_enc [d_in, d_sae], b_enc [d_sae], W_dec [d_sae, d_in], b_dec [d_in], threshold [d_sae] for jumprelu.

    A latent is a column of W_enc and a row of W_dec. Parameters are frozen; set requires_grad to tune.
    provenance: what was decided when the SAE was loaded, a sentence each.
    """

    W_enc: Float[Tensor, "d_in d_sae"]
    b_enc: Float[Tensor, " d_sae"]
    W_dec: Float[Tensor, "d_sae d_in"]
    b_dec: Float[Tensor, " d_in"]
    threshold: Float[Tensor, " d_sae"]

    def __init__(self, config: SaeConfig, weights: Mapping[str, Tensor], provenance: Sequence[str] = ()) -> None:
        super().__init__()
        self.config = config
        self.provenance = list(provenance)
        for name in check_shapes(config, {name: tuple(value.shape) for name, value in weights.items()}):
            if not torch.isfinite(weights[name]).all():
                raise SaeError(f"{name} holds NaN or infinite values; this SAE was saved from a broken run")
            self.register_parameter(name, nn.Parameter(weights[name].clone(), requires_grad=False))

    def __repr__(self) -> str:
        c = self.config
        k = f", k={c.k}" if c.k else ""
        return f"SAE({c.architecture}, d_in={c.d_in}, d_sae={c.d_sae}{k}, hook={c.metadata.get('hook_name')!r})"

    def _repr_html_(self) -> str:
        """For notebooks: what it is, how it was loaded, and whether its latents read what they write."""
        c = self.config
        cosines = nn.functional.cosine_similarity(self.W_enc.detach().T, self.W_dec.detach(), dim=1).float().cpu()
        low, high = float(cosines.min()), float(cosines.max())
        counts = torch.histc(cosines, 32, low, high if high > low else low + 1).tolist()
        facts = [
            ("architecture", c.architecture + (f", k {c.k}" if c.k else "")),
            ("d_in, d_sae", f"{c.d_in:,}, {c.d_sae:,}"),
            *((key, str(c.metadata[key])) for key in ("hook_name", "model_name", "arm", "seed") if key in c.metadata),
            ("device, dtype", f"{self.W_dec.device}, {str(self.W_dec.dtype).removeprefix('torch.')}"),
            *(("how it was loaded", sentence) for sentence in self.provenance),
        ]
        plot = bars_html("latents by cosine of encoder and decoder", counts, f"{low:.2f}", f"{high:.2f}")
        return facts_html("SAE", facts, plot)

    def normalise(self, x: Float[Tensor, "*any"]) -> Float[Tensor, "*batch d_in"]:
        """The activation as it is encoded, where the SAE is: where nothing is normalised, x itself in the SAE's dtype.

        Of a hook with an axis of heads, [..., heads, d_head] is taken as well, and flattened.
        """
        x = self._flattened(x).to(self.W_enc)
        if not self.config.normalises:
            return x
        mean, std, size = self._statistics(x)
        if self.config.normalize_activations == "layer_norm":
            return (x - mean) / (std + LAYER_NORM_EPSILON)
        return (x - mean) / size

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of each activation, [*batch, 1]: what is subtracted, its standard deviation (ddof 1), its norm / sqrt(d_in)."""
        norm = self.config.normalize_activations
        mean = x.mean(-1, keepdim=True) if self.config.centred_input or norm == "layer_norm" else x.new_zeros(1)
        std, size = x.new_ones(1), x.new_ones(1)
        if norm == "layer_norm":
            std = (x - mean).std(-1, keepdim=True)
        elif norm == "constant_norm_rescale":
            size = (x - mean).norm(dim=-1, keepdim=True).clamp_min(1e-30) / math.sqrt(self.config.d_in)
        return mean, std, size

    def restore(
        self, x_hat: Float[Tensor, "*batch d_in"], x: Float[Tensor, "*any"] | None = None
    ) -> Float[Tensor, "*reconstruction"]:
        """A reconstruction of ``normalise(x)`` -> one of x, in x's shape. Raises SaeError where x is needed and not given."""
        if x is None:
            if self.config.normalises:
                raise SaeError(
                    "this SAE normalises each activation (its config says how) and undoes that in the reconstruction; "
                    "give the activation too: decode(z, x), or call the SAE itself"
                )
            return x_hat
        if self.config.normalises:
            mean, *_ = self._statistics(self._flattened(x).to(self.W_enc))
            x_hat = x_hat * self.scale(x) + mean
        return x_hat if x.shape[-1] == self.config.d_in else x_hat.view(x.shape)

    def scale(self, x: Float[Tensor, "*any"]) -> Tensor:
        """[*batch, 1]: by what a latent's part of a reconstruction of ``normalise(x)`` is multiplied to be its part of x."""
        _, std, size = self._statistics(self._flattened(x).to(self.W_enc))
        return (std * size).expand(*x.shape[:-1], 1) if x.shape[-1] == self.config.d_in else std * size

    def _flattened(self, x: Tensor) -> Tensor:
        d_in = self.config.d_in
        if x.shape[-1] == d_in:
            return x
        if x.ndim > 2 and x.shape[-2] * x.shape[-1] == d_in and has_heads(self.config.metadata.get("hook_name")):
            return x.flatten(-2)
        raise SaeError(f"activation has width {x.shape[-1]}, this SAE was trained on width {d_in}")

    def pre_activations(
        self, x: Float[Tensor, "*any"], latents: Sequence[int] | None = None
    ) -> Float[Tensor, "*batch latents"]:
        """Before it is decided which latents fire; x as `normalise` takes it. latents: some alone, in this order."""
        x = self.normalise(x)
        if self.config.apply_b_dec_to_input:
            x = x - self.b_dec
        W_enc, b_enc = self.W_enc, self.b_enc
        if latents is not None:
            W_enc, b_enc = W_enc[:, [*latents]], b_enc[[*latents]]
        return nn.functional.linear(x, W_enc.T, b_enc)  # one pass over what comes out, not two

    def encode(self, x: Float[Tensor, "*any"]) -> Float[Tensor, "*batch d_sae"]:
        """Latent activations, dense, >= 0, of x [*batch, d_in]."""
        return self.activate(self.pre_activations(x))

    def activate(self, pre: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """Which latents fire, given their pre-activations."""
        if self.config.architecture == "topk":
            values, indices = pre.topk(self.config.k or 0, dim=-1, sorted=False)
            return torch.zeros_like(pre).scatter_(-1, indices, values.relu())
        if self.config.architecture == "jumprelu":
            return pre.relu() * (pre > self.threshold)
        if self.config.architecture == "groupmax":
            values, indices = pre.relu().unflatten(-1, (self.config.k or 1, -1)).max(-1, keepdim=True)
            blocks = pre.new_zeros(*pre.shape[:-1], self.config.k or 1, pre.shape[-1] // (self.config.k or 1))
            return blocks.scatter_(-1, indices, values).flatten(-2)
        return pre.relu()

    def decode(
        self, z: Float[Tensor, "*batch d_sae"], x: Float[Tensor, "*any"] | None = None
    ) -> Float[Tensor, "*reconstruction"]:
        """x: the activation that z encodes. Only an SAE that normalises activations needs it, and says so."""
        if z.shape[-1] != self.config.d_sae:
            raise SaeError(
                f"latents have width {z.shape[-1]}, this SAE has {self.config.d_sae}; give what encode gives"
            )
        return self.restore(z @ self.W_dec + self.b_dec, x)

    def forward(self, x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        """Reconstruction of x, in x's dtype and shape."""
        return self.decode(self.encode(x), x).to(x.dtype)


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
    # whether b_dec is taken off the input or folded into b_enc, the SAE is the same; random encoders need it off
    config = replace(like.config, architecture="topk", k=min(d_sae, max(1, round(l0))), apply_b_dec_to_input=True)
    return SAE(
        config, {"W_dec": rows, "W_enc": rows.T, "b_enc": torch.zeros(d_sae), "b_dec": like.b_dec.detach().cpu()}
    )
