"""sae_lm.synthetic.converged: twice the steps and another start."""

import torch
from toys import TREE

from sae_lm.sae.directions import unit_rows
from sae_lm.synthetic.batched_training import ToyRecipe
from sae_lm.synthetic.converged import converged, found_again
from sae_lm.synthetic.experiments import BASELINE, EXPERIMENTS


def test_latents_in_another_order_are_all_found_again_and_random_ones_are_not():
    rows = unit_rows(torch.randn(20, 64, generator=torch.Generator().manual_seed(0)))
    assert found_again(rows, rows.flip(0)) == 1
    half = torch.cat([rows[:10], unit_rows(torch.randn(10, 64, generator=torch.Generator().manual_seed(1)))])
    assert found_again(rows, half) == 0.5


def test_more_steps_and_another_start_are_told_line_by_line():
    recipe = ToyRecipe(d_sae=8, arch="topk", steps=60, lr=0.02, k=3, batch=64)
    experiment = EXPERIMENTS[0]._replace(key="trees", world=TREE, recipe=recipe)
    lines = converged(experiment, BASELINE, seeds=2, times=(0.5, 5.0))
    assert [line["steps"] for line in lines] == [30, 300]
    assert lines[1]["fvu"] < lines[0]["fvu"] and lines[1]["mcc"] > lines[0]["mcc"]
    assert lines[1]["found again"] > lines[0]["found again"]
