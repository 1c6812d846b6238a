"""sae_lm.synthetic.ab_toy: figures by hand, the judge on hand-made SAEs, and one small training."""

import pytest
import torch

from sae_lm.penalties.arms import parse_arms
from sae_lm.synthetic import ab_toy, suite
from sae_lm.synthetic.ab_toy import WORLD, exact_construction, judge
from sae_lm.synthetic.batched_training import ToyTrial
from sae_lm.synthetic.experiments import EXPERIMENTS
from sae_lm.synthetic.worlds import all_inputs

AXES = torch.eye(2)  # features A = (1, 0), B = (0, 1)


INPUTS = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])


NEVER = -10.0  # a bias no input overcomes


def verdict(encoder_rows, bias, decoder_rows):
    """What the judge says of one SAE; decoder rows are normalised."""
    decoder = torch.nn.functional.normalize(torch.tensor(decoder_rows), dim=1)
    codes = torch.relu(INPUTS @ torch.tensor(encoder_rows).T + torch.tensor(bias))
    return judge(codes, INPUTS, AXES, decoder)


def test_the_three_hand_made_latents_code_each_input_with_one_latent_and_lose_nothing():
    # A = (0, 1): (-0 + 1, 0 + 1 - 1, 0 - 1) = (1, 0, -1) -> (1, 0, 0); both: (0, 1, 0); B: (0, 0, 1)
    codes = torch.relu(ab_toy.EXACT_INPUTS @ ab_toy.EXACT_W_ENC + ab_toy.EXACT_B_ENC)
    assert torch.equal(codes, torch.eye(3))
    assert exact_construction().is_one_hot


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        # "both" then fires on A alone as well
        pytest.param("EXACT_B_ENC", torch.zeros(3), id="lossy"),
        # columns (0, 1), nothing, (1, 0): A and B of their own, so "both" is (1, 0, 1), written without loss
        pytest.param("EXACT_W_ENC", torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]), id="two latents for both"),
    ],
)
def test_another_construction_is_not_called_one_hot(monkeypatch, name, broken):
    monkeypatch.setattr(ab_toy, name, broken)
    assert not exact_construction().is_one_hot


def test_signed_penalties_on_the_encoder_see_nothing_and_absolute_ones_see_the_antiparallel_pair():
    # cosines of (-1, 1), (1, 1), (1, -1): pairs 1-2 and 2-3 are 0, pair 1-3 is -1
    exact = exact_construction()
    assert exact.encoder_signed_max == pytest.approx(0, abs=1e-6)  # largest of (0, -1), (0, 0), (-1, 0)
    assert exact.encoder_max_cos == pytest.approx(0, abs=1e-6)
    assert exact.encoder_max_abs == pytest.approx(2 / 3)  # (1 + 0 + 1) / 3 rows
    assert exact.encoder_abs_cos == pytest.approx(1 / 3)  # (0 + 0 + 1) / 3 pairs


def test_every_penalty_on_the_decoder_sees_the_composite():
    # cosines of (0, 1), (1, 1), (1, 0): pairs 1-2 and 2-3 are 1 / sqrt(2), pair 1-3 is 0
    exact = exact_construction()
    assert exact.decoder_abs_cos == pytest.approx(2 / 3 / 2**0.5)  # .471
    assert exact.decoder_sq_cos == pytest.approx(1 / 3)  # (1/2 + 1/2 + 0) / 3
    assert exact.decoder_signed_max == pytest.approx(0.5**0.5)  # every row's nearest is at 1 / sqrt(2)
    assert exact.decoder_max_cos == pytest.approx(1 / 2)


def test_the_two_true_latents_pay_nothing():
    assert exact_construction().truth_abs_cos == 0


def test_the_exact_construction_is_judged_as_the_composite_learned():
    # rows in the order A&~B, A&B, ~A&B with A = (1, 0)
    found = verdict([[1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]], [0.0, -1.0, 0.0], [[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    assert found == (1, 0)


def test_a_composite_row_that_never_fires_is_not_held_against_two_right_latents():
    found = verdict([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]], [0.0, NEVER, 0.0], [[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    assert found == (0, 1)


def test_right_latents_beside_a_composite_in_use_do_not_count_as_recovered():
    found = verdict([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]], [0.0, -1.0, 0.0], [[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    assert found == (1, 0)


@pytest.mark.parametrize(
    "first_row",
    [
        pytest.param([1.0, -1.0], id="silent when B is on too"),
        pytest.param([1.0, 0.2], id="fires on B alone"),
        pytest.param([0.0, 0.0], id="never fires"),
    ],
)
def test_right_decoder_rows_with_a_wrong_code_are_not_recovered(first_row):
    dead = [0.0, 0.0]
    assert verdict([first_row, [0.0, 1.0], dead], [0.0, 0.0, NEVER], [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]) == (0, 0)


def test_a_right_code_with_a_crooked_decoder_row_is_not_recovered():
    # cos of (1, .2) to A is 1 / sqrt(1.04) = .981 < .99
    found = verdict([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], [0.0, 0.0, NEVER], [[1.0, 0.2], [0.0, 1.0], [1.0, 1.0]])
    assert found == (0, 0)


def test_the_worlds_inputs_are_nothing_a_b_and_both_as_often_as_its_docstring_says():
    every = all_inputs(WORLD, 1)
    share = {tuple(row.int().tolist()): float(p) for row, p in zip(every.sizes[0], every.weight, strict=True)}
    assert share == pytest.approx({(0, 0): 0.4, (1, 0): 0.15, (0, 1): 0.15, (1, 1): 0.3})


COMPOSITION = EXPERIMENTS[0]


@pytest.fixture(scope="module")
def learned():
    """Arm -> metric -> one value per seed, from the suite's own recipe."""
    arms = parse_arms(["none", "abs_cos:0.1", "max_cos:0.3", "abs_cos:0.1@on=encoder"])
    experiment = COMPOSITION._replace(short=tuple(map(ToyTrial, arms)))
    (result,) = suite.run(experiments=[experiment])["experiments"]
    return {name: arm["values"] for name, arm in result["arms"].items()}


def test_without_a_penalty_every_seed_learns_the_composite(learned):
    assert sum(learned["none"]["composite"]) == 6 and sum(learned["none"]["recovered"]) == 0
    assert max(learned["none"]["fvu"]) < 0.01  # it is a good SAE, only not a true one


@pytest.mark.parametrize("arm", ["abs_cos:0.1", "max_cos:0.3"])
def test_a_penalty_on_the_decoder_recovers_a_and_b_in_every_seed(learned, arm):
    assert sum(learned[arm]["recovered"]) == 6 and sum(learned[arm]["composite"]) == 0
    assert max(learned[arm]["fvu"]) < 0.01


def test_the_same_penalty_on_the_encoder_recovers_them_in_no_seed(learned):
    assert sum(learned["abs_cos:0.1@on=encoder"]["recovered"]) == 0
