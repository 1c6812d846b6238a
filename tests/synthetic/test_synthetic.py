"""Worlds of known features: what is drawn, what is scored, and that the batched training is the trainer's."""

import math

import pytest
import torch
from reference import cosines

from sae_lm.penalties.arms import parse_arm
from sae_lm.penalties.coactive import coactive
from sae_lm.penalties.max_cos import max_cos
from sae_lm.penalties.pairwise import abs_cos, freq_cos, sq_cos
from sae_lm.runtime.seeds import derive
from sae_lm.sae.sparse import Codes
from sae_lm.synthetic.batched_penalties import penalties
from sae_lm.synthetic.batched_training import ToyRecipe, ToyTrial, encode, moments, train
from sae_lm.synthetic.scores import CodedInputs, KnownInputs, score
from sae_lm.synthetic.worlds import Singles, Trees, World, all_inputs, directions, forest, inputs, some_inputs
from sae_lm.training.recipe import Hyperparameters
from sae_lm.training.trainer import ArmTraining

TREE = forest(12, Trees(2, 0.4, children=2, child_probability=0.3), Singles(2, 0.2))
STRAYS = World(d_in=6, parent=(None, 0, None), probability=(0.25, 0.2, 0.05), stray=(0, 0.01, 0))


# ---- worlds -------------------------------------------------------------------------------------------


def test_a_forest_lists_its_trees_root_first_and_then_what_stands_alone():
    assert TREE.parent == (None, 0, 0, None, 3, 3, None, None)
    assert TREE.probability == (0.4, 0.3, 0.3, 0.4, 0.3, 0.3, 0.2, 0.2)
    assert TREE.pairs == [(0, 1), (0, 2), (3, 4), (3, 5)]


def test_listed_inputs_have_the_probabilities_of_the_world():
    every = all_inputs(STRAYS, seeds=2)
    assert every.sizes.shape == (2, 8, 3) and float(every.weight.sum()) == pytest.approx(1)
    share = {tuple(map(int, row)): float(p) for row, p in zip(every.sizes[0], every.weight, strict=True)}
    assert share[1, 1, 0] == pytest.approx(0.25 * 0.2 * 0.95)
    assert share[1, 0, 1] == pytest.approx(0.25 * 0.8 * 0.05)
    assert share[0, 1, 0] == pytest.approx(0.75 * 0.01 * 0.95)


def test_siblings_are_never_on_together_and_children_only_with_their_parent():
    every = all_inputs(TREE, seeds=1).sizes[0]
    assert len(every) == 4 * 4 * 4  # a tree is off, or on with either child or none
    drawn = some_inputs(TREE, 2000, [torch.Generator().manual_seed(0)]).sizes[0]
    for sizes in (every, drawn):
        assert not (sizes[:, 1] * sizes[:, 2]).any() and not (sizes[:, 4] * sizes[:, 5]).any()
        for parent, child in TREE.pairs:
            assert (sizes[sizes[:, child] > 0][:, parent] > 0).all()


@pytest.mark.parametrize("world", [TREE, STRAYS], ids=["exclusive children", "strays"])
def test_drawn_inputs_occur_as_often_as_listed_ones_say(world):
    drawn = some_inputs(world, 40_000, [torch.Generator().manual_seed(3)]).sizes[0]
    every = all_inputs(world, 1)
    patterns = 2.0 ** torch.arange(world.size)
    for code, expected in zip(every.sizes[0] @ patterns, every.weight, strict=True):
        share = float((drawn @ patterns == code).double().mean())
        assert share == pytest.approx(float(expected), abs=5 * math.sqrt(float(expected) / 40_000) + 1e-4)


def test_sizes_spread_about_one_only_where_a_feature_is_on():
    sizes = some_inputs(TREE._replace(spread=(0.1,) * 8), 20_000, [torch.Generator().manual_seed(1)]).sizes[0]
    on = sizes[sizes > 0]
    assert float(on.mean()) == pytest.approx(1, abs=0.01) and float(on.std()) == pytest.approx(0.1, abs=0.01)
    assert float((sizes[:, 0] > 0).double().mean()) == pytest.approx(0.4, abs=0.02)


def test_directions_are_orthonormal_unless_superposed_and_differ_by_seed():
    rows = directions(TREE, 0)
    torch.testing.assert_close(rows @ rows.T, torch.eye(8), atol=1e-5, rtol=0)
    crowded = directions(forest(4, Trees(3, 0.1, 2, 0.1), superposed=True), 0)
    assert crowded.shape == (9, 4)
    torch.testing.assert_close(crowded.norm(dim=1), torch.ones(9))
    assert not torch.equal(rows, directions(TREE, 1)) and torch.equal(rows, directions(TREE, 0))


# ---- penalties: the trainer's -------------------------------------------------------------------------


def random_case(seed: int, m: int = 7, n: int = 40):
    """Rows of any norm and codes of a batch with the same number of active latents on no two rows."""
    draws = torch.Generator().manual_seed(seed)
    rows = torch.randn(m, 5, generator=draws, dtype=torch.float64) * (0.5 + torch.rand(m, 1, generator=draws))
    on = torch.rand(n, m, generator=draws) < 0.3
    rate = torch.rand(m, generator=draws, dtype=torch.float64)
    starts = torch.cat([torch.zeros(1, dtype=torch.long), on.sum(1).cumsum(0)])
    latent = on.nonzero()[:, 1]
    return rows, on, Codes(starts, latent, torch.ones(len(latent), dtype=torch.float64), rate)


def cofiring_over(margin: float, rows, codes):
    """coactive of what cosines have above a margin, which the trainer's does not have, pair by pair."""
    fires = torch.zeros(len(codes.starts) - 1, len(rows), dtype=rows.dtype)
    fires[torch.arange(len(fires)).repeat_interleave(codes.starts.diff()), codes.latent] = 1
    excess = (cosines(rows).abs() - margin).clamp_min(0)
    return (fires.T @ fires * excess.square()).sum() / fires.sum()


@pytest.mark.parametrize(
    ("name", "anchored", "margin", "real"),
    [
        ("abs_cos", False, 0.0, lambda r, c: abs_cos(r)),
        ("abs_cos", False, 0.2, lambda r, c: abs_cos(r, margin=0.2)),
        ("sq_cos", False, 0.0, lambda r, c: sq_cos(r)),
        ("max_cos", False, 0.0, lambda r, c: max_cos(r)),
        ("max_cos", False, 0.2, lambda r, c: max_cos(r, margin=0.2)),
        ("max_cos", True, 0.0, lambda r, c: max_cos(r, codes=c, anchored=True)),
        ("freq_cos", False, 0.0, lambda r, c: freq_cos(r, codes=c)),
        ("coactive", False, 0.0, lambda r, c: coactive(r, codes=c)),
        ("coactive", True, 0.0, lambda r, c: coactive(r, codes=c, anchored=True)),
        ("coactive", False, 0.2, lambda r, c: cofiring_over(0.2, r, c)),
    ],
    ids=lambda value: str(value) if isinstance(value, (str, bool, float)) else "",
)
def test_a_batched_penalty_is_the_trainers_in_value_and_gradient(name, anchored, margin, real):
    cases = [random_case(seed) for seed in range(6)]
    rows = torch.stack([rows for rows, _, _ in cases]).view(2, 3, 7, 5).requires_grad_()
    rate = torch.stack([codes.rate for *_, codes in cases]).view(2, 3, 7)
    on = torch.stack([on for _, on, _ in cases]).double().view(2, 3, 40, 7)
    margins = torch.full((2, 1, 1), margin, dtype=torch.float64)
    values = penalties(name, rows, rate, on.mT @ on / 40, margins, anchored)
    (gradient,) = torch.autograd.grad(values.sum(), rows)
    for i, (one, _, codes) in enumerate(cases):
        one.requires_grad_()
        value = real(one, codes)
        torch.testing.assert_close(values.flatten()[i], value)
        assert value > 0
        torch.testing.assert_close(gradient.flatten(0, 1)[i], torch.autograd.grad(value, one)[0])


# ---- training: the trainer's --------------------------------------------------------------------------


def divide_gradients(optimizer, *_):
    """By the scale that the fused Adam takes in single precision only."""
    for group in optimizer.param_groups:
        for weight in group["params"]:
            weight.grad /= optimizer.grad_scale
    optimizer.grad_scale = None


@pytest.fixture
def in_double_precision(monkeypatch):
    """In single precision the two round differently, by machine, and within 40 steps another latent is the k-th."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "text",
    [
        "none",
        "none@arch=matryoshka",
        "none@arch=batchtopk",
        "none@arch=relu",
        "max_cos:0.5@exact@every=1",
        "coactive:0.5@anchored@exact@every=1@start=0.2",
        "freq_cos:0.5@exact@every=1@warm_up=0.5",
        "sq_cos:2@exact@every=1@on=encoder",
    ],
)
def test_an_sae_of_many_is_the_one_that_the_trainer_makes(text, in_double_precision):
    steps, batch, d_sae, seeds = 40, 32, 10, 2
    arm = parse_arm(text)
    arch = arm.arch or "topk"
    recipe = ToyRecipe(d_sae, arch, steps, lr=0.01, k=2, l1=0.05, batch=batch)
    world = TREE._replace(spread=(0.1,) * TREE.size)  # equal inputs tie, and whose tie is broken which way is luck
    widths = (3, d_sae) if arch == "matryoshka" else None
    trials = [ToyTrial(arm, widths=widths), ToyTrial(arm._replace(penalty="none", coefficient=0.0), widths=widths)]
    saes = train(world, trials, recipe, seeds)
    features = torch.stack([directions(world, seed) for seed in range(seeds)])
    mean, scale = moments(world, features)
    seed = 1
    h = Hyperparameters(
        arch=arch, k=2, steps=steps, lr=0.01, warm_up=0.05, decay=0.2, penalty_every=10, penalty_start=0.0,
        penalty_on="decoder", aux_coefficient=0.0, aux_k=1, dead_after=10**9, matmul=torch.float64, widths=(3, d_sae), sparsity_coefficient=0.05,
    )  # fmt: skip
    real = ArmTraining(arm, seed, d_sae, mean[seed] / scale[seed], h, "cpu")
    real.optimizer.register_step_pre_hook(divide_gradients)
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
    assert ToyTrial(parse_arm("none@arch=matryoshka"), widths=(3, 8)).name == "none@arch=matryoshka, widths 3/8"


# ---- scores -------------------------------------------------------------------------------------------

PARENT, CHILD = 0, 1
SIZES = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 1.0]])  # nothing; parent alone, twice; with its child
EVEN = torch.full((4,), 0.25)


def judged(rows, codes, encoder=None, weight=EVEN):
    """Scores of two or more latents where the parent is (1, 0) and the child (0, 1)."""
    W_dec = torch.nn.functional.normalize(torch.tensor(rows), dim=1)
    codes = torch.tensor(codes)
    encoder = W_dec if encoder is None else torch.tensor(encoder)
    known = KnownInputs(SIZES, SIZES, weight, torch.eye(2), [(PARENT, CHILD)])
    return score(known, CodedInputs(codes, SIZES - codes @ W_dec, W_dec, encoder))


TRUE_CODES = [[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 1.0]]
ABSORBED_CODES = [[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 2**0.5]]


def test_the_true_latents_have_no_holes_and_are_found():
    s = judged([[1.0, 0.0], [0.0, 1.0]], TRUE_CODES)
    assert (s.hole, s.weakened, s.gap, s.absorbed, s.merge, s.suppression, s.shared) == (0,) * 7
    assert s.mcc == s.recovered == s.uniqueness == s.f1 == s.parent_f1 == pytest.approx(1)
    assert s.fvu == pytest.approx(0, abs=1e-9) and s.dead == 0 and s.l0 == pytest.approx(1)  # .75 + .25


def test_an_absorbed_parent_is_a_hole_a_gap_a_merge_and_a_suppression():
    s = judged([[1.0, 0.0], [1.0, 1.0]], ABSORBED_CODES, encoder=[[1.0, -1.0], [0.0, 1.0]])
    assert s.hole == s.weakened == s.gap == s.absorbed == 1
    assert s.merge == pytest.approx(0.5**0.5) and s.suppression == pytest.approx(-(0.5**0.5))
    assert s.parent_f1 == pytest.approx(2 * 0.5 / (0.5 + 0.75))  # fires on two of the parent's three inputs
    assert s.mcc == pytest.approx((1 + 0.5**0.5) / 2) and s.recovered == 0.5
    assert s.nearest_cos == pytest.approx(0.5**0.5)
    assert s.fvu == pytest.approx(0, abs=1e-9)


def test_a_latent_that_misses_its_parent_everywhere_has_a_hole_and_no_gap():
    s = judged([[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    assert (
        s.hole == 1 and s.gap == 0 and s.absorbed == 0 and math.isnan(s.weakened)
    )  # the child's row carries nothing of the parent
    assert s.dead == 0.5


def test_a_parent_that_is_coded_in_part_is_weakened_and_no_hole():
    # with the child the parent's latent gives .25 of its 1, and the child's row carries the rest
    s = judged([[1.0, 0.0], [0.75, 1.0]], [[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.25, 1.25]])
    assert s.hole == s.gap == 0 and s.weakened == pytest.approx(0.75) and s.merge == pytest.approx(0.6)
    assert s.fvu == pytest.approx(0, abs=1e-9)


def test_one_latent_for_both_is_shared_and_not_a_merge():
    s = judged([[1.0, 0.9], [-1.0, 1.2]], [[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    assert s.shared == 0  # the second row is nearer to the child: .768 against .669
    s = judged([[1.0, 0.9], [-1.0, 0.0]], [[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    assert s.shared == 0 and s.hole == 1  # |cosine|: the second row lies along the parent, and never fires
    s = judged([[1.0, 0.9], [0.0, 0.0]], [[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    assert s.shared == 1 and s.hole == 0 and math.isnan(s.merge) and math.isnan(s.gap)


def test_weights_count_as_that_many_inputs():
    weight = torch.tensor([0.1, 0.3, 0.2, 0.4])
    codes = [[0.0, 0.0], [1.0, 0.0], [0.0, 0.0], [1.0, 1.0]]
    s = judged([[1.0, 0.0], [0.0, 1.0]], codes, weight=weight)
    assert s.l0 == pytest.approx(0.3 + 0.8)
    assert s.gap == pytest.approx(0.3 / 0.5 - 1)  # fires on .3 of the .5 without a child, on all with it
    assert s.parent_f1 == pytest.approx(2 * 0.7 / (0.7 + 0.9))
    # misses the parent (squared error 1) with .2; the variance is .9 * .1 + .4 * .6
    assert s.fvu == pytest.approx(0.2 / 0.33)
