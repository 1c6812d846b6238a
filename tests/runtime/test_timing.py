"""sae_lm.runtime.timing: what is rare in a training step counts as often as it happens, and no mark waits for a device."""

import pytest
from simulated_device import NAME, simulated_device

from sae_lm.runtime import timing
from sae_lm.runtime.timing import StepTimer


def marked(timer, clock):
    """A hundred steps of a second, with a penalty of 5 seconds at every tenth and a log of 20 at every fiftieth."""
    for step in range(100):
        timer.begin()
        for part, seconds, every in (("encoder", 1, 1), ("penalty", 5, 10), ("log and checkpoints", 20, 50)):
            if step % every == 0:
                clock[0] += seconds
                timer.mark(part)


EXPECTED = {"encoder": 100, "penalty": 50, "log and checkpoints": 40}


def test_parts_of_a_step_that_come_rarely_count_as_often_as_they_come(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    timer = StepTimer()
    marked(timer, clock)
    assert dict(timer.seconds) == EXPECTED


@pytest.mark.parametrize("most", [timing.MOST_MARKS, 20])
def test_they_do_on_a_device_too_and_nothing_waits_for_it_until_somebody_asks(monkeypatch, most):
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    monkeypatch.setattr(timing, "MOST_MARKS", most)
    with simulated_device() as simulation:
        timer = StepTimer(NAME)
        marked(timer, clock)
        assert sum(simulation.waits.values()) == (0 if most > 200 else pytest.approx(100 / 10, abs=5))
        assert dict(timer.seconds) == pytest.approx(EXPECTED)
