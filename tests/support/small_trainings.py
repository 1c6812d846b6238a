"""SAEs of a few latents in training, some dozen steps on random batches."""

import torch
from recipes import training_recipe

from sae_lm.penalties.arms import Arm
from sae_lm.training.trainer import ArmTraining

RECIPE = {
    "k": 3,
    "steps": 40,
    "lr": 1e-2,
    "warm_up": 0.1,
    "decay": 0.2,
    "penalty_every": 2,
    "aux_k": 4,
    "dead_after": 64,
    "matmul": "float32",
    "d_sae": 24,
}
NONE = Arm("none", 0.0)
ARCHITECTURES = ["relu", "topk", "batchtopk", "jumprelu", "matryoshka"]


def recipe(**changes):
    return training_recipe(**{**RECIPE, **changes})


HYPER = recipe()


def made(kind=NONE, h=HYPER, seed=0, d_in=8):
    return ArmTraining(kind, seed, h, torch.zeros(d_in), "cpu")


def batches(steps, rows=16, d_in=8):
    draw = torch.Generator().manual_seed(7)
    return [torch.randn(rows, d_in, generator=draw) / d_in**0.5 for _ in range(steps)]


def sparse_batches(steps, rows=32, d_in=8):
    """Rows that are sums of few of twenty features."""
    draw = torch.Generator().manual_seed(7)
    features = torch.randn(20, d_in, generator=draw) / 3
    on = (torch.rand(steps, rows, 20, generator=draw) < 0.15) * torch.rand(steps, rows, 20, generator=draw)
    return list(on @ features)


def trained(kind=NONE, h=HYPER, seed=0, steps=40):
    run = made(kind, h, seed)
    for step, x in enumerate(batches(steps)):
        run.step(x, step)
    return run


def equal(a, b):
    return all(torch.equal(p, b.named[name]) for name, p in a.named.items())
