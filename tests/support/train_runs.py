"""Small trainings on the tiny store, what they leave, and a signal in their midst."""

import json
import os
import signal
import threading
import time

import pytest

from sae_lm.errors import Stopped
from sae_lm.settings import TrainSettings

HOOK = "blocks.1.hook_out"
TIMED = ("rows_per_second", "penalty_share")


def settings_for(**given):
    values = {"hook": HOOK, "d_sae": 64, "k": 4, "arms": "none,max_cos:0.5", "seeds": 1, "tokens": "6k",
              "batch_size": 100, "lr": 2e-3, "dead_after": 500, "log_every": 7, "matmul": "float32"}  # fmt: skip
    return TrainSettings(**{**values, **given})


def contents(folder):
    """Every file but for what the clock says."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    del files["run.json"]
    return {name: untimed(text) if name.endswith(".jsonl") else text for name, text in files.items()}


def weights(folder):
    """SAE -> the bytes of its weights."""
    return {path.parent.name: path.read_bytes() for path in folder.glob("*/sae_weights.safetensors")}


def untimed(log):
    lines = [json.loads(line) for line in log.splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMED} for line in lines]


def stop_at(step, monkeypatch):
    """Send this process SIGTERM before a step, as a cluster would."""
    from sae_lm.training.trainer import ArmTraining

    real, sent, guard = ArmTraining.step, [], threading.Lock()

    def counted(self, x, number):
        with guard:
            if number == step and not sent:  # a second one would end the process
                handler, end = signal.getsignal(signal.SIGTERM), time.monotonic() + 60
                sent.append(os.kill(os.getpid(), signal.SIGTERM))
                while signal.getsignal(signal.SIGTERM) is handler and time.monotonic() < end:
                    time.sleep(0.002)  # the main thread runs it, some time later, and it puts back the one before
        real(self, x, number)

    monkeypatch.setattr(ArmTraining, "step", counted)


def stopped(settings, step, monkeypatch):
    """Train until a signal comes in a step; what it says."""
    from sae_lm.commands.train import train

    with monkeypatch.context() as patch, pytest.raises(Stopped) as raised:
        stop_at(step, patch)
        train(settings)
    return str(raised.value)
