"""Caching on an accelerator, which is simulated: the rows are those of the CPU, and the model waits for no copy."""

import queue
import sys
import threading

import pytest
import torch
from simulated_device import NAME, simulated_device

from sae_lm.commands.cache import cache
from sae_lm.data.store import open_store
from sae_lm.runtime.device import OnItsWay


@pytest.mark.parametrize("forward", ["huggingface", "bridge"])
@pytest.mark.parametrize("changes", [{}, {"pack": False}, {"drop_sinks": 1.2}], ids=str)
def test_a_store_made_on_a_device_holds_what_one_made_on_the_cpu_does(tmp_path, cache_settings, forward, changes):
    changes = {"tokens": 300, "forward": forward} | changes
    with simulated_device() as simulation:
        there = open_store(cache(cache_settings(tmp_path / "there", device=NAME, **changes)))
    here = open_store(cache(cache_settings(tmp_path / "here", device="cpu", **changes)))
    for hook in here.hooks:
        torch.testing.assert_close(
            there.rows(hook), here.rows(hook), rtol=1e-4, atol=1e-5
        )  # of another attention kernel
    if "drop_sinks" not in changes:  # whether a row is kept is then known without a look at it
        ours = [line for line in simulation.waits if not line.startswith("lm/")]  # transformers looks at positions
        assert {line.partition(":")[0] for line in ours} == {"runtime/device.py"}  # the writing thread, at its events
        ids = [line for line in simulation.copies if line.startswith("data/")]
        assert not ids  # they too are queued, by runtime/device.py


def test_what_is_on_its_way_is_there_once_somebody_gets_it():
    with simulated_device() as simulation:
        values = OnItsWay({"a": torch.arange(3.0).to(NAME) * 2, "b": torch.ones(2).to(NAME) + 1})
        before = sum(simulation.waits.values())
        assert values._tensors["a"].tolist() != [0, 2, 4]  # what was not waited for is garbage
        assert {name: value.tolist() for name, value in values.get().items()} == {"a": [0, 2, 4], "b": [2, 2]}
        assert sum(simulation.waits.values()) == before + 1
    assert torch.equal(OnItsWay({"a": torch.ones(2)}).get()["a"], torch.ones(2))


def test_what_one_thread_sends_is_there_when_another_gets_it_whoever_else_waits():
    made, got, interval = queue.SimpleQueue(), [], sys.getswitchinterval()

    def gets():
        while (values := made.get()) is not None:
            got.append(values.get()["a"].tolist())

    with simulated_device():
        threads = [threading.Thread(target=gets) for _ in range(2)]
        for thread in threads:
            thread.start()
        sys.setswitchinterval(1e-6)
        try:
            for number in range(300):
                made.put(OnItsWay({"a": torch.full([2], float(number)).to(NAME)}))
        finally:
            sys.setswitchinterval(interval)
            for _ in threads:
                made.put(None)
            for thread in threads:
                thread.join()
    assert sorted(got) == [[number, number] for number in range(300)]
