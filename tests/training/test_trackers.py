"""The log's lines also reach TensorBoard and wandb, through these libraries as they are, without a network."""

import json
import sys
import types

import pytest
from train_runs import settings_for

from sae_lm.commands.train import train
from sae_lm.training.trackers import Track

LINES = [{"arm": "none", "seed": 0, "step": step, "fvu": 1 / (step + 1), "dead": 3} for step in (0, 50, 100)]


def write(track, lines, first=0):
    with track.begin(first) as line_to:
        for line in lines:
            line_to(line)


def test_a_run_that_goes_on_replaces_what_its_log_says_beyond_the_checkpoint(tmp_path):
    track = Track(tmp_path / "none-seed0.metrics.jsonl", (), {})
    write(track, LINES)
    with track.path.open("a") as file:
        file.write('{"step": 150, "cut o')
    write(track, [{"step": 60}], first=60)
    assert [json.loads(line)["step"] for line in track.path.read_text().splitlines()] == [0, 50, 60]


def test_a_run_killed_as_it_opens_its_log_loses_no_line(tmp_path, monkeypatch):
    """Found by 150 kills: the file was emptied before what is kept was written again."""
    track = Track(tmp_path / "none-seed0.metrics.jsonl", (), {})
    write(track, LINES)
    before = track.path.read_text()

    def killed(*_, **__):
        raise SystemExit

    monkeypatch.setattr("pathlib.Path.write_text", killed)
    with pytest.raises(SystemExit):
        write(track, [], first=200)
    assert track.path.read_text() == before


def test_tensorboard_shows_every_number_at_its_step(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write(Track(tmp_path / "none-seed0.metrics.jsonl", ("tensorboard",), {}), LINES)
    shown = EventAccumulator(str(tmp_path / "tensorboard" / "none-seed0")).Reload()
    assert set(shown.Tags()["scalars"]) == {"fvu", "dead"}
    events = [(event.step, event.value) for event in shown.Scalars("fvu")]
    assert events == [(step, pytest.approx(1 / (step + 1))) for step in (0, 50, 100)]


def test_wandb_goes_on_with_the_run_of_a_training_that_goes_on_and_begins_another_for_one_that_begins(
    tmp_path, monkeypatch
):
    asked = []

    class Run:
        def __enter__(self):
            return self

        def __exit__(self, *exception):
            pass

        def log(self, line, step):
            pass

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=lambda **given: asked.append(given) or Run()))
    track = Track(tmp_path / "none@k=1.5-seed0.metrics.jsonl", ("wandb",), {})
    for first in (0, 60, 0):
        write(track, [{"step": first}], first=first)
    begun, continued, again = (given["id"] for given in asked)
    assert begun == continued != again
    assert {(given["resume"], given["group"], given["name"]) for given in asked} == {
        ("allow", tmp_path.name, "none@k=1.5-seed0")
    }


def test_wandb_gets_configuration_and_lines_even_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    before = sys.exit, sys.excepthook
    write(Track(tmp_path / "none-seed0.metrics.jsonl", ("wandb",), {"lr": 0.3141}), LINES)
    wandb.teardown()  # as at the end of a process: waits for the one that writes the file
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    written = file.read_bytes()
    assert all(json.dumps(line["fvu"]).encode() in written for line in LINES)
    assert b"0.3141" in written
    assert (sys.exit, sys.excepthook) == before


def test_trackers_are_told_what_an_arm_was_trained_with_and_not_what_the_others_were(tiny_store, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("sae_lm.commands.train.Track", lambda *given: asked.append(given[2]) or Track(*given))
    own = "max_cos:0.5@margin=0.1@on=encoder@every=3@start=0.1@warm_up=0.2@fvu=0.01"
    own += "@arch=matryoshka@balance=0.5@widths=8+64@k=2"
    train(settings_for(store=tiny_store, out=tmp_path / "runs", arms=f"none,{own}", tokens="300", dead_after=200))
    run, arm = asked
    assert {"k": 4, "arch": "topk", "widths": None, "penalty_every": 10, "penalty_on": "decoder"}.items() <= run.items()
    assert arm == {
        **run, "arm": own, "penalty": "max_cos", "coefficient": 0.5, "k": 2, "arch": "matryoshka", "widths": [8, 64],
        "penalty_every": 3, "penalty_start": 0.1, "penalty_warm_up": 0.2, "penalty_on": "encoder",
        "margin": 0.1, "fvu": 0.01, "balance": 0.5,
    }  # fmt: skip
