"""sae_lm.concepts.probes: against scikit-learn, and what their gates let through."""

import numpy as np
import pytest
import torch
from toys import toy_rows

from sae_lm.concepts.probes import CHANCE, PERMUTATIONS, PROBE_L2, f1, fit_probes, logistic, permuted_f1
from sae_lm.concepts.rows import ConceptRows
from sae_lm.concepts.word_split import TEST, TRAIN, VALIDATION
from sae_lm.runtime.seeds import derive


def test_the_logistic_probe_agrees_with_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    draw = torch.Generator().manual_seed(0)
    x = torch.randn(400, 5, generator=draw)
    labels = x[:, :2] + 0.5 * torch.randn(400, 2, generator=draw) > 0.8
    weight, bias = logistic(x, labels)
    for c in range(2):
        # our loss is sum of balanced weights (total 1) and L2 1e-3: in scikit-learn's units C = 1 / (1e-3 * 400)
        twin = LogisticRegression(C=1 / (1e-3 * 400), class_weight="balanced", tol=1e-8, max_iter=5000)
        twin.fit(x.numpy(), labels[:, c].numpy())
        torch.testing.assert_close(weight[:, c], torch.tensor(twin.coef_[0]).float(), atol=2e-2, rtol=2e-2)
        assert float(bias[c]) == pytest.approx(twin.intercept_[0], abs=2e-2)


def test_f1_of_a_hand_worked_case():
    predicted = torch.tensor([True, True, False, False, True])
    actual = torch.tensor([True, False, True, False, True])
    assert f1(predicted, actual) == pytest.approx(2 * 2 / (2 * 2 + 2))  # TP 2, FP 1, FN 1
    assert f1(~actual, actual) == 0


def test_a_probe_passes_its_gate_only_on_words_it_has_not_seen():
    rows = toy_rows([1, 2])
    (probe,) = fit_probes(rows, min_words=8, gate=0.6)
    assert probe.skipped is None and probe.f1 > 0.99
    assert "words to be tested on" in str(fit_probes(rows, min_words=10_000, gate=0.6)[0].skipped)
    shuffled = rows._replace(labels=rows.labels[torch.randperm(1200, generator=torch.Generator().manual_seed(1))])
    assert "below 0.6" in str(fit_probes(shuffled, min_words=8, gate=0.6)[0].skipped)
    assert {TRAIN, VALIDATION, TEST} == set(rows.subset.tolist())


def test_probes_of_rows_far_from_round_are_those_of_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    draw = torch.Generator().manual_seed(0)
    x = torch.randn(600, 8, generator=draw) * torch.logspace(0, -1.5, 8) + torch.linspace(-3, 5, 8)
    labels = torch.stack([x[:, 0] + x[:, 1] > -4.8, x[:, 7] > 5.05, torch.rand(600, generator=draw) < 0.1], 1)
    weight, bias = logistic(x, labels)
    scale = float(x.square().mean().sqrt())
    for c in range(3):
        twin = LogisticRegression(C=1 / (PROBE_L2 * 600), class_weight="balanced", tol=1e-10, solver="newton-cholesky")
        twin.fit((x / scale).double().numpy(), labels[:, c].numpy())
        torch.testing.assert_close(weight[:, c] * scale, torch.tensor(twin.coef_[0]).float(), atol=5e-3, rtol=2e-3)
        assert float(bias[c]) == pytest.approx(np.ravel(twin.intercept_)[0], abs=5e-3, rel=2e-3)


def test_rows_that_do_not_vary_or_have_one_label_break_nothing():
    weight, bias = logistic(torch.zeros(20, 3), torch.zeros(20, 2, dtype=torch.bool))
    assert weight.abs().max() == 0 and torch.isfinite(bias).all()
    assert logistic(torch.ones(20, 3), torch.zeros(20, 0, dtype=torch.bool))[0].shape == (3, 0)


def type_rows(kinds=(), share=0.25, types=400, each=4):
    """Rows of which axis 0 tells the concept; all rows of a type have it or none."""
    draw = torch.Generator().manual_seed(0)
    token_id = torch.arange(types).repeat_interleave(each)
    label = (torch.rand(types, generator=draw) < share)[token_id]
    x = torch.randn(types * each, 5, generator=draw) * 0.1
    x[:, 0] += label
    part = torch.randint(0, 3, (types,), generator=draw)[token_id]
    return ConceptRows(x, token_id, label[:, None], part, ["concept"], kinds)


def spelled_rows(draw, words=60, spellings=5, share=0.4):
    """Rows of which nothing tells the concept, which a word has in all its spellings; each word has rows of its own."""
    token_id = torch.arange(words * spellings)
    word = token_id // spellings
    x = torch.randn(words, 6, generator=draw)[word] + 0.05 * torch.randn(len(word), 6, generator=draw)
    part = torch.randint(0, 3, (words,), generator=draw)[word]
    label = (torch.rand(words, generator=draw) < share)[word]
    return ConceptRows(x, token_id, label[:, None], part, ["concept"], word=word)


def test_what_words_are_called_positive_by_chance_is_known_though_they_have_several_spellings():
    draw, used = torch.Generator().manual_seed(0), {"words": 0, "spellings": 0}
    for number in range(60):
        rows = spelled_rows(draw)
        used["words"] += fit_probes(rows, 2, 0.6, number)[0].skipped is None
        used["spellings"] += fit_probes(rows._replace(word=None), 2, 0.6, number)[0].skipped is None
    assert used["words"] <= 3 < used["spellings"], used


def test_permuted_labels_are_those_of_whole_words_one_spelling_after_the_other():
    draw = torch.Generator().manual_seed(1)
    token_id = torch.tensor([0, 0, 1, 2, 3, 4, 4, 5, 6, 7])
    word = torch.tensor([0, 0, 0, 1, 1, 2, 2, 3, 3, 4])
    labels = torch.rand(8, 3, generator=draw) < 0.5
    rows = ConceptRows(
        torch.zeros(10, 1), token_id, labels[token_id], torch.full((10,), TEST), ["a", "b", "c"], word=word
    )
    predicted = torch.rand(10, 3, generator=draw) < 0.5
    types = {number: sorted(set(token_id[word == number].tolist())) for number in range(5)}
    scores = []
    generator = torch.Generator().manual_seed(derive("permuted labels", 3))
    for _ in range(PERMUTATIONS):
        order = torch.randperm(5, generator=generator).tolist()
        label = torch.zeros(8, 3, dtype=torch.bool)
        for number, other in enumerate(order):
            for place, token in enumerate(types[number]):
                label[token] = labels[types[other][place % len(types[other])]]
        scores.append([f1(predicted[:, c], label[token_id][:, c]) for c in range(3)])
    wanted = torch.tensor(scores).quantile(CHANCE, dim=0).tolist()
    assert permuted_f1(rows, predicted, [0, 1, 2], 3) == pytest.approx(wanted)
    assert permuted_f1(rows, predicted[:, [1]], [1], 3) == pytest.approx(wanted[1:2])


def test_permuted_labels_of_places_move_between_rows():
    rows = type_rows(("contextual",))
    test = rows.subset == TEST
    predicted = rows.labels[test]
    (by_row,) = permuted_f1(rows, predicted, [0], 0)
    (by_type,) = permuted_f1(rows._replace(kinds=("token",)), predicted, [0], 0)
    assert by_row < by_type < 0.6, "four rows of a type count once where labels are of types"
    assert fit_probes(rows, 8, 0.6)[0].kind == "contextual"


def test_a_probe_that_is_no_better_than_chance_is_not_used_though_it_passes_the_gate():
    rows = type_rows(share=0.9)
    (good,) = fit_probes(rows, 8, 0.6)
    assert good.skipped is None and good.f1 > good.permuted_f1 > 0.6
    noise = rows._replace(x=torch.ones_like(rows.x))
    (bad,) = fit_probes(noise, 8, 0.0)
    assert bad.skipped is not None and bad.f1 <= bad.permuted_f1


def test_concepts_that_cannot_be_scored_are_not_fitted_and_change_no_other():
    rows = type_rows()
    more = torch.cat([torch.zeros_like(rows.labels), rows.labels, rows.labels & (rows.subset == TRAIN)[:, None]], 1)
    rare, good, one_sided = fit_probes(rows._replace(labels=more, names=["rare", "good", "one-sided"]), 0, 0.6)
    assert rare.skipped == "no train word with it" and np.isnan(rare.f1) and rare.weight.norm() == 0
    assert one_sided.skipped == "no validation word with it"
    assert (
        fit_probes(rows._replace(labels=~torch.zeros_like(rows.labels)), 8, 0.6)[0].skipped
        == "no train word without it"
    )
    alone = fit_probes(rows, 8, 0.6)[0]
    assert good.skipped is None and good.f1 == alone.f1
    torch.testing.assert_close(good.weight, alone.weight)
    told = rows.x[rows.subset == TEST] @ good.weight + good.bias > 0
    assert f1(told, rows.labels[rows.subset == TEST, 0]) == good.f1
