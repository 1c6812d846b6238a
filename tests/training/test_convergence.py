"""sae_lm.training.convergence: how near an SAE still is to its random start, and whether its error still falls."""

import json

import pytest
import torch
from recipes import training_recipe

from sae_lm.commands.train import train
from sae_lm.penalties.arms import Arm
from sae_lm.sae.load import load
from sae_lm.settings import TrainSettings
from sae_lm.training.convergence import (
    ADVICE,
    convergence,
    every_nth,
    fvu_slope,
    is_held,
    random_start,
    sae_start_cosines,
    start_cosines,
    state_of_training,
)
from sae_lm.training.trainer import ArmTraining

RECIPE = training_recipe(d_sae=24, k=3, steps=1000, lr=1e-2, warm_up=0.1, decay=0.2)


def lines(fvu, every=50, steps=1000):
    return [{"step": step, "fvu": fvu(step + 1)} for step in range(0, steps, every)]


def test_before_its_first_step_an_sae_is_its_random_start():
    arm = ArmTraining(Arm("none", 0.0), 3, RECIPE, torch.zeros(8), "cpu")
    assert arm.log(0)["start_cos"] == pytest.approx(1) == arm.log(0)["encoder_start_cos"]
    assert torch.equal(arm.W_dec, random_start(3, 24, 8))
    assert not torch.equal(arm.W_dec, random_start(4, 24, 8))


def test_rows_of_any_norm_count_by_their_direction_and_dead_latents_do_not_count():
    start = torch.eye(3)
    W_dec, encoder = torch.diag(torch.tensor([2.0, -0.1, 0.0])), torch.eye(3)[[0, 2, 1]] * 5
    found = start_cosines(W_dec, encoder, start, torch.tensor([True, True, False]))
    assert found == {"start_cos": pytest.approx((1 - 1) / 2), "encoder_start_cos": pytest.approx((1 + 0) / 2)}
    assert start_cosines(W_dec, encoder, start, torch.zeros(3, dtype=torch.bool)) == {}


def test_of_wide_dictionaries_latents_at_equal_distances_are_looked_at():
    assert [len(range(n)[every_nth(n)]) for n in (100, 4096, 4097, 65536)] == [100, 4096, 2049, 4096]


@pytest.mark.parametrize("power", [-0.5, 0.0, 0.25])
def test_the_fall_of_fvu_is_read_before_the_decay_and_not_in_the_first_steps(power):
    def fvu(step):
        return 0.3 * step**power if 400 <= step <= 800 else 99.0 / step

    assert fvu_slope(lines(fvu), RECIPE) == pytest.approx(1 - 2**power)


def test_of_few_lines_no_fall_is_read():
    assert fvu_slope(lines(lambda step: 1 / step, every=150), RECIPE) is None
    assert convergence([], RECIPE) == {}


@pytest.mark.parametrize(
    ("arm", "held"),
    [("none@decoder=frozen", True), ("max_cos:1@decoder=0.8", True), ("none@encoder=frozen", True),
     ("none", False), ("max_cos:1@on=encoder", False), ("none@arch=relu", False)],
)  # fmt: skip
def test_controls_that_stay_at_their_start_on_purpose_are_told_by_their_names(arm, held):
    assert is_held(arm) == held


def test_an_sae_and_its_log_say_how_far_it_came(tiny_store, tmp_path):
    runs = train(
        TrainSettings(store=tiny_store, hook="1", d_sae=64, k=4, arms="none", seeds=1, tokens="6k", batch_size=100,
                      lr=2e-3, log_every=5, matmul="float32", out=tmp_path / "runs")
    )  # fmt: skip
    log = [json.loads(line) for line in (runs / "none-seed0.metrics.jsonl").read_text().splitlines()]
    sae = load(runs / "none-seed0")
    said = sae.config.metadata["convergence"]
    assert log[0]["start_cos"] > 0.99 and 0 < said["start_cos"] == log[-1]["start_cos"] < 0.99
    assert said["encoder_start_cos"] == log[-1]["encoder_start_cos"]
    assert 0 < said["fvu_slope"] < 1
    alive = torch.ones(64, dtype=torch.bool)
    assert log[-1]["dead"] == 0, "else the log's mean is over others"
    assert sae_start_cosines(sae, 0, alive)["start_cos"] == pytest.approx(said["start_cos"], abs=1e-5)
    assert abs(sae_start_cosines(sae, 1, alive)["start_cos"]) < 0.2, "another seed's start is not its own"


def test_the_last_line_of_training_says_what_to_do():
    far, near = {"start_cos": 0.2, "encoder_start_cos": 0.3, "fvu_slope": 0.05}, {"start_cos": 0.74}
    assert state_of_training({"none": [far, far | {"start_cos": 0.25}]}) == (
        "decoder rows keep cosine 0.20 to 0.25 with their random start (encoder rows 0.30), "
        "FVU fell by 5% when steps doubled"
    )
    assert state_of_training({"none": [far], "max_cos:1": [near]}).endswith("hardly trained, " + ADVICE)
    assert state_of_training({"none": [far | {"fvu_slope": 0.3}]}).endswith("still learning, " + ADVICE)
    assert "hardly" not in state_of_training({"none": [far], "none@decoder=frozen": [{"start_cos": 1.0}]})
    assert state_of_training({"none": [{}]}) is None
