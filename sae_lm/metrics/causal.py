"""Take an absorber away from a token, and ask whether the concept goes with it and what it costs the language model.

On an absorbed token (`full_scores`) the concept's main latents are silent and a single other latent, the absorber,
carries the concept's direction. Taking that latent's part out of the activation is what zeroing it does in an SAE
spliced in with its error term. If the probe then says no, the absorber did carry what the probe reads. A step of
equal length along another latent that fires there, that of the nearest strength, says what any latent would do.
"""

from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lm.lm.device_map import input_device
from sae_lm.metrics.absorption import ConceptAtSae, full_scores, projections
from sae_lm.metrics.codes import at_entries
from sae_lm.metrics.language_model import LOGITS, PrefixCache

if TYPE_CHECKING:
    from sae_lm.lm.bridge import TransformerBridge


class Absorbers(NamedTuple):
    """The absorbers of a concept's absorbed tokens."""

    place: Int[Tensor, " n"]
    """of each token among the concept's candidates"""
    absorber: Int[Tensor, " n"]
    """its latent"""
    other: Int[Tensor, " n"]
    """of the other latents that fire there, the one of the nearest strength; -1 where none does"""
    strength: Float[Tensor, " n"]
    """of the absorber, z ||d||; the other is taken away at this strength too"""


def find_absorbers(concept: ConceptAtSae, main: list[int]) -> Absorbers:
    parts = projections(concept, main)
    codes, top = concept.codes, parts.top_entry
    strength = at_entries(codes.strength, top)
    distance = (codes.strength - strength.index_select(0, codes.token)).abs()
    distance[top[top >= 0]] = torch.inf
    nearest, other = codes.largest(-distance)
    place = full_scores(parts).nonzero().flatten()
    absorber = codes.latent[top[place]].long()
    beside = torch.where(nearest[place].isfinite(), codes.latent[other[place]].long(), -1)
    return Absorbers(place, absorber, beside, strength[place])


def parts_of(
    W_dec: Float[Tensor, "d_sae d_in"], latent: Int[Tensor, " n"], strength: Float[Tensor, " n"]
) -> Float[Tensor, "n d_in"]:
    """What each latent adds to the reconstruction at a strength."""
    rows = W_dec[latent]
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12) * strength[:, None].to(rows)


def still_says_yes(
    x: Float[Tensor, "n d_in"], part: Float[Tensor, "n d_in"], weight: Float[Tensor, " d_in"], bias: float
) -> Bool[Tensor, " n"]:
    """Whether the probe does without that part of the activations."""
    return (x - part) @ weight + bias > 0


@torch.no_grad()
def removal_divergences(
    model: "TransformerBridge",
    hook: str,
    blocks: Int[Tensor, "n pos"],
    position: Int[Tensor, " n"],
    removed: list[Float[Tensor, "n d_in"]],
) -> list[Float[Tensor, " n"]]:
    """KL(model || model without that part of the activation) of the next token, nats, at one position of each context.

    Of each context only what stands before the position is read: the model has to be causal.

    removed: of each kind of removal, what is taken from the activation at ``hook`` and that position.
    """
    from sae_lm.lm.bridge import FORWARD_KWARGS, replace_activation

    device = input_device(model)
    prefix = PrefixCache(model, hook)

    def log_probability(tokens: Tensor, at: Tensor, part: Tensor | None) -> Tensor:
        row = torch.arange(len(tokens), device=device)

        def take_away(x: Tensor) -> Tensor:
            if part is None:
                return x
            x = x.clone()
            x[row.to(x.device), at.to(x.device)] -= part.to(x)
            return x

        with replace_activation(model, hook, take_away):
            return model(tokens, return_type="logits", **FORWARD_KWARGS)[row, at].float().log_softmax(-1)

    size = max(1, min(16, LOGITS // max(1, blocks.shape[1] * model.cfg.d_vocab)))
    divergences: list[list[Tensor]] = [[torch.zeros(0)] for _ in removed]
    order = position.argsort()  # what comes after a position is left out; contexts of like length stand together
    for number, chosen in enumerate(order.split(size)):
        at = position[chosen].long()
        tokens, at = blocks[chosen, : int(at.max()) + 1].long().to(device), at.to(device)
        with prefix.recorded():
            clean = log_probability(tokens, at, None)
        if number == 0:
            prefix.check(lambda tokens=tokens, at=at: log_probability(tokens, at, None), clean)
        with prefix.replayed():
            for parts, out in zip(removed, divergences, strict=True):
                without = log_probability(tokens, at, parts[chosen])
                out.append((clean.exp() * (clean - without)).sum(1).cpu())
    return [torch.cat(parts)[order.argsort()] for parts in divergences]
