"""sae_lm.penalties.controllers: the controller on a plant whose answer is known."""

import math

import pytest
import torch

from sae_lm.penalties import controllers
from sae_lm.penalties.controllers import SparsityController


def settled(target, first, steps=600, power=0.5, delay=10):
    """L0 follows 100 / coefficient^power, delayed as weights answer a loss. Returns L0 and the coefficient at the end."""
    control = SparsityController(target, steps, "cpu")
    control.begin(first)
    log_l0 = math.log(20)
    for _ in range(steps):
        wanted = math.log(100) - power * float(control.coefficient.log())
        log_l0 += (wanted - log_l0) / delay
        control.observe(torch.tensor(math.exp(log_l0)))
    return math.exp(log_l0), float(control.coefficient)


@pytest.mark.parametrize("first", [0.5, 10.0, 100.0])
@pytest.mark.parametrize("target", [8, 32, 128])
def test_l0_settles_at_its_target_wherever_the_coefficient_begins(target, first):
    l0, coefficient = settled(target, first)
    assert l0 == pytest.approx(target, rel=0.01)
    assert coefficient == pytest.approx((100 / target) ** 2, rel=0.05)


def test_without_a_target_the_coefficient_stays():
    assert settled(None, 3.0)[1] == pytest.approx(3.0)


def test_an_l0_that_answers_to_nothing_does_not_wind_the_coefficient_up_for_ever():
    control = SparsityController(10, 100, "cpu")
    control.begin(1.0)
    for _ in range(10_000):
        control.observe(torch.tensor(50.0))
    assert float(control.coefficient) < math.exp(controllers.LIMIT + controllers.GAIN + 0.1)
    for _ in range(2_000):
        control.observe(torch.tensor(0.0))
    assert float(control.coefficient) > math.exp(-controllers.LIMIT - controllers.GAIN - 0.1)


def test_it_continues_from_its_state_bit_for_bit():
    a, b = (SparsityController(10, 100, "cpu") for _ in range(2))
    a.begin(0.3)
    for step in range(40):
        a.observe(torch.tensor(10.0 + step))
    b.restore({name: value.clone() for name, value in a.state().items()})
    for step in range(40):
        assert torch.equal(a.coefficient, b.coefficient)
        a.observe(torch.tensor(7.0 + step))
        b.observe(torch.tensor(7.0 + step))
