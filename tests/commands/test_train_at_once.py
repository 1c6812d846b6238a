"""Groups of arms in threads of one process: the bits, the threads, failures and signals."""

import signal
import subprocess
import sys
import threading
import time
from queue import SimpleQueue

import pytest
import torch
from command_line import flags_of
from recipes import training_recipe
from train_runs import contents, settings_for, stop_at

from sae_lm.commands.train import train
from sae_lm.errors import SaeError, SettingsError, Stopped
from sae_lm.penalties.arms import parse_arms
from sae_lm.runtime.distributed import Ranks


@pytest.fixture
def train_settings(tiny_store, tmp_path):
    return lambda out="runs", **changes: settings_for(**{"store": tiny_store, "out": tmp_path / out, **changes})


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_groups_at_once_give_the_bits_of_one_after_another_stopped_or_not(train_settings, monkeypatch):
    whole = contents(train(train_settings("whole", seeds=3)))
    assert contents(train(train_settings("at once", seeds=3, parallel=2))) == whole
    settings = train_settings(seeds=3, parallel=3)
    with monkeypatch.context() as patch, pytest.raises(Stopped, match=r"kept in|groups of SAEs are finished"):
        stop_at(20, patch)
        train(settings)
    assert len(list(settings.out.glob("*-seed?"))) < 6
    assert contents(train(settings)) == whole


@pytest.mark.usefixtures("one_thread")
def test_groups_at_once_share_out_the_threads_and_give_them_back(train_settings, monkeypatch):
    from sae_lm.training.trainer import ArmTraining

    real, seen = ArmTraining.step, []
    monkeypatch.setattr(
        ArmTraining, "step", lambda self, x, number: seen.append(torch.get_num_threads()) or real(self, x, number)
    )
    torch.set_num_threads(5)
    train(train_settings(arms="none", seeds=2, tokens="1k", parallel=2))
    assert set(seen) == {2} and torch.get_num_threads() == 5
    seen.clear()
    train(train_settings("one", arms="none", tokens="1k", parallel=2))
    assert set(seen) == {5}, "there is one SAE to train"


@pytest.mark.usefixtures("one_thread")
def test_where_one_group_fails_those_beside_it_keep_a_checkpoint_and_go_on(train_settings, monkeypatch):
    from sae_lm.training.trainer import ArmTraining

    whole = contents(train(train_settings("whole", seeds=2, arms="none")))
    settings, real, beside = train_settings(seeds=2, arms="none", parallel=2), ArmTraining.step, threading.Event()
    failing = SimpleQueue()

    def step(self, x, number):
        if self.seed == 1 and number == 3:
            failing.put(threading.current_thread())
            assert beside.wait(60)
            raise SaeError("the loss became NaN")
        if self.seed == 0 and number == 5:
            beside.set()
        if self.seed == 0 and number == 6:
            failing.get(timeout=60).join(60)  # it has asked the others to end by then
        real(self, x, number)

    with monkeypatch.context() as patch, pytest.raises(SaeError, match="the loss became NaN"):
        patch.setattr(ArmTraining, "step", step)
        train(settings)
    assert [int(kept.name) > 5 for kept in settings.out.glob("state/*/[0-9]*")] == [True]
    assert contents(train(settings)) == whole


def test_groups_at_once_are_for_one_process_on_the_cpu(train_settings):
    import sae_lm.commands.train as command

    settings = train_settings(parallel=3)
    assert command._parallel(settings, 4, Ranks(0, 1, 0), "cpu") == 3
    assert command._parallel(settings, 2, Ranks(0, 1, 0), "cpu") == 2
    assert command._parallel(settings, 4, Ranks(0, 1, 0), "cuda:0") == 1
    assert command._parallel(settings, 4, Ranks(0, 3, 0), "cpu") == 1
    tracked = settings.model_copy(update={"trackers": ("wandb",)})
    assert command._parallel(tracked, 4, Ranks(0, 1, 0), "cuda:0") == 1
    with pytest.raises(SettingsError, match="parallel is 3, and W&B takes one group at a time; give parallel 1"):
        command._parallel(tracked, 4, Ranks(0, 1, 0), "cpu")


def test_the_second_signal_ends_groups_at_once_within_seconds(train_settings):
    settings = train_settings(tokens="200M", arms="none", seeds=2, parallel=2)
    flags = flags_of(settings)
    code = (
        # a shell may have started these tests in the background, where SIGINT is ignored, by children too
        "import signal, sys, time\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from sae_lm.training import group\nreal = group.write_checkpoint\n"
        "group.write_checkpoint = lambda *a: (time.sleep(60), real(*a))\n"
        f"from sae_lm.cli import main\nsys.exit(main({['train', *flags]!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    logs = [settings.out / f"none-seed{seed}.metrics.jsonl" for seed in (0, 1)]
    while process.poll() is None and not all(log.exists() and log.read_text() for log in logs):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    while (line := process.stderr.readline()) and "stopping after this step" not in line:
        pass  # two signals before the first is seen are one
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=30)[1]
    assert process.returncode == 130 and "Traceback" not in said, said[-2000:]


def test_a_baseline_that_is_trained_along_counts_when_groups_are_made(train_settings, monkeypatch):
    import sae_lm.commands.train as command

    monkeypatch.setattr(command, "is_done", lambda *_: False)
    monkeypatch.setattr(command, "read_unfinished", lambda *_: [])
    arms = parse_arms(["none", "max_cos:0.1@fvu=0.01"])
    groups, _ = command._share_out(train_settings(), training_recipe(), arms, 2)
    assert [group.names() for group in groups] == [[arm.name for arm in arms]], "apart, three would be trained"
