"""sae_lm.synthetic.batched_training: an SAE of many is the one that the trainer makes."""

import pytest
import torch
from recipes import training_recipe
from torch.optim.optimizer import register_optimizer_step_pre_hook
from toys import TREE

from sae_lm.penalties.arms import parse_arm
from sae_lm.runtime.seeds import derive
from sae_lm.synthetic.batched_training import ToyRecipe, ToyTrial, encode, moments, train
from sae_lm.synthetic.worlds import directions, inputs, some_inputs
from sae_lm.training.trainer import ArmTraining


def divide_gradients(optimizer, *_):
    """By the scale that the fused Adam takes in single precision only."""
    if getattr(optimizer, "grad_scale", None) is None:
        return
    for group in optimizer.param_groups:
        for weight in group["params"]:
            weight.grad /= optimizer.grad_scale
    optimizer.grad_scale = None


@pytest.fixture
def in_double_precision(monkeypatch):
    """In single precision the two round differently, by machine, and within 40 steps another latent is the k-th."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    divided = register_optimizer_step_pre_hook(divide_gradients)
    yield
    divided.remove()
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "text",
    [
        "none",
        "none@arch=matryoshka",
        "none@arch=matryoshka@balance=0.3",
        "none@arch=matryoshka@balance=0",
        "none@arch=matryoshka@prefixes=2",
        "coactive:0.5@anchored@exact@every=1@arch=matryoshka",
        "none@arch=batchtopk",
        "none@arch=relu",
        "max_cos:0.5@exact@every=1",
        "coactive:0.5@anchored@exact@every=1@start=0.2",
        "freq_cos:0.5@exact@every=1@warm_up=0.5",
        "sq_cos:2@exact@every=1@on=encoder",
        "c2r:50@exact@every=1@arch=batchtopk",
        "silent:2@exact@every=1",
        "align:1@every=1",
        "none@decoder=0.9",
        "max_cos:0.5@exact@every=1@on=encoder@decoder=frozen",
        "none@encoder=frozen",
    ],
)
@pytest.mark.parametrize("optimizer", ["row_rms", "adam"])
def test_an_sae_of_many_is_the_one_that_the_trainer_makes(text, optimizer, in_double_precision):
    # at step 36 two latents change places in frequency, which silent's neighbours see at their next search only
    steps, batch, d_sae, seeds = 30 if text.startswith("silent") else 40, 32, 10, 2
    arm = parse_arm(text)
    arch = arm.arch or "topk"
    recipe = ToyRecipe(d_sae, arch, steps, lr=0.01, k=2, l1=0.05, batch=batch, optimizer=optimizer)
    world = TREE._replace(spread=(0.1,) * TREE.size)  # equal inputs tie, and whose tie is broken which way is luck
    widths = (3, d_sae) if arch == "matryoshka" else None
    trials = [ToyTrial(arm, widths=widths), ToyTrial(arm._replace(penalty="none", coefficient=0.0), widths=widths)]
    saes = train(world, trials, recipe, seeds)
    features = torch.stack([directions(world, seed) for seed in range(seeds)])
    mean, scale = moments(world, features)
    seed = 1
    training = training_recipe(
        steps, d_sae=d_sae, arch=arch, k=2, lr=0.01, aux_coefficient=0.0, matmul="float64", widths=(3, d_sae), sparsity_coefficient=0.05,
        optimizer=optimizer,
    )  # fmt: skip
    real = ArmTraining(arm, seed, training, mean[seed] / scale[seed], "cpu")
    real._start_sparse = lambda centred: real.control.begin(0.05)  # a toy's biases begin at 0
    draws = torch.Generator().manual_seed(derive("batches", seed))
    for step in range(steps):
        real.step(some_inputs(world, batch, [draws]).sizes[0] @ features[seed] / scale[seed], step)
    sae = real.finish(float(scale[seed]), {})
    torch.testing.assert_close(saes.W_dec[0, seed], real.W_dec.detach())
    torch.testing.assert_close(saes.encoder[0, seed], real.weights.encoder.detach())
    torch.testing.assert_close(saes.b_dec[0, seed], real.weights.b_dec.detach() * scale[seed])
    x = inputs(world, seeds, 50, "held out").sizes @ features
    torch.testing.assert_close(encode(saes, x, 0, arch, 2)[seed], sae.encode(x[seed]))


def test_the_penalty_moves_an_sae_only_while_its_schedule_says_so():
    recipe = ToyRecipe(10, "topk", 30, lr=0.01, k=2, batch=32)
    arms = ["none", "max_cos:1", "max_cos:1@start=0.5"]
    trials = [ToyTrial(parse_arm(arm)) for arm in arms] + [ToyTrial(parse_arm("max_cos:1"), stop=0.0)]
    W_dec = train(TREE, trials, recipe, 1).W_dec[:, 0]
    torch.testing.assert_close(W_dec[0], W_dec[3])
    apart = (W_dec - W_dec[0]).norm(dim=(1, 2))
    assert apart[1] > apart[2] > 0


def test_trials_do_not_notice_each_other(monkeypatch):
    recipe = ToyRecipe(10, "topk", 20, lr=0.01, k=2, batch=32)
    trials = [
        ToyTrial(parse_arm(arm)) for arm in ("sq_cos:3", "none", "coactive:1", "sq_cos:0.1", "abs_cos:1@margin=0.1")
    ]
    together = train(TREE, trials, recipe, 2)
    monkeypatch.setattr("sae_lm.synthetic.batched_training.AT_ONCE", 1)  # one trial at a time
    apart = train(TREE, trials, recipe, 2)
    for a, b in zip(together, apart, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(together.W_dec[0], together.W_dec[3], atol=1e-3)


def test_the_truth_is_held_where_asked_and_elsewhere_only_begun_with():
    recipe = ToyRecipe(10, "topk", 30, lr=0.01, k=2, batch=32)
    none = parse_arm("none")
    trials = [ToyTrial(none), ToyTrial(none, truth="start"), ToyTrial(none, truth="fixed")]
    saes, features = train(TREE, trials, recipe, 1), directions(TREE, 0)
    cosines = torch.einsum("tmd,md->tm", saes.W_dec[:, 0, :8], features)
    torch.testing.assert_close(cosines[2], torch.ones(8))
    assert not torch.allclose(saes.encoder[2, 0, :8], features, atol=1e-3)  # the encoder learns
    assert cosines[1].min() < 0.9999 and cosines[1].mean() > 0.8 and cosines[0].mean() < 0.8


def test_a_trial_is_called_by_what_it_does():
    assert ToyTrial(parse_arm("coactive:0.7@anchored")).name == "coactive:0.7@anchored"
    assert ToyTrial(parse_arm("max_cos:1"), stop=0.5).name == "max_cos:1, off at 0.5"
    assert ToyTrial(parse_arm("none"), truth="fixed").name == "truth held"
    assert ToyTrial(parse_arm("none"), truth="start", again=True).name == "truth at the start, again"
    assert ToyTrial(parse_arm("none@arch=matryoshka"), widths=(3, 8)).name == "none@arch=matryoshka, widths 3/8"
