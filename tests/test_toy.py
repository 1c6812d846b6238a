"""The A/B toy: figures by hand, the judge on hand-made SAEs, and one training shared by its tests."""

import pytest
import torch

from sae_lm import toy
from sae_lm.sae.penalties import PENALTIES, Arm
from sae_lm.toy import Saes, ToyArm, exact_construction, judge, run, table

AXES = torch.eye(2)[None]  # one seed, d_in 2, features A = (1, 0), B = (0, 1)
NEVER = -10.0  # a bias no input overcomes


def one_sae(encoder_rows, bias, decoder_rows) -> Saes:
    """One arm, one seed; decoder rows are normalised."""
    decoder = torch.nn.functional.normalize(torch.tensor(decoder_rows), dim=1)
    return Saes(torch.tensor(encoder_rows).T[None, None], torch.tensor(bias)[None, None, None], decoder[None, None])


# ---- the exact construction ---------------------------------------------------------------------------


def test_the_three_hand_made_latents_code_each_input_with_one_latent_and_lose_nothing():
    # A = (0, 1): (-0 + 1, 0 + 1 - 1, 0 - 1) = (1, 0, -1) -> (1, 0, 0); both: (0, 1, 0); B: (0, 0, 1)
    codes = torch.relu(toy.EXACT_INPUTS @ toy.EXACT_W_ENC + toy.EXACT_B_ENC)
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
    monkeypatch.setattr(toy, name, broken)
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


# ---- the judge ----------------------------------------------------------------------------------------


def test_the_exact_construction_is_judged_as_the_composite_learned():
    # rows in the order A&~B, A&B, ~A&B with A = (1, 0)
    verdict = judge(
        one_sae([[1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]], [0.0, -1.0, 0.0], [[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]),
        AXES,
    )
    assert verdict.composite.item() and not verdict.recovered.item() and verdict.num_alive.item() == 3
    assert verdict.decoder_abs_cos.item() == pytest.approx(0.4714, abs=1e-4)
    assert verdict.encoder_abs_cos.item() == pytest.approx(1 / 3)
    # codes are 1 on every input; only "both" is written wrong: (1, 1) / sqrt(2) for (1, 1),
    # so .3 * 2 * (1 - .7071)^2 / .495 = .1040
    assert verdict.fvu.item() == pytest.approx(0.1040, abs=1e-4)


def test_a_composite_row_that_never_fires_is_not_held_against_two_right_latents():
    verdict = judge(
        one_sae([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]], [0.0, NEVER, 0.0], [[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]),
        AXES,
    )
    assert verdict.recovered.item() and not verdict.composite.item()
    assert verdict.num_alive.item() == 2 and verdict.fvu.item() == 0


def test_right_latents_beside_a_composite_in_use_do_not_count_as_recovered():
    verdict = judge(
        one_sae([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]], [0.0, -1.0, 0.0], [[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]),
        AXES,
    )
    assert verdict.composite.item() and not verdict.recovered.item()


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
    verdict = judge(
        one_sae([first_row, [0.0, 1.0], dead], [0.0, 0.0, NEVER], [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), AXES
    )
    assert not verdict.recovered.item() and not verdict.composite.item()


def test_a_right_code_with_a_crooked_decoder_row_is_not_recovered():
    # cos of (1, .2) to A is 1 / sqrt(1.04) = .981 < .99
    verdict = judge(
        one_sae([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], [0.0, 0.0, NEVER], [[1.0, 0.2], [0.0, 1.0], [1.0, 1.0]]),
        AXES,
    )
    assert not verdict.recovered.item()


# ---- training -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", ["abs_cos", "max_cos"])
def test_scoring_all_seeds_in_one_call_is_the_sum_over_seeds(penalty):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(5, 3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    together = toy._penalty_of_seeds(penalty, rows)
    one_by_one = torch.stack([PENALTIES[penalty](seed, generator) for seed in rows]).sum()
    torch.testing.assert_close(together, one_by_one)
    assert one_by_one > 0
    torch.testing.assert_close(torch.autograd.grad(together, rows), torch.autograd.grad(one_by_one, rows))


def test_the_mean_costs_what_the_docstring_says():
    on = toy.PROBABILITIES @ toy.INPUTS  # A in .15 + .3 of all inputs, and so is B
    torch.testing.assert_close(on, torch.tensor([0.45, 0.45]))
    assert toy.PROBABILITIES.sum().item() == pytest.approx(1)
    variance = toy.PROBABILITIES @ (toy.INPUTS - on).square().sum(1)  # .2475 for each feature
    assert pytest.approx(variance.item()) == toy.VARIANCE


def test_all_arms_of_a_seed_start_from_the_same_sae_and_seeds_differ():
    learned = run(seeds=2, steps=0).learned
    for values in learned:
        assert torch.equal(values, values[:1].expand_as(values))
    assert learned.encoder_abs_cos[0, 0] != learned.encoder_abs_cos[0, 1]


def test_a_repeated_run_is_equal_and_the_global_seed_does_not_matter():
    torch.manual_seed(1)
    first = run(seeds=2, steps=20)
    torch.manual_seed(2)
    again = run(seeds=2, steps=20)
    assert all(torch.equal(a, b) for a, b in zip(first.learned, again.learned, strict=True))


def test_an_arm_trains_as_if_it_were_alone():
    arms = (ToyArm(Arm("none", 0.0), "decoder"), ToyArm(Arm("abs_cos", 1.0), "decoder"))
    alone, beside = run(2, arms[:1], 50).learned, run(2, arms, 50).learned
    for a, b in zip(alone, beside, strict=True):
        torch.testing.assert_close(a[0], b[0])
    assert beside.decoder_abs_cos[1].mean() < 0.5 * beside.decoder_abs_cos[0].mean()


@pytest.fixture(scope="module")
def trained() -> dict[str, dict[str, torch.Tensor]]:
    """Arm and place -> what was learned, from one run of 6 seeds."""
    result = run(seeds=6)
    return {
        f"{arm.name} on {on}": {name: values[i] for name, values in result.learned._asdict().items()}
        for i, (arm, on) in enumerate(result.arms)
    }


def test_without_a_penalty_every_seed_learns_the_composite(trained):
    baseline = trained["none on decoder"]
    assert baseline["composite"].sum() == 6 and baseline["recovered"].sum() == 0
    assert (baseline["fvu"] < 0.01).all()  # it is a good SAE, only not a true one


@pytest.mark.parametrize("arm", ["abs_cos:0.05", "max_cos:0.25"])
def test_a_penalty_on_the_decoder_recovers_a_and_b_in_every_seed(trained, arm):
    penalised = trained[f"{arm} on decoder"]
    assert penalised["recovered"].sum() == 6 and penalised["composite"].sum() == 0
    assert (penalised["fvu"] < 0.01).all()


@pytest.mark.parametrize("arm", ["abs_cos:0.05", "abs_cos:0.2", "max_cos:0.25"])
def test_the_same_penalty_on_the_encoder_recovers_them_in_no_seed(trained, arm):
    assert trained[f"{arm} on encoder"]["recovered"].sum() == 0


def test_the_encoder_penalty_was_minimised_and_not_merely_too_weak(trained):
    # the baseline's encoder stands at about 1/3, as the exact construction does
    assert (trained["none on decoder"]["encoder_abs_cos"] > 0.2).all()
    assert (trained["abs_cos:0.05 on encoder"]["encoder_abs_cos"] < 0.02).all()


def test_a_stronger_penalty_on_the_decoder_is_not_a_better_one(trained):
    assert trained["abs_cos:3 on decoder"]["recovered"].sum() < 6


# ---- the table ----------------------------------------------------------------------------------------


def test_the_table_holds_a_line_for_every_arm_with_its_counts():
    arms = (ToyArm(Arm("none", 0.0), "decoder"), ToyArm(Arm("abs_cos", 0.05), "encoder"))
    result = run(seeds=4, arms=arms, steps=0)
    learned = result.learned._replace(
        composite=torch.tensor([[True, True, True, False], [True, False, False, False]]),
        recovered=torch.tensor([[False, False, False, False], [True, True, False, False]]),
    )
    text = table(result._replace(learned=learned))
    none, encoder = (line.split() for line in text.splitlines() if "/4" in line)
    assert none[:3] == ["none", "3/4", "0/4"]
    assert encoder[:4] == ["abs_cos:0.05", "encoder", "1/4", "2/4"]
    assert "0.333" in text and "0.471" in text and "no reconstruction error" in text
    assert toy.MEANING in text
    assert max(map(len, text.splitlines())) <= 110
