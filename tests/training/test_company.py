"""Training beside other processes, as one of several, and what is left when one of them ends: nobody harms another."""

import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
import threading

import pytest
import torch
from command_line import flags_of
from safetensors.torch import load_file
from torch.distributed import TCPStore
from train_runs import stopped, weights

from sae_lm.commands.train import train
from sae_lm.data.store import Moments, Store
from sae_lm.errors import SaeError, SaeLmError
from sae_lm.penalties.arms import parse_arm
from sae_lm.runtime.distributed import COLLECTIVE_TIMEOUT, Ranks, Team, _report_lost_peer
from sae_lm.settings import TrainSettings
from sae_lm.training.locks import only_trainer, only_writer_of_run, remove_locks
from sae_lm.training.state import ArmGroup, restore
from sae_lm.training.trainer import ArmTraining


@pytest.fixture
def train_settings(tiny_store, tmp_path):
    def make(out="runs", **changes):
        values = {"store": tiny_store, "hook": "blocks.1.hook_out", "d_sae": 32, "k": 4, "arms": "none", "seeds": 1, "tokens": 3000,
                  "batch_size": 100, "lr": 2e-3, "dead_after": 500, "device": "cpu", "out": tmp_path / out}  # fmt: skip
        return TrainSettings(**{**values, **changes})

    return make


def test_training_another_arm_keeps_the_checkpoints_of_what_is_not_finished(train_settings, monkeypatch, capsys):
    whole = weights(train(train_settings("whole")))
    stopped(train_settings(), 12, monkeypatch)
    train(train_settings(arms="max_cos:0.5"))
    capsys.readouterr()
    folder = train(train_settings())
    assert "continuing at step 13" in capsys.readouterr().out
    assert weights(folder)["none-seed0"] == whole["none-seed0"] and not (folder / "state").exists()


def test_an_sae_that_is_being_trained_is_refused_and_others_of_its_folder_are_not(train_settings):
    settings = train_settings(arms="none,max_cos:0.5")
    with only_trainer(settings.out, ["none-seed0"]):
        with pytest.raises(
            SaeError, match="another process is training .*none-seed0; wait for its end, or give another"
        ):
            train(settings)
        train(train_settings(arms="max_cos:0.5"))
        assert not remove_locks(settings.out)
        assert [path.name for path in (settings.out / "state").iterdir()] == ["none-seed0.lock"]
    train(settings)
    assert len(weights(settings.out)) == 2 and not (settings.out / "state").exists()
    assert json.loads((settings.out / "run.json").read_text())["arms"] == ["max_cos:0.5", "none"]


def test_an_sae_of_other_settings_is_refused_beside_one_that_is_being_trained(train_settings):
    """There is nothing finished yet to differ from; compare would refuse the folder in the end."""
    settings = train_settings()
    shutil.rmtree(train(settings) / "none-seed0")
    with only_trainer(settings.out, ["none-seed0"]):
        with pytest.raises(SaeError, match="another process is training in .*runs otherwise: lr is .*; wait for its"):
            train(train_settings(arms="max_cos:0.5", lr=1e-3))
        train(train_settings(arms="max_cos:0.5@k=3"))
    assert list(weights(settings.out)) == ["max_cos_0.5@k=3-seed0"]


def test_two_processes_that_train_one_folder_at_once_end_with_a_sentence_or_with_saes(train_settings, tmp_path):
    settings = train_settings(arms="none,max_cos:0.5,sq_cos", tokens=6000)
    (tmp_path / "settings.json").write_text(settings.model_dump_json())
    script = "import sys; from sae_lm.cli import main; sys.exit(main(sys.argv[1:]))"
    flags = flags_of(settings)
    started = [
        subprocess.Popen(
            [sys.executable, "-c", script, "train", *flags], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=240)[0] for process in started]
    assert all("Traceback" not in words for words in said), said
    assert 0 in [process.returncode for process in started]
    assert all(
        process.returncode == 0 or "another process is training" in words
        for process, words in zip(started, said, strict=True)
    )
    assert len(weights(settings.out)) == 3


def test_locks_that_others_take_and_remove_at_once_are_neither_lost_nor_called_held(tmp_path):
    """The folder of locks comes and goes: each who ends removes it, and looks whether the others' locks are free."""
    said = []

    def train_again_and_again(name):
        try:
            for _ in range(150):
                with only_trainer(tmp_path, [name]), only_writer_of_run(tmp_path):
                    pass
                remove_locks(tmp_path)
        except (SaeError, OSError) as problem:
            said.append(problem)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=train_again_and_again, args=(f"arm{number}",)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert said == [] and list(tmp_path.iterdir()) == []


def test_a_checkpoint_cut_short_does_not_hide_the_one_before(train_settings, monkeypatch, capsys):
    whole = weights(train(train_settings("whole", arms="none,max_cos:0.5")))
    settings = train_settings(arms="none,max_cos:0.5", checkpoint_seconds=0)
    stopped(settings, 12, monkeypatch)
    newest = max(settings.out.glob("state/*/[0-9]*/state.json"))
    newest.write_text(newest.read_text()[:50])
    assert weights(train(settings)) == whole
    said = capsys.readouterr().out
    assert "a damaged checkpoint is passed over" in said and "continuing at step 12" in said


def test_a_signal_in_the_last_step_says_what_is_finished(train_settings, monkeypatch):
    settings = train_settings(seeds=2)
    said = stopped(settings, 29, monkeypatch)
    assert "1 of 2 groups of SAEs are finished" in said and set(weights(settings.out)) == {"none-seed0"}
    assert len(weights(train(settings))) == 2


def test_a_scale_that_differs_in_its_last_bit_is_the_folders(train_settings, monkeypatch):
    """Sums in float64 round otherwise with another number of threads."""
    whole = weights(train(train_settings("whole", arms="none,max_cos:0.5")))
    settings = train_settings()
    train(settings)
    scale = json.loads((settings.out / "run.json").read_text())["facts"]["scale"]
    real = Store.moments
    monkeypatch.setattr(
        Store, "moments", lambda *given: Moments((m := real(*given)).mean, m.mean_squared_norm * (1 + 4e-16))
    )
    train(train_settings(arms="none,max_cos:0.5"))
    assert json.loads((settings.out / "run.json").read_text())["facts"]["scale"] == scale
    assert weights(settings.out) == whole
    monkeypatch.setattr(Store, "moments", lambda *given: Moments((m := real(*given)).mean, m.mean_squared_norm * 1.1))
    with pytest.raises(SaeError, match="trained otherwise: scale is"):
        train(settings)


def test_a_member_of_a_team_takes_the_checkpoint_that_the_first_has_chosen(train_settings, tiny_store, monkeypatch):
    from sae_lm.data.store import open_store
    from sae_lm.training.recipe import TrainingRecipe

    class Second(Team):
        def gather_objects(self, value):
            return [(f"{begun.folder(settings.out).name}/000000012", None), value]

    settings = train_settings(checkpoint_seconds=0)
    stopped(settings, 12, monkeypatch)  # the checkpoints of steps 12 and 13 are kept
    arm = parse_arm("none")
    begun = ArmGroup(0, [arm], [])
    recipe = TrainingRecipe.from_settings(settings, open_store(tiny_store), [arm])
    trainer = ArmTraining(arm, 0, recipe, torch.zeros(16), "cpu")
    assert restore(begun, [trainer], settings.out, recipe, Second(1, 2, None)) == 12
    tensors = load_file(next(settings.out.glob("state/*/000000012/000.safetensors")))
    assert torch.equal(trainer.weights.W_dec, tensors["weights.W_dec"])


def test_what_the_first_rank_decides_or_raises_all_get():
    class First(Ranks):
        def gather(self, value):
            return [value, (None, None)]

    class Second(Ranks):
        def gather(self, value):
            return [(None, SaeError("said by the first")), value]

    def fails():
        raise SaeError("said by the first")

    assert First(0, 2, 0).decided(lambda: 3) == 3
    for rank in (First(0, 2, 0), Second(1, 2, 1)):
        with pytest.raises(SaeError, match="said by the first"):
            rank.decided(fails)


def test_memory_that_runs_out_is_told_as_that_and_not_as_a_lost_rank(train_settings, monkeypatch):
    def runs_out(self, x, number):
        with _report_lost_peer(0):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(ArmTraining, "step", runs_out)
    with pytest.raises(
        SaeLmError, match=r"memory ran out on cpu .*Tried to allocate 2.00 GiB.*; give fewer --arms-at-once"
    ):
        train(train_settings())


def test_groups_of_a_team_wait_as_long_as_the_first_group(monkeypatch):
    asked = []
    monkeypatch.setattr("torch.distributed.new_group", lambda ranks, **given: asked.append((list(ranks), given)))
    assert Ranks(3, 4, 3).team_of(2)[:2] == (1, 2)
    assert [ranks for ranks, _ in asked] == [[0, 1], [2, 3]] * 2
    assert {given["timeout"] for _, given in asked} == {COLLECTIVE_TIMEOUT} and datetime.timedelta(
        hours=5
    ) < COLLECTIVE_TIMEOUT


MEMBER = """
import os, signal, sys, time
from sae_lm.runtime import distributed
distributed.GRACE_SECONDS = 0.2
with distributed.join_ranks() as ranks:
    with ranks.team_of(2).watched():
        ranks.barrier()
        if sys.argv[1] == "dies":
            if ranks.rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(200)  # as a wait for nccl, which notices nothing
    print("ended", flush=True)
"""


@pytest.mark.parametrize("how", ["dies", "ends"])
def test_a_member_that_dies_ends_its_team_at_once_and_one_that_ends_does_not(how):
    # as torchrun does: with the store in this process the port is taken before the members come
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    environment = os.environ | {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "OMP_NUM_THREADS": "1",
    }
    members = [
        subprocess.Popen([sys.executable, "-c", MEMBER, how], env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for rank in range(2)
    ]  # fmt: skip
    said = [member.communicate(timeout=180)[0] for member in members]
    codes = [member.returncode for member in members]
    if how == "ends":
        assert codes == [0, 0] and all("ended" in words for words in said), said
    else:
        assert codes == [2, -signal.SIGKILL] and "rank 0 lost rank 1; see that rank's message" in said[0], said
