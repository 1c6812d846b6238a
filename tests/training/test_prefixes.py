"""sae_lm.training.prefixes: nested prefixes that are weighted, drawn and steered."""

import pytest
import torch
from recipes import training_recipe

from sae_lm.errors import SettingsError
from sae_lm.penalties.arms import MOST_BALANCE, parse_arm
from sae_lm.training.group import steer
from sae_lm.training.prefixes import FIRST_BALANCE, Prefixes, prefix_weights
from sae_lm.training.trainer import ArmTraining

D_SAE, WIDTHS, K, D_IN = 24, (2, 6, 24), 3, 8


def recipe(**changes):
    values = {"d_sae": D_SAE, "k": K, "lr": 1e-2, "warm_up": 0.1, "matmul": "float32", "widths": WIDTHS, "steps": 40}
    return training_recipe(**{**values, **changes})


def made(text, **changes):
    return ArmTraining(parse_arm(text), 0, recipe(**changes), torch.zeros(D_IN), "cpu")


def batches(steps, rows=16):
    draw = torch.Generator().manual_seed(7)
    return [torch.randn(rows, D_IN, generator=draw) / D_IN**0.5 for _ in range(steps)]


def trained(text, steps=40, baseline=None):
    """baseline: FVU that the steered arm's cost is over, at every step."""
    run = made(text, steps=steps)
    for step, x in enumerate(batches(steps)):
        run.step(x, step)
        if baseline is not None:
            steer(run, torch.tensor(baseline), step)
    return run


def weights_of(run):
    return {name: weight.detach() for name, weight in run.named.items()}


def test_a_prefix_weighs_the_balance_to_the_power_of_its_distance_from_the_whole():
    torch.testing.assert_close(prefix_weights(torch.tensor(0.5), 4), torch.tensor([1.0, 2.0, 4.0, 8.0]) / 15)
    torch.testing.assert_close(prefix_weights(torch.tensor(1.0), 4), torch.full((4,), 0.25))
    assert prefix_weights(torch.tensor(0.0), 3).tolist() == [0, 0, 1]


def test_balance_one_is_matryoshka_as_it_was_bit_for_bit():
    assert parse_arm("none@arch=matryoshka@balance=1") == parse_arm("none@arch=matryoshka")
    assert made("none@arch=matryoshka@balance=1").prefixes.weights is None  # the plain mean, by the same operations


def test_balance_zero_is_batchtopk_bit_for_bit():
    mine, its = trained("none@arch=matryoshka@balance=0"), trained("none@arch=batchtopk")
    assert all(map(torch.equal, weights_of(mine).values(), weights_of(its).values()))
    assert torch.equal(mine.threshold, its.threshold)


def test_a_balance_near_zero_is_nearly_batchtopk_and_one_near_one_nearly_matryoshka():
    for balance, twin in ((1e-6, "batchtopk"), (1 - 1e-6, "matryoshka")):
        mine, its = trained(f"none@arch=matryoshka@balance={balance}"), trained(f"none@arch={twin}")
        for a, b in zip(weights_of(mine).values(), weights_of(its).values(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


def test_less_balance_costs_the_prefixes_and_gives_the_whole():
    data = torch.cat(batches(300)[200:])

    def errors(balance):
        sae = trained(f"none@arch=matryoshka@balance={balance}", steps=200).finish(1.0, {})
        z = sae.encode(data)
        return [float((data - z[:, :w] @ sae.W_dec[:w] - sae.b_dec).square().sum(1).mean()) for w in (2, D_SAE)]

    (narrow, whole), (narrow_less, whole_less) = errors(1), errors(0.1)
    assert narrow < narrow_less and whole > whole_less


def test_drawn_prefixes_are_log_uniform_ascend_and_end_with_the_whole():
    prefixes = Prefixes(parse_arm("none@arch=matryoshka@prefixes=3"), training_recipe(d_sae=4096), 0, "cpu")
    drawn = []
    for _ in range(2000):
        prefixes.draw()
        assert prefixes.widths[-1] == 4096 and (prefixes.widths.diff() >= 0).all()
        drawn.append(prefixes.widths[:-1])
    widths = torch.cat(drawn)
    assert widths.min() >= 64 and widths.max() < 4096
    for below, share in ((128, 1 / 6), (512, 1 / 2), (2048, 5 / 6)):
        assert float((widths < below).double().mean()) == pytest.approx(share, abs=0.03)


def test_drawn_prefixes_depend_on_the_seed_alone_and_continue_from_their_state():
    arm, h = parse_arm("none@arch=matryoshka@prefixes=2"), recipe()

    def draws(prefixes, number):
        out = []
        for _ in range(number):
            prefixes.draw()
            out.append(prefixes.widths.tolist())
        return out

    one = Prefixes(arm, h, 0, "cpu")
    first, state = draws(one, 5), {name: value.clone() for name, value in one.state().items()}
    rest = draws(one, 5)
    assert first + rest == draws(Prefixes(arm, h, 0, "cpu"), 10) != draws(Prefixes(arm, h, 1, "cpu"), 10)
    penalised = Prefixes(parse_arm("coactive@arch=matryoshka@prefixes=2"), h, 0, "cpu")
    assert draws(penalised, 5) == first
    again = Prefixes(arm, h, 5, "cpu")
    again.restore(state)
    assert draws(again, 5) == rest


@pytest.mark.parametrize(
    "text",
    [
        "none@arch=matryoshka@balance=0.3",
        "none@arch=matryoshka@prefixes=2@balance=0.5",
        "none@arch=matryoshka@fvu=0.02",
        "none@arch=matryoshka@fvu=0.02@prefixes=2",
        "coactive@anchored@fvu=0.02@arch=matryoshka@balance=0.5",
    ],
)
def test_a_nested_arm_continues_from_its_state_bit_for_bit(text):
    data = batches(40)

    def go(run, steps):
        for step in steps:
            run.step(data[step], step)
            if run.arm.fvu is not None:
                steer(run, torch.tensor(0.1), step)

    whole, first, second = made(text), made(text), made(text)
    go(whole, range(40))
    go(first, range(17))
    second.restore({name: value.clone() for name, value in first.state().items()})
    assert second.log(16) == first.log(16)
    go(second, range(17, 40))
    theirs = whole.state()
    assert theirs.keys() == second.state().keys()
    assert all(torch.equal(value, theirs[name]) for name, value in second.state().items())


def test_a_steered_balance_falls_while_it_costs_too_much_and_is_in_the_log():
    dear, cheap = (trained("none@arch=matryoshka@fvu=0.005", baseline=fvu) for fvu in (0.0, 2.0))
    assert dear.log(39)["balance"] < FIRST_BALANCE < cheap.log(39)["balance"] <= MOST_BALANCE
    assert "coefficient" not in dear.log(39)
    assert "coefficient" in trained("coactive@fvu=0.005@arch=matryoshka", baseline=0.0).log(39)


def test_a_nested_sae_is_saved_as_a_jumprelu_with_one_threshold():
    sae = trained("coactive@anchored@arch=matryoshka@balance=0.25").finish(2.0, {"arm": "x"})
    assert sae.config.architecture == "jumprelu" and sae.config.metadata == {"arm": "x"}
    assert len(set(sae.threshold.tolist())) == 1


@pytest.mark.parametrize(
    ("arms", "arch", "sentence"),
    [
        ("none@balance=0.5", "topk", "gives balance to topk, which has no nested prefixes; give @arch=matryoshka"),
        ("none@prefixes=2", "batchtopk", "gives prefixes to batchtopk"),
        ("none@fvu=0.01", "topk", "has nothing that fvu could steer"),
        ("none@widths=8+64", "matryoshka", "the widths of 'none@widths=8\\+64' end at 64; expected d_sae \\(48\\)"),
        ("none@widths=8+16", "matryoshka", "end at 16; expected d_sae \\(48\\)"),
    ],
)
def test_what_does_not_fit_the_runs_architecture_or_latents_is_refused(arms, arch, sentence, tiny_store, tmp_path):
    from sae_lm.commands.train import train
    from sae_lm.settings import TrainSettings

    settings = TrainSettings(store=tiny_store, hook="blocks.1.hook_out", d_sae=48, k=4, arch=arch, arms=arms,
                             batch_size=64, out=tmp_path / "runs")  # fmt: skip
    with pytest.raises(SettingsError, match=f"^arms: .*{sentence}"):
        train(settings)
