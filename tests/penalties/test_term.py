"""sae_lm.penalties.term and its controller: when a penalty acts, how much, and what survives a restart."""

import math

import numpy as np
import pytest
import torch
from recipes import training_recipe
from reference import ortsae

from sae_lm.penalties.arms import PENALTIES, parse_arm
from sae_lm.penalties.controllers import CoherenceController, CostController
from sae_lm.penalties.term import PenaltyTerm
from sae_lm.sae.sparse import Codes

M, D = 40, 6


def some_rows(seed=0):
    return torch.randn(M, D, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def some_codes(batch=30, k=5):
    generator = torch.Generator().manual_seed(3)
    latent = torch.stack([torch.randperm(M, generator=generator)[:k] for _ in range(batch)]).flatten()
    return Codes(torch.arange(0, batch * k + 1, k), latent, torch.ones(batch * k), torch.rand(M, generator=generator))


def penalty_term(text, matmul="bfloat16", **schedule):
    """schedule: every, start, warm_up and on of the recipe's penalty."""
    penalty = {f"penalty_{key}": value for key, value in schedule.items()}
    return PenaltyTerm(parse_arm(text), training_recipe(d_sae=M, matmul=matmul, **penalty), "cpu")


def added(p, step, rows, generator=None, codes=None):
    gradient = torch.zeros_like(rows)
    p.refresh(step, rows, generator or torch.Generator(), codes, some_rows(9))
    p.add_to(gradient, step)
    return gradient


def gradient_of(plain, rows):
    return torch.autograd.grad(plain(rows), rows)[0]


def test_a_penalty_is_due_from_its_start():
    assert [penalty_term("max_cos", start=0.5).is_due(step) for step in (0, 49, 50, 51)] == [False, False, True, True]
    assert [penalty_term("max_cos@start=0.1", start=0.5).is_due(step) for step in (9, 10)] == [False, True]


@pytest.mark.parametrize("text", ["none", "max_cos:0"])
def test_without_a_coefficient_nothing_is_due(text):
    assert not any(penalty_term(text).is_due(step) for step in range(100))


@pytest.mark.parametrize(
    "p", [penalty_term("max_cos:0.5@exact", every=3, start=0.2), penalty_term("max_cos:0.5@exact@every=3@start=0.2")]
)
def test_a_gradient_is_used_until_it_is_taken_anew(p):
    for step in range(20, 30):
        taken = some_rows((step - 20) // 3 * 3 + 20)
        torch.testing.assert_close(added(p, step, some_rows(step)), 0.5 * gradient_of(ortsae, taken))
        assert p.value.item() == pytest.approx(ortsae(taken).item(), rel=1e-5)


def test_a_gradient_is_added_to_what_is_there():
    rows, gradient, p = some_rows(), torch.ones(M, D), penalty_term("max_cos:0.5@exact")
    p.refresh(0, rows, torch.Generator())
    p.add_to(gradient, 0)
    torch.testing.assert_close(gradient, 1 + 0.5 * gradient_of(ortsae, rows))


def test_the_coefficient_rises_over_the_warm_up():
    rows, p = some_rows(), penalty_term("max_cos:0.5@exact", start=0.2, warm_up=0.4)
    for step, rise in ((20, 1 / 40), (30, 11 / 40), (50, 31 / 40), (60, 1), (90, 1)):
        torch.testing.assert_close(added(p, step, rows), rise * 0.5 * gradient_of(ortsae, rows))


def test_the_rows_are_the_decoders_unless_the_arm_or_the_run_says_otherwise():
    assert penalty_term("max_cos").on == "decoder"
    assert penalty_term("max_cos", on="encoder").on == "encoder"
    assert penalty_term("max_cos@on=decoder", on="encoder").on == "decoder"


@pytest.mark.parametrize("penalty", [*PENALTIES, "max_cos@anchored", "coactive@anchored", "c2r@anchored"])
def test_small_dictionaries_are_penalised_exactly_by_every_arm(penalty):
    """Samples and turns begin where an application would cost much: 40 rows are compared with all others."""
    rows, codes = some_rows(), some_codes()
    name, _, anchored = penalty.partition("@")
    others = {"encoder": some_rows(9)} if name == "align" else {}
    plain = PENALTIES[name](rows, None, codes, **({"anchored": True} if anchored else {}), **others)
    (expected,) = torch.autograd.grad(plain, rows)
    for text in (penalty, f"{penalty}@exact") if name != "align" else (penalty,):
        p = penalty_term(text, matmul="float32")
        gradient = added(p, p.first, rows, torch.Generator().manual_seed(0), codes)
        torch.testing.assert_close(gradient, expected * p.arm.coefficient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    "text",
    [
        "max_cos",
        "max_cos@chunk=16@every=2",
        "abs_cos",
        "coactive@coherence=0.3",
        "max_cos@anchored@fvu=0.01",
        "c2r",
        "c2r@chunk=16",
        "c2r@anchored",
        "silent@coherence=0.3",
        "align@fvu=0.01",
    ],
)
def test_a_penalty_continues_from_its_state_bit_for_bit(text, monkeypatch):
    monkeypatch.setattr("sae_lm.penalties.term.SEARCHED_ROWS", 7)
    monkeypatch.setattr("sae_lm.penalties.term.SAMPLED_ROWS", 7)
    codes = some_codes()

    def run(p, generator, steps):
        out = []
        for step in steps:
            out.append(added(p, step, some_rows(step), generator, codes))
            out += [part.clone() for part in p.cached]
            p.observe(step, torch.tensor(0.001 * step))
        return out

    first, generator = penalty_term(text, every=3), torch.Generator().manual_seed(1)
    run(first, generator, range(40))
    assert ("held_norms" in first.state(), "held_encoder" in first.state()) == ("c2r" in text, "align" in text)
    state, drawn = {name: value.clone() for name, value in first.state().items()}, generator.get_state()
    rest = run(first, generator, range(40, 100))
    again, generator = penalty_term(text, every=3), torch.Generator()
    again.restore(state)
    generator.set_state(drawn)
    assert rest and all(map(torch.equal, rest, run(again, generator, range(40, 100))))


@pytest.mark.parametrize("first", [0.01, 40.0])
def test_a_controller_lands_on_its_cost_whatever_it_begins_at(first, steps=2000):
    """The plant: a cost of .02 c^.7 that follows the coefficient over 150 steps, measured with noise."""
    noise, controller, cost = torch.Generator().manual_seed(0), CostController(first, 0.005, steps, "cpu"), 0.0
    for _ in range(steps):
        cost += (0.02 * controller.value.item() ** 0.7 - cost) / 150
        controller.observe(torch.tensor(cost) + 0.001 * torch.randn((), generator=noise))
    assert cost == pytest.approx(0.005, rel=0.1)


@pytest.mark.parametrize("first", [0.01, 10.0])
def test_a_controller_lands_on_its_coherence(first):
    """The plant: a cosine that falls by .03 per factor e in the coefficient, and follows it over 150 steps."""
    controller, cosine = CoherenceController(first, 0.2, 4000, "cpu"), 0.35
    for _ in range(0, 4000, 5):
        cosine += 5 * (0.17 - 0.03 * math.log(controller.value.item() / 0.25) - cosine) / 150
        controller.observe(torch.tensor(cosine), 5)
    assert cosine == pytest.approx(0.2, abs=0.005)


@pytest.mark.parametrize(("cost", "way"), [(0.0, 1), (0.5, -1)])
def test_a_cost_or_a_coherence_that_nothing_moves_winds_a_coefficient_up_or_down_by_a_factor_of_400_at_most(cost, way):
    controllers = (CostController(0.25, 0.005, 2000, "cpu"), CoherenceController(0.25, 0.2, 2000, "cpu"))
    for _ in range(2000):
        controllers[0].observe(torch.tensor(cost))
        controllers[1].observe(torch.tensor(0.5 if cost == 0 else 0.0))
    assert [one.value.item() for one in controllers] == pytest.approx([0.25 * math.exp(6 * way)] * 2)


@pytest.mark.parametrize("text", ["max_cos@anchored", "coactive@anchored", "c2r@anchored", "freq_cos", "silent"])
def test_a_penalty_that_asks_which_latent_fires_more_often_begins_once_some_have_fired(text):
    assert penalty_term(text).first == 1 and penalty_term(text, start=0.5).first == 50
    assert not penalty_term(text).is_due(0) and penalty_term("max_cos").is_due(0)


def test_a_controller_only_watches_while_the_dictionary_begins_to_learn():
    p = penalty_term("max_cos@fvu=0.01", start=0.2)
    for step in range(25):
        p.observe(step, torch.tensor(1.0))
    assert p.coefficient == 0.25
    p.observe(25, torch.tensor(1.0))
    assert p.coefficient < 0.25


@pytest.mark.parametrize("steps", [500, 2000, 8000])
def test_an_unhurried_controller_lands_on_its_cost_though_that_dips_while_the_learning_rate_falls(steps):
    """The plant: a balance's cost on SmolLM2, a power of 1.58 followed over 100 steps, that dips to a half in the decay."""
    noise = torch.Generator().manual_seed(0)
    controller = CostController(0.25, 0.005, steps, "cpu", 100.0, 1.5, unhurried=True, highest=10.0)
    followed, balances = math.log(0.25), []
    for step in range(steps):
        lr_share = min(1.0, (steps - step) / (0.2 * steps))
        followed += (controller.log_value.item() - followed) * lr_share / 100
        dip = float(np.interp(lr_share, [0, 0.3, 0.6, 1], [0.9, 0.75, 0.5, 1]))
        cost = 0.025 * math.exp(1.58 * followed) * dip
        if step >= 0.05 * steps:
            seen = cost - 0.006 * math.exp(-step / 60) + 0.0025 * lr_share * float(torch.randn((), generator=noise))
            controller.observe(torch.tensor(seen))
        balances.append(controller.value.item())
    assert cost == pytest.approx(0.005, rel=0.15)
    steady = balances[steps // 2 : 4 * steps // 5]
    assert max(steady) < 1.4 * min(steady)
