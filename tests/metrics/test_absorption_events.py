"""sae_lm.metrics.absorption_events: which tokens are shown, and what is said of them."""

import json
import math

import pytest
import torch
from toys import as_codes

import sae_lm
from sae_lm.metrics.absorption_events import AFTER, BEFORE, View, children, choose, explore, window
from sae_lm.metrics.codes import firing_codes


@pytest.fixture(scope="module")
def store(tiny_store):
    return sae_lm.open_store(tiny_store)


def view(dense, x, W_dec, main, token_id, names=None):
    codes = as_codes(dense)
    return View(codes, x, W_dec, main, children(codes, token_id, names))


@pytest.fixture
def two_arms(store):
    """Four rows of a concept along axis 0, two arms of three latents. Latent 0 is the concept's own.

    baseline: rows 0 and 1 are swallowed by latent 1 (axes 0 and 1), row 2 by latent 2, row 3 is the concept's own.
    other: only row 1 is swallowed; on row 2 nothing fires along the probe, on the others the main latent does.
    """
    row = torch.tensor([3, 40, 41, 90, 91])
    token_id = store.tokens()["token_id"][row].long()
    W_dec = torch.tensor([[1.0, 0, 0], [0.6, 0.8, 0], [0.8, 0, 0.6]]) * torch.tensor([[1.0], [2.0], [0.5]])
    x = torch.tensor([[6.0, 8, 0], [3, 4, 0], [8, 0, 6], [5, 0, 0], [0, 1, 0]])
    baseline = torch.tensor([[0.0, 10, 0], [0, 5, 0], [0, 0, 10], [5, 0, 0], [0, 1, 0]])
    other = torch.tensor([[6.0, 8, 0], [0, 4, 0], [0, 0, 0], [5, 0, 0], [0, 1, 0]])
    arms = {"none": view(baseline, x, W_dec, [0], token_id), "other": view(other, x, W_dec, [0], token_id)}
    return arms, token_id, row


def found(store, two_arms, **options):
    arms, token_id, row = two_arms
    return explore(store, arms, token_id, row, torch.tensor([0, 1, 2, 3]), torch.tensor([2.0, 0, 0]), **options)


def test_an_event_says_for_every_arm_what_fires_and_what_took_over_with_what_share(store, two_arms):
    told = found(store, two_arms)
    first = next(event for event in told["events"] if event["arms"]["none"]["absorber"]["strength"] == 10
                 and event["arms"]["none"]["absorber"]["latent"] == 1)  # fmt: skip
    none, other = first["arms"]["none"], first["arms"]["other"]
    assert none["silent"] and none["main"] == [{"latent": 0, "strength": 0.0}]
    assert none["absorber"]["share"] == pytest.approx(1.0)  # 10 * .6 of a projection of 6
    assert none["absorber"]["cos_probe"] == pytest.approx(0.6) == none["absorber"]["cos_parent"]
    assert not other["silent"] and other["absorber"] is None
    assert other["main"] == [{"latent": 0, "strength": 6.0}]
    third = next(event for event in told["events"] if event["arms"]["none"]["absorber"]["latent"] == 2)
    assert third["arms"]["other"] == {"silent": True, "main": [{"latent": 0, "strength": 0.0}], "absorber": None}


def test_a_child_is_called_what_the_user_calls_it(store, two_arms):
    arms, token_id, row = two_arms
    names = {int(token_id[2]): "<mine>"}
    named = {arm: of._replace(children=children(of.codes, token_id, names)) for arm, of in arms.items()}
    told = found(store, (named, token_id, row))
    assert told["absorbers"]["none"][1]["child"] == "<mine>"
    assert {e["arms"]["none"]["absorber"]["child"] for e in told["events"]} >= {"<mine>"}


def test_rows_on_which_no_arm_is_silent_are_no_events_and_those_that_differ_come_first(store, two_arms):
    told = found(store, two_arms)
    silences = [[side["silent"] for side in event["arms"].values()] for event in told["events"]]
    assert silences == [[True, False], [True, True], [True, True]]
    assert len(found(store, two_arms, events=1)["events"]) == 1


def test_absorbers_are_counted_over_all_events_and_carry_their_child(store, two_arms):
    _, token_id, _ = two_arms
    told = found(store, two_arms, events=1)["absorbers"]
    assert [(a["latent"], a["events"]) for a in told["none"]] == [(1, 2), (2, 1)]
    assert [(a["latent"], a["events"]) for a in told["other"]] == [(1, 1)]
    assert told["none"][1]["child"] == store.vocabulary[int(token_id[2])]
    assert told["none"][1]["child_precision"] == 1
    assert told["none"][1]["cos_probe"] == pytest.approx(0.8)


def test_the_shape_is_what_the_report_takes_and_json_can_hold_it(store, two_arms):
    told = found(store, two_arms)
    assert set(told) == {"absorbers", "events"}
    assert set(told["absorbers"]["none"][0]) == {
        "latent", "events", "child", "child_precision", "cos_probe", "cos_parent",
    }  # fmt: skip
    event = told["events"][0]
    assert set(event) == {"token", "before", "after", "arms"} and list(event["arms"]) == ["none", "other"]
    absorber = event["arms"]["none"]["absorber"]
    assert set(absorber) == {"latent", "strength", "cos_probe", "cos_parent", "share", "child"}
    assert json.loads(json.dumps(told, allow_nan=False)) == told


def test_a_concept_without_holes_or_candidates_has_no_events(store, two_arms):
    arms, token_id, row = two_arms
    for candidates in (torch.tensor([3]), torch.zeros(0, dtype=torch.long)):
        told = explore(store, arms, token_id, row, candidates, torch.tensor([1.0, 0, 0]))
        assert told == {"absorbers": {"none": [], "other": []}, "events": []}


# --- which rows


def test_every_pattern_of_silence_takes_its_turn_before_any_comes_again():
    silent = torch.tensor([[1, 0]] * 5 + [[0, 1]] * 2 + [[1, 1]] * 3).bool()
    share = torch.linspace(0.9, 0.1, 10)[:, None].expand(-1, 2)
    order = choose(silent, share, torch.arange(10), 9)
    assert order[:4] in ([5, 0, 6, 1], [0, 5, 1, 6]) and order[4:] == [2, 3, 4, 7, 8]


def test_a_token_type_is_shown_again_only_when_all_others_have_been():
    silent = torch.tensor([[True, False]] * 4 + [[True, True]] * 2)
    share = torch.tensor([0.5, 0.9, 0.8, 0.1, 0.7, 0.6])[:, None].expand(-1, 2)
    token_id = torch.tensor([4, 4, 4, 5, 4, 6])
    assert choose(silent, share, token_id, 6) == [1, 3, 5, 2, 0, 4]


def test_a_token_is_shown_where_the_arms_differ_before_where_they_do_not_however_little_was_absorbed_there():
    silent = torch.tensor([[True, True], [True, False]])
    share = torch.tensor([[0.9, 0.9], [0.1, 0.0]])
    assert choose(silent, share, torch.tensor([7, 7]), 2) == [1, 0]


def test_only_what_a_silent_arms_absorber_carries_ranks_a_row():
    silent = torch.tensor([[True, False], [True, False]])
    share = torch.tensor([[0.2, 0.9], [0.3, 0.0]])
    assert choose(silent, share, torch.tensor([1, 2]), 2) == [1, 0]


# --- children and text


def test_children_equal_a_loop_over_latents():
    draw = torch.Generator().manual_seed(0)
    dense = torch.rand(200, 12, generator=draw) * (torch.rand(200, 12, generator=draw) < 0.2)
    dense[:, 7] = 0
    token_id = torch.randint(0, 6, (200,), generator=draw) * 11
    got = children(as_codes(dense), token_id)
    for latent in range(12):
        fires = dense[:, latent] > 0
        if not fires.any():
            assert int(got.token[latent]) == -1 and math.isnan(float(got.precision[latent]))
            continue
        ranked = {
            int(t): (int((token_id[fires] == t).sum()), float(dense[fires & (token_id == t), latent].double().sum()))
            for t in token_id[fires].unique()
        }
        best = max(ranked, key=lambda t: ranked[t])
        assert int(got.token[latent]) == best
        assert float(got.precision[latent]) == pytest.approx(ranked[best][0] / int(fires.sum()))


def test_of_tokens_equally_frequent_the_one_on_which_the_latent_is_stronger_is_its_child():
    dense = torch.tensor([[1.0], [1.0], [5.0], [5.0], [9.0]])
    assert int(children(as_codes(dense), torch.tensor([3, 3, 2, 2, 8])).token[0]) == 2


def test_tokens_with_one_name_are_one_child():
    dense = torch.ones(6, 1)
    token_id = torch.tensor([2, 2, 3, 5, 3, 8])
    apart = children(as_codes(dense), token_id)
    assert float(apart.precision[0]) == pytest.approx(2 / 6)
    named = children(as_codes(dense), token_id, {3: "fruit", 5: "fruit", 8: "other"})
    assert named.names[int(named.token[0])] == "fruit" and float(named.precision[0]) == pytest.approx(3 / 6)


def test_latents_without_rows_have_no_child():
    got = children(
        firing_codes(torch.zeros(0, 1), torch.zeros(0, 1, dtype=torch.long), 4), torch.zeros(0, dtype=torch.long)
    )
    assert got.token.tolist() == [-1] * 4


def test_the_window_is_the_tokens_own_context_in_order(store):
    tokens = store.tokens()
    for row in (0, 17, 333, len(store) - 1):
        block = store.blocks()[int(tokens["context"][row])].tolist()
        at = int(tokens["position"][row])
        texts = [store.vocabulary[token] for token in block]
        before, token, after = window(store, row, int(tokens["token_id"][row]))
        assert token == store.vocabulary[int(tokens["token_id"][row])]
        assert before == "".join(texts[max(0, at - BEFORE) : at]) and after == "".join(texts[at + 1 : at + 1 + AFTER])
    assert window(store, -1, 5) == ("", store.vocabulary[5], "")
