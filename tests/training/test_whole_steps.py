"""A step of the trainer, loss and penalty together: its gradients are those of dense autograd, whatever is combined."""

import pytest
import torch
from gradients import drop_radial, seen_by_optimizer
from recipes import training_recipe
from reference import (
    anchored_coactivation,
    anchored_ortsae,
    coactivation_sq_cos,
    cross_sample,
    dense_loss,
    independent_sq_cos,
    mean_abs_cos,
    mean_sq_cos,
    misalignment,
    ortsae,
    silent_generals,
)

from sae_lm.penalties.arms import parse_arm
from sae_lm.training.trainer import ArmTraining

D_SAE, WIDTHS, K, D_IN, STEPS = 24, (2, 6, 24), 3, 8, 4
NESTINGS = ("matryoshka", "matryoshka@balance=0.3", "matryoshka@widths=5+24", "matryoshka@prefixes=2")


PENALTIES = {
    "abs_cos:2": lambda encoder, rows, z, rate: mean_abs_cos(rows),
    "sq_cos:2": lambda encoder, rows, z, rate: mean_sq_cos(rows),
    "max_cos:2": lambda encoder, rows, z, rate: ortsae(rows),
    "max_cos:2@anchored": lambda encoder, rows, z, rate: anchored_ortsae(rows, rate),
    "coactive:2": lambda encoder, rows, z, rate: coactivation_sq_cos(rows, z.detach() > 0),
    "coactive:2@anchored": lambda encoder, rows, z, rate: anchored_coactivation(rows, rate, z.detach() > 0),
    "freq_cos:2": lambda encoder, rows, z, rate: independent_sq_cos(rows, rate),
    "c2r:150": lambda encoder, rows, z, rate: cross_sample(rows, z),
    "c2r:150@anchored": lambda encoder, rows, z, rate: cross_sample(rows, z, rate),
    "silent:2": lambda encoder, rows, z, rate: silent_generals(rows, rate, z.detach() > 0),
    "align:6": lambda encoder, rows, z, rate: misalignment(encoder, rows),
}
"""Arm -> the plain penalty, of encoder and decoder rows, codes and how often latents have fired before."""
MOVE_ENCODERS = ("c2r", "align")


def nested(run):
    """The prefixes of the step that was made."""
    return () if run.prefixes.widths is None else tuple(run.prefixes.widths.tolist())


@pytest.mark.parametrize("arch", ["topk", "batchtopk", "relu", "jumprelu", *NESTINGS])
@pytest.mark.parametrize("text", PENALTIES)
def test_a_whole_step_has_the_gradients_of_dense_autograd_through_loss_and_penalty(text, arch, monkeypatch):
    recipe = training_recipe(
        d_sae=D_SAE, k=K, matmul="float32", sparsity_coefficient=0.1, warm_up=0.0, widths=WIDTHS, lr=3e-2
    )
    exact = "" if "align" in text else "@exact"  # which it has no need of
    run = ArmTraining(parse_arm(f"{text}{exact}@every=1@arch={arch}"), 0, recipe, torch.zeros(D_IN), "cpu")
    run.penalty_term.first = 0  # how often latents fire is given here from the first step on
    coefficient, plain = float(text.partition(":")[2].partition("@")[0]), PENALTIES[text]
    seen = seen_by_optimizer(run, monkeypatch)
    draw, pulled = torch.Generator().manual_seed(7), 0.0
    for step in range(STEPS):
        x = torch.randn(16, D_IN, generator=draw) / 3
        if step == 0:
            with torch.no_grad():
                run._start_sparse(x)
            run._start_sparse = lambda centred: None
        leaves = {name: weight.detach().clone().requires_grad_() for name, weight in run.named.items()}
        rate = torch.rand(D_SAE, generator=draw)  # no two fire equally often
        run.firing_frequency.copy_(rate)
        sparsity = float(run.control.coefficient)
        run.step(x, step)
        encoder, b_enc, W_dec, b_dec, *threshold = leaves.values()
        loss, z = dense_loss(
            run.arch, x, encoder.T, b_enc, W_dec, b_dec, *threshold, k=K, widths=nested(run),
            balance=run.arm.balance, sparsity=sparsity, bandwidth=recipe.bandwidth,
        )  # fmt: skip
        penalty = coefficient * plain(encoder, W_dec, z, rate)
        of_penalty = torch.autograd.grad(penalty, leaves.values(), retain_graph=True, allow_unused=True)
        of_encoder = of_penalty[0]
        moves = of_encoder is not None and float(of_encoder.abs().max()) > 1e-3
        # an encoder that begins aligned is not moved at first
        assert moves == text.startswith(MOVE_ENCODERS) or (step == 0 and "align" in text)
        pulled = max(pulled, *(float(part.abs().max()) for part in of_penalty if part is not None))
        expected = dict(zip(leaves, torch.autograd.grad(loss + penalty, leaves.values()), strict=True))
        for gradients in (expected, seen):
            drop_radial(gradients, W_dec.detach())
        for name, gradient in seen.items():
            torch.testing.assert_close(
                gradient, expected[name], atol=2e-6, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
            )
    assert pulled > 1e-2  # far above the tolerance
