"""sae_lm.training.trainer with penalties: when they pull, on what, and what a cheap way to take them comes to."""

from functools import cache
from typing import NamedTuple

import pytest
import torch
from small_trainings import ARCHITECTURES, NONE, equal, made, recipe, trained

from sae_lm.penalties.arms import Arm, parse_arm
from sae_lm.penalties.pairwise import sq_cos
from sae_lm.sae.nearest import coherence


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_coefficient_zero_is_bit_identical_to_no_penalty(arch):
    h = recipe(arch=arch)
    assert equal(trained(h=h), trained(Arm("max_cos", 0.0), h))


def test_arms_of_one_seed_start_equal_and_a_penalty_lowers_what_it_penalises():
    from sae_lm.penalties.max_cos import max_cos
    from sae_lm.penalties.pairwise import abs_cos

    plain = trained()
    for name, measure in (("max_cos", max_cos), ("abs_cos", abs_cos)):
        start = trained(Arm(name, 5.0), steps=0)
        assert torch.equal(start.W_dec, trained(steps=0).W_dec)
        assert measure(trained(Arm(name, 5.0)).W_dec) < 0.9 * measure(plain.W_dec)


def test_a_penalty_on_the_encoder_moves_the_encoder_and_not_the_decoder_directly():
    from sae_lm.penalties.pairwise import abs_cos

    on_encoder = trained(Arm("abs_cos", 5.0), recipe(penalty_on="encoder"))
    assert abs_cos(on_encoder.W_enc.T) < 0.8 * abs_cos(trained().W_enc.T)
    after_one = [trained(kind, recipe(penalty_on="encoder"), steps=1) for kind in (Arm("abs_cos", 5.0), NONE)]
    assert torch.equal(after_one[0].W_dec, after_one[1].W_dec)  # one step: nothing has come back through the codes


def test_the_penalty_waits_for_its_start():
    late = recipe(penalty_start=0.5)
    assert torch.equal(trained(Arm("max_cos", 5.0), late, steps=20).W_dec, trained(steps=20).W_dec)
    assert not torch.equal(trained(Arm("max_cos", 5.0), late).W_dec, trained().W_dec)


CHEAPENED = {
    "abs_cos": 0.3,
    "sq_cos": 3.0,
    "max_cos": 0.5,
    "coactive": 0.3,
    "freq_cos": 0.3,
    "c2r": 4.0,
    "silent": 0.3,
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("penalty", CHEAPENED)
def test_a_sample_every_tenth_step_ends_where_the_whole_gradient_at_every_step_does(penalty, monkeypatch):
    """Samples, searches of a part and gradients used for ten steps are allowed because the outcome is the same."""
    for name, size in {"SAMPLED_ROWS": 48, "FRAME_ROWS": 48, "SEARCHED_ROWS": 24, "SAMPLED_PAIRS": 200}.items():
        monkeypatch.setattr(f"sae_lm.penalties.term.{name}", size)
    arm = f"{penalty}:{CHEAPENED[penalty]}"
    plain, cheap, exact = map(ended, ("none", arm, f"{arm}@exact@every=1"))
    assert cheap.error == pytest.approx(exact.error, rel=0.03)
    # coactive hardly moves this cosine, and two seeds differ by as much
    allowed = (0.03 if penalty == "coactive" else 0.02) + 0.1 * abs(plain.nearest - exact.nearest)
    assert abs(cheap.nearest - exact.nearest) < allowed
    if penalty == "sq_cos":  # which hardly moves that cosine: a tenth of it would pass, and lowers its own by .76
        assert plain.squared - cheap.squared == pytest.approx(plain.squared - exact.squared, rel=0.17)


class Ended(NamedTuple):
    """Means of two seeds."""

    error: float
    """FVU over the last steps"""
    nearest: float
    """mean cosine to the nearest row"""
    squared: float
    """mean squared cosine of two rows"""


@cache  # all that is trained without a penalty is the same
def ended(text, steps=500) -> Ended:
    found = torch.zeros(3)
    for seed in range(2):
        run = made(parse_arm(text), recipe(steps=steps, lr=2e-3, penalty_every=10, d_sae=96), seed, d_in=12)
        errors = []
        for step, x in enumerate(feature_batches(steps)):
            run.step(x, step)
            errors.append(float(run.parts["fvu"]))
        cosine = float(coherence(run.W_dec, torch.Generator(), 96, torch.float32))
        found += torch.tensor([sum(errors[-40:]) / 40, cosine, float(sq_cos(run.W_dec))]) / 2
    return Ended(*found.tolist())


def feature_batches(steps, rows=64, d_in=12):
    """Rows that are sums of few of sixty features."""
    draw = torch.Generator().manual_seed(7)
    features = torch.nn.functional.normalize(torch.randn(60, d_in, generator=draw), dim=1) / 2
    return [
        (torch.rand(rows, 60, generator=draw) < 0.06) * torch.rand(rows, 60, generator=draw) @ features
        for _ in range(steps)
    ]
