"""What of a group's checkpoint a later command goes on with: the arms that it asks for, and no others."""

import json

import pytest
from train_runs import contents, settings_for, stop_at

from sae_lm.commands.train import train
from sae_lm.errors import SaeError, Stopped
from sae_lm.training.state import remove_finished
from sae_lm.training.trainer import ArmTraining

STEERED = "abs_cos:1@fvu=0.01"


@pytest.fixture
def train_settings(tiny_store, tmp_path):
    return lambda out="runs", **changes: settings_for(
        **{"store": tiny_store, "tokens": "3k", "out": tmp_path / out, **changes}
    )


@pytest.fixture
def stopped(monkeypatch):
    def run(settings, step):
        with monkeypatch.context() as patch, pytest.raises(Stopped):
            stop_at(step, patch)
            train(settings)

    return run


def saes(folder):
    return sorted(path.name for path in folder.glob("*-seed0"))


def of_arms(files, *names):
    return {file: what for file, what in files.items() if file.startswith(names)}


def test_of_a_group_with_a_checkpoint_the_arms_that_are_asked_for_go_on_and_the_others_can_later(
    train_settings, stopped, capsys
):
    arms = f"none,max_cos:0.5,{STEERED}"
    whole = contents(train(train_settings("whole", arms=arms)))
    stopped(train_settings(arms=arms), 12)
    out = train(train_settings(arms="max_cos:0.5"))
    assert saes(out) == ["max_cos_0.5-seed0"] and "continuing at step 13" in capsys.readouterr().out
    stopped(train_settings(arms=STEERED), 20)  # its baseline is trained along and not kept
    capsys.readouterr()
    assert contents(train(train_settings(arms=arms))) == whole
    said = capsys.readouterr().out
    assert "continuing at step 13" in said and "continuing at step 21" in said
    assert not (out / "state").exists()


def test_fewer_arms_at_once_hold_for_arms_with_a_checkpoint_too(train_settings, stopped, monkeypatch, capsys):
    whole = contents(train(train_settings("whole")))
    stopped(train_settings(), 12)
    made = []
    real = ArmTraining.__init__
    monkeypatch.setattr(
        ArmTraining, "__init__", lambda self, arm, *given: made.append(arm.name) or real(self, arm, *given)
    )
    stopped(train_settings(arms_at_once=1), 20)
    assert made == ["none"], "one arm at a time is in the memory"
    assert contents(train(train_settings(arms_at_once=1))) == whole
    assert [line for line in capsys.readouterr().out.splitlines() if "continuing" in line] == [
        f"seed 0: continuing at step {step}" for step in (13, 13, 21, 13)
    ][1:]


def test_an_arm_whose_loss_became_nan_is_left_out_as_advised_and_the_others_go_on(train_settings, monkeypatch, capsys):
    whole = contents(train(train_settings("whole", arms="none,max_cos:0.1")))
    real = ArmTraining.step

    def step(self, x, number):
        real(self, x, number)
        if self.arm.coefficient == 1000 and number == 13:
            self.parts["loss"] = self.parts["loss"] * float("nan")

    monkeypatch.setattr(ArmTraining, "step", step)
    begun = train_settings(arms="none,max_cos:1000", checkpoint_seconds=0)
    for _ in range(2):
        with pytest.raises(
            SaeError, match=r"arm max_cos:1000, .* by step 13; lower the arm's coefficient.* step 13 is kept"
        ):
            train(begun)
    out = train(train_settings(arms="none,max_cos:0.1"))
    assert "continuing at step 13" in capsys.readouterr().out
    assert {**of_arms(contents(out), "none", "max_cos_0.1")} == whole


def test_a_checkpoint_left_half_written_does_not_count_as_one_of_the_two_that_are_kept(train_settings, stopped):
    settings = train_settings(arms="none", checkpoint_seconds=0)
    stopped(settings, 5)
    (group,) = settings.out.glob("state/seed0-*")
    (group / "000000099.part").mkdir()
    stopped(settings, 6)
    assert sorted(path.name for path in group.iterdir()) == ["000000006", "000000007"]


def test_a_damaged_checkpoint_is_not_one_of_the_two_that_are_kept(train_settings, stopped):
    often = train_settings(arms="none", checkpoint_seconds=0)
    stopped(often, 5)
    (group,) = often.out.glob("state/seed0-*")
    (group / "000000006" / "000.safetensors").write_bytes(b"cut short")
    stopped(train_settings(arms="none"), 8)
    assert sorted(path.name for path in group.iterdir()) == ["000000005", "000000009"]


def test_a_folder_with_a_checkpoint_is_not_taken_over_by_other_arms_with_other_settings(train_settings, stopped):
    stopped(train_settings(arms="none"), 5)
    run = (train_settings().out / "run.json").read_bytes()
    with pytest.raises(
        SaeError, match='was begun otherwise: lr is 0.002, asked for 0.02; optimizer is "row_rms", .*; give the same'
    ):
        train(train_settings(arms="sq_cos", lr=0.02, optimizer="adam"))
    assert (train_settings().out / "run.json").read_bytes() == run
    train(train_settings(arms="none@k=3", k=8))
    assert saes(train(train_settings(arms="none"))) == ["none-seed0", "none@k=3-seed0"]


def test_arms_that_name_their_own_k_go_on_whatever_k_the_other_arms_are_trained_with(train_settings, stopped, capsys):
    own = f"none@k=3,{STEERED}@k=3"  # the baseline that is trained along has the k too
    whole = contents(train(train_settings("whole", arms=own, k=16)))
    stopped(train_settings(arms=own, k=8), 12)
    out = train(train_settings(arms=f"none,{own}", k=16))
    assert "continuing at step 13" in capsys.readouterr().out
    files = contents(out)
    assert {name: files[name] for name in whole} == whole and (out / "none-seed0").exists()


def test_an_arm_that_names_no_k_does_not_go_on_under_another(train_settings, stopped):
    stopped(train_settings(arms="none,none@k=3", k=8), 12)
    with pytest.raises(SaeError, match="was begun otherwise: k is 8, asked for 16"):
        train(train_settings(arms="none,none@k=3", k=16))
    assert saes(train(train_settings(arms="none@k=3", k=16))) == ["none@k=3-seed0"]


def test_what_another_version_or_nobody_here_wrote_among_the_checkpoints_stays_and_stops_nothing(tmp_path):
    state = tmp_path / "state"
    for name, arm in (("seed0-a", "none"), ("seed0-b", "gone:1"), ("seed1-c", "none"), ("seedless-notes", "none")):
        (state / name / "000000005").mkdir(parents=True)
        (state / name / "000000005" / "state.json").write_text(json.dumps({"arms": [arm], "shadows": []}))
    (tmp_path / "none-seed0").mkdir()
    remove_finished(tmp_path, others_at_work=False)
    assert sorted(path.name for path in state.iterdir()) == ["seed0-b", "seed1-c", "seedless-notes"]


def test_the_arms_of_a_damaged_part_of_a_checkpoint_alone_are_trained_anew(train_settings, stopped, capsys):
    settings = train_settings()
    whole = contents(train(train_settings("whole")))
    stopped(settings, 12)
    (checkpoint,) = settings.out.glob("state/seed0-*/[0-9]*")
    assert json.loads((checkpoint / "state.json").read_text())["arms"] == ["none", "max_cos:0.5"]
    (checkpoint / "001.safetensors").write_bytes(b"cut short")
    train(train_settings(arms="none"))
    assert "continuing at step 13" in capsys.readouterr().out
    assert contents(train(settings)) == whole
    assert "a damaged checkpoint is passed over" in capsys.readouterr().out


def test_a_baseline_that_is_the_run_s_own_arm_by_another_name_is_not_trained_a_second_time(train_settings, monkeypatch):
    steered, made = "none@fvu=0.01@arch=matryoshka", []
    own = {"arch": "batchtopk", "widths": (16, 64)}
    alone = contents(train(train_settings("alone", arms=steered, **own)))
    real = ArmTraining.__init__
    monkeypatch.setattr(
        ArmTraining, "__init__", lambda self, arm, *given: made.append(arm.name) or real(self, arm, *given)
    )
    both = contents(train(train_settings(arms=f"none,{steered}", **own)))
    assert made == ["none", steered], "none of this run is batchtopk, which a steered balance is held to"
    assert of_arms(both, steered) == of_arms(alone, steered) and of_arms(alone, steered)
