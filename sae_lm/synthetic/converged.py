"""Has an SAE of a toy converged? Twice and four times the steps, and another start on the same inputs, say so."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lm.sae.directions import unit_rows
from sae_lm.synthetic.batched_training import ToyTrial, train
from sae_lm.synthetic.experiments import Experiment
from sae_lm.synthetic.suite import judge_trials

FOUND = 0.7
"""Cosine from which a latent counts as found again, as `compare` has it between seeds."""
SHOWN = ("fvu", "hole", "gap", "mcc", "recovered", "dead")


def converged(
    experiment: Experiment, trial: ToyTrial, seeds: int, times: Sequence[float] = (1.0, 2.0, 4.0)
) -> list[dict[str, Any]]:
    """For each number of steps the trial's means over seeds, and the share of its latents that another start finds."""
    lines = []
    for factor in times:
        longer = experiment._replace(recipe=experiment.recipe._replace(steps=round(factor * experiment.recipe.steps)))
        both = (trial, trial._replace(again=True))
        saes = train(longer.world, both, longer.recipe, seeds)
        of_trial = judge_trials(longer, both, saes)[trial.name]
        again = [found_again(*saes.W_dec[:, seed]) for seed in range(seeds)]
        means = {metric: sum(of_trial[metric]) / seeds for metric in SHOWN}
        lines.append({"steps": longer.recipe.steps, **means, "found again": sum(again) / seeds})
    return lines


def found_again(a: Float[Tensor, "d_sae d_in"], b: Float[Tensor, "d_sae d_in"]) -> float:
    """Share of latents matched one to one at a cosine of `FOUND` or more."""
    from scipy.optimize import linear_sum_assignment  # half a second's import

    cosines = unit_rows(a) @ unit_rows(b).T
    rows, columns = linear_sum_assignment(cosines.numpy(), maximize=True)
    return float((cosines[torch.from_numpy(rows), torch.from_numpy(columns)] >= FOUND).double().mean())
