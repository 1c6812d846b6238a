"""Training on an accelerator, which is simulated: nothing mixes devices, a run can be continued, no step waits."""

import pytest
import torch
from safetensors.torch import load_file
from simulated_device import NAME, simulated_device

from sae_lm.commands.train import train
from sae_lm.data.batches import row_order, shuffled_batches
from sae_lm.data.store import open_store
from sae_lm.errors import SettingsError, Stopped
from sae_lm.penalties.arms import parse_arm
from sae_lm.runtime.device import copied_ahead, pick_device
from sae_lm.settings import TrainSettings
from sae_lm.training import group
from sae_lm.training.recipe import TrainingRecipe

ARMS = (
    "none@arch=relu,none@arch=jumprelu,none@arch=matryoshka@prefixes=2,max_cos:0.25@fvu=0.01,max_cos@coherence=0.2@chunk=30,"
    "abs_cos,sq_cos@exact,freq_cos,coactive@anchored,c2r@arch=batchtopk,silent,align:0.1,none@arch=matryoshka@fvu=0.01,"
    "none@decoder=0.95,none@encoder=frozen"
)
"""Every architecture, every penalty, both controllers, controls."""


@pytest.fixture(scope="module")
def train_settings(tiny_store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")

    def make(out, **changes):
        values = {"store": tiny_store, "hook": "blocks.1.hook_out", "d_sae": 64, "k": 4, "arms": ARMS, "seeds": 1, "tokens": 2000,
                  "batch_size": 100, "lr": 2e-3, "dead_after": 500, "penalty_every": 5, "log_every": 50, "device": NAME,
                  "matmul": "float32", "out": folder / out}  # fmt: skip
        return TrainSettings(**{**values, **changes})

    return make


@pytest.fixture(scope="module")
def trained_there(train_settings):
    """SAE -> its weights, trained on the device without a stop."""
    with simulated_device():
        return weights(train(train_settings("there")))


def weights(folder):
    return {path.parent.name: load_file(path) for path in folder.glob("*/sae_weights.safetensors")}


def stop_before(step, monkeypatch):
    """A signal that comes while this step is worked on."""
    real = group._stops
    monkeypatch.setattr(group, "_stops", lambda run, at: _ask(run, at == step) or real(run, at))


def _ask(run, now):
    if now:
        run.stop_request.signal = 15


def test_every_arm_trains_on_a_device_to_what_it_is_on_the_cpu(train_settings, trained_there):
    here = weights(train(train_settings("here", device="cpu")))
    assert here.keys() == trained_there.keys() and len(here) == len(ARMS.split(","))
    for name, tensors in here.items():
        for key, value in tensors.items():
            torch.testing.assert_close(trained_there[name][key], value, rtol=1e-3, atol=1e-4, msg=f"{name} {key}")


def test_every_arm_continues_on_a_device_with_the_same_bits(train_settings, trained_there, monkeypatch):
    with simulated_device():
        settings = train_settings("stopped")
        with monkeypatch.context() as patch, pytest.raises(Stopped):
            stop_before(11, patch)
            train(settings)
        continued = weights(train(settings))
    assert trained_there.keys() == continued.keys()
    for name, tensors in trained_there.items():
        assert all(torch.equal(value, continued[name][key]) for key, value in tensors.items()), name


def test_a_run_begun_on_a_device_goes_on_without_one_and_back(train_settings, monkeypatch):
    arms = "max_cos:0.25@fvu=0.01,align:0.1,none@arch=matryoshka@prefixes=2"
    settings = train_settings("moved", arms=arms)
    with simulated_device(), monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_before(5, patch)
        train(settings)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_before(11, patch)
        train(train_settings("moved", arms=arms, device="cpu"))
    with simulated_device():
        assert len(weights(train(settings))) == 3


@pytest.mark.parametrize(
    "arm", ["none", "none@arch=batchtopk", "none@arch=matryoshka@prefixes=2", "max_cos:0.25@fvu=0.01", "align:0.1"]
)
def test_a_step_waits_for_nothing(train_settings, monkeypatch, arm):
    """But where it looks which latents are dead, and at a line of the log."""
    seen = {}
    with simulated_device() as simulation:
        real = group._step

        def counted(trainers, baselines, x, step):
            before = simulation.waits.copy()
            real(trainers, baselines, x, step)
            if step % 16:
                seen[step] = simulation.waits - before

        monkeypatch.setattr(group, "_step", counted)
        train(train_settings(f"waits {arm}", arms=arm, dead_after=1999, penalty_every=10))
        reading = sum(
            count for line, count in simulation.waits.items() if line.startswith(("runtime/device", "data/batches"))
        )
    assert len(seen) == 18 and not any(seen.values()), seen
    assert not reading  # batches come from memory that the device reads by itself


def test_batches_arrive_on_a_device_whole_in_order_and_with_what_went_wrong():
    def batches():
        for number in range(5):
            yield torch.full((3,), float(number), pin_memory=True)
        raise ValueError("at its place")

    with simulated_device() as simulation:
        arrived = []
        with pytest.raises(ValueError, match="at its place"):
            for x in copied_ahead(batches(), NAME):
                arrived.append(float((x * 2)[0]))
    assert arrived == [0, 2, 4, 6] and not [line for line in simulation.waits if line.startswith("runtime")]


def test_training_on_a_device_without_float64_is_refused_before_anything_is_read(train_settings):
    with simulated_device(float64=False), pytest.raises(SettingsError, match="'simulated' has no float64, which"):
        train(train_settings("runs", store="nowhere"))


def test_a_penalised_arms_state_is_on_the_device_after_it_is_restored(train_settings, tiny_store):
    from sae_lm.training.trainer import ArmTraining

    settings = train_settings("runs")
    with simulated_device():
        arm = parse_arm("align:0.1")
        recipe = TrainingRecipe.from_settings(settings, open_store(tiny_store), [arm])
        made = [ArmTraining(arm, 0, recipe, torch.zeros(16), NAME) for _ in range(2)]
        made[0].step(torch.randn(20, 16).to(NAME), 0)
        made[1].restore({name: value.cpu() for name, value in made[0].state().items()})
        assert {str(value.device) for name, value in made[1].state().items() if "draws" not in name} == {f"{NAME}:0"}


@pytest.mark.parametrize("optimizer", ["row_rms", "adam"])
def test_dead_latents_are_revived_on_a_device_as_on_the_cpu(train_settings, optimizer):
    changes = {
        "arms": "none,none@arch=relu,none@arch=jumprelu",
        "dead_after": 200,
        "penalty_every": 10,
        "resample_every": 7,
        "optimizer": optimizer,
    }
    with simulated_device():
        there = weights(train(train_settings(f"revived {optimizer} there", **changes)))
    here = weights(train(train_settings(f"revived {optimizer} here", device="cpu", **changes)))
    for name, tensors in here.items():
        for key, value in tensors.items():
            torch.testing.assert_close(there[name][key], value, rtol=1e-3, atol=1e-4, msg=f"{name} {key}")


def test_pinned_batches_are_the_batches_across_windows_too(tiny_store):
    store = open_store(tiny_store)
    order = row_order(store, seed=1, window_bytes=20_000)
    hook = "blocks.1.hook_out"
    with simulated_device():
        pinned = [batch[hook] for batch in shuffled_batches(store, [hook], order, 100, range(20), pin=True)]
        assert all(batch.is_pinned() for batch in pinned)
        plain = [batch[hook] for batch in shuffled_batches(store, [hook], order, 100, range(20))]
        assert not any(batch.is_pinned() for batch in plain)
    assert all(map(torch.equal, pinned, plain)) and len(pinned) == 20


def test_each_of_several_processes_takes_an_accelerator_of_its_own():
    with simulated_device():
        assert pick_device(NAME, local_rank=0) == f"{NAME}:0"
        assert pick_device(NAME) == NAME
    assert pick_device("cpu", local_rank=3) == "cpu"
    with pytest.raises(SettingsError, match="device is 'toaster'; expected `auto`, `cpu`"):
        pick_device("toaster")
