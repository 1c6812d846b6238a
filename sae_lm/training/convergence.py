"""Tell how far the training of an SAE has come: is it still near its random start, and is its error still falling?

Two figures, both cheap. *Cosine to the start*: the mean cosine of decoder rows (or encoder rows) with the random
directions that they began at. The seed draws these again, so that nothing has to be kept beside an SAE. A latent that
was resampled still counts from its first direction, which it left for a row of the data.

*Fall of FVU*: by how much the batches' FVU falls when the steps double. It is read off the log's lines in the second
half of the steps before the learning rate decays. What falls during the decay is the noise of large steps, not what more
training would take away. A figure of the whole run would be one of its first steps, in which FVU falls in any case.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_lm.runtime.seeds import derive

if TYPE_CHECKING:
    from sae_lm.training.recipe import TrainingRecipe

LOGGED_ROWS = 4096
"""Latents whose start is kept for the log, at most; taken at equal distances, since a prefix of a nested dictionary
trains otherwise than the rest."""
FEWEST_LINES = 4
"""Lines of the log that a fall of FVU is read off, at least."""
HELD = ("decoder", "encoder")
"""Options of an arm that hold a side near its start on purpose: a control, which no training is to move."""

MOST_START_COS = 0.5
"""Cosine to the start from which an SAE hardly left it."""
MOST_FALL = 0.15
"""Fall of FVU per doubling of steps from which an SAE is in the middle of learning."""
ADVICE = "give more --tokens or a higher --lr"


def random_start(seed: int, d_sae: int, d_in: int) -> Float[Tensor, "d_sae d_in"]:
    """The directions of norm 1 that encoder and decoder rows of a seed begin at, in every arm and architecture."""
    rows = torch.randn(d_sae, d_in, generator=torch.Generator().manual_seed(derive("weights", seed)))
    return rows / rows.norm(dim=1, keepdim=True)


def every_nth(d_sae: int, most: int = LOGGED_ROWS) -> slice:
    """Latents at equal distances, at most so many."""
    return slice(None, None, -(-d_sae // most))


@torch.no_grad()
def start_cosines(
    W_dec: Float[Tensor, "n d_in"],
    encoder: Float[Tensor, "n d_in"],
    start: Float[Tensor, "n d_in"],
    alive: Bool[Tensor, " n"],
) -> dict[str, float]:
    """``start_cos`` of decoder rows and ``encoder_start_cos`` of encoder rows, means over living latents.

    encoder: W_enc.T. start: of these latents. Rows may have any norm. Nothing where no latent is alive.
    """
    if not alive.any():
        return {}
    sides = {"start_cos": W_dec, "encoder_start_cos": encoder}
    return {
        name: float(torch.nn.functional.cosine_similarity(rows.float(), start, dim=1)[alive].double().mean())
        for name, rows in sides.items()
    }


def sae_start_cosines(sae: Any, seed: int, alive: Bool[Tensor, " d_sae"]) -> dict[str, float]:
    """`start_cosines` of a whole SAE that ``sae-lm train`` made of this seed."""
    W_dec = sae.W_dec.detach()
    start = random_start(seed, *W_dec.shape).to(W_dec.device)
    return start_cosines(W_dec, sae.W_enc.detach().T, start, alive)


def fvu_slope(lines: Iterable[Mapping[str, Any]], recipe: "TrainingRecipe") -> float | None:
    """Relative fall of FVU per doubling of the steps: .2 where twice the steps leave 80% of it; below 0 it rose.

    A straight line through log FVU against log step, over the second half of the steps before the decay (and after the
    warm-up). None where fewer than four lines of the log are there.
    """
    last = (1 - recipe.decay) * recipe.steps
    first = max(last / 2, recipe.warm_up * recipe.steps)
    points = [
        (math.log2(line["step"] + 1), math.log2(line["fvu"]))
        for line in lines
        if first <= line["step"] + 1 <= last and line["fvu"] > 0
    ]
    if len(points) < FEWEST_LINES:
        return None
    x, y = torch.tensor(points, dtype=torch.float64).T
    x = x - x.mean()
    return 1 - 2 ** float((x * y).sum() / x.square().sum())


def convergence(lines: Sequence[Mapping[str, Any]], recipe: "TrainingRecipe") -> dict[str, float]:
    """What an SAE's metadata says under ``convergence``: the last line's cosines to the start, and ``fvu_slope``.

    lines: of its log, in order. What is not known is left out.
    """
    found = {key: lines[-1][key] for key in ("start_cos", "encoder_start_cos") if lines and key in lines[-1]}
    slope = fvu_slope(lines, recipe)
    return found if slope is None else found | {"fvu_slope": slope}


def span(numbers: Iterable[float], form: str) -> str:
    """One number, or the least and the largest of several, as ``0.70 to 0.74``; empty where none is known."""
    known = [number for number in numbers if math.isfinite(number)]
    return " to ".join(dict.fromkeys(form.format(end) for end in (min(known), max(known)))) if known else ""


def state_of_training(saes: Mapping[str, Sequence[Mapping[str, float]]]) -> str | None:
    """One line on SAEs just trained, and what to do if they are not trained yet; None where nothing is known.

    saes: arm -> `convergence` of each seed. Arms that are held at their start are left out.
    """
    told = [of for arm, seeds in saes.items() if not is_held(arm) for of in seeds]
    start, encoder, slope = (
        [of[key] for of in told if key in of] for key in ("start_cos", "encoder_start_cos", "fvu_slope")
    )
    if not start:
        return None
    line = f"decoder rows keep cosine {span(start, '{:.2f}')} with their random start"
    line += f" (encoder rows {span(encoder, '{:.2f}')})" if encoder else ""
    line += f", FVU fell by {span(slope, '{:.0%}')} when steps doubled" if slope else ""
    if max(start) >= MOST_START_COS:
        return f"{line}: hardly trained, {ADVICE}"
    return f"{line}: still learning, {ADVICE}" if slope and max(slope) > MOST_FALL else line


def is_held(arm: str) -> bool:
    """Whether an SAE records an arm of this name that is a control; of an `Arm` ask its ``is_held``."""
    return any(f"@{option}=" in arm for option in HELD)
