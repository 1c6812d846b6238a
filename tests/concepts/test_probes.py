"""sae_lm.concepts.probes: against scikit-learn, and what their gates let through."""

import numpy as np
import pytest
import torch
from toys import toy_rows

from sae_lm.concepts.probes import PROBE_L2, f1, fit_probes, logistic, permuted
from sae_lm.concepts.rows import TEST, TRAIN, VALIDATION, ConceptRows


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


def test_a_probe_passes_its_gate_only_on_types_it_has_not_seen():
    rows = toy_rows([1, 2])
    (probe,) = fit_probes(rows, min_types=50, gate=0.6)
    assert probe.skipped is None and probe.f1 > 0.99
    assert "token types" in str(fit_probes(rows, min_types=10_000, gate=0.6)[0].skipped)
    shuffled = rows._replace(labels=rows.labels[torch.randperm(1200, generator=torch.Generator().manual_seed(1))])
    assert "below 0.6" in str(fit_probes(shuffled, min_types=50, gate=0.6)[0].skipped)
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


def test_permuted_labels_stay_whole_types_and_as_many_and_fail_the_gate():
    rows = type_rows()
    control = permuted(rows, 0)
    assert int(control.sum()) == int(rows.labels.sum()) and not torch.equal(control, rows.labels)
    assert all(len(control[rows.token_id == token].unique()) == 1 for token in range(400))
    (probe,) = fit_probes(rows, 50, 0.6)
    assert probe.skipped is None and probe.kind == "token" and probe.f1 > 0.95 and probe.permuted_f1 < 0.5


def test_permuted_contextual_labels_move_between_rows():
    rows = type_rows(("contextual",))
    control = permuted(rows, 0)
    assert any(len(control[rows.token_id == token].unique()) == 2 for token in range(400))
    assert int(control.sum()) == int(rows.labels.sum())
    assert fit_probes(rows, 50, 0.6)[0].kind == "contextual"


def test_a_concept_so_frequent_that_chance_passes_the_gate_is_not_used():
    (probe,) = fit_probes(type_rows(share=0.9), 50, 0.6)
    assert probe.f1 > 0.95 and probe.permuted_f1 >= 0.6
    assert probe.skipped is not None and probe.skipped.startswith("probe F1 0.") and "permuted" in probe.skipped


def test_concepts_that_cannot_be_scored_are_not_fitted_and_change_no_other():
    rows = type_rows()
    more = torch.cat([torch.zeros_like(rows.labels), rows.labels, rows.labels & (rows.subset == TRAIN)[:, None]], 1)
    rare, good, one_sided = fit_probes(rows._replace(labels=more, names=["rare", "good", "one-sided"]), 20, 0.6)
    assert rare.skipped == "0 token types, fewer than 20" and np.isnan(rare.f1) and rare.weight.norm() == 0
    assert one_sided.skipped == "no examples on both sides in train, validation and test types"
    alone = fit_probes(rows, 50, 0.6)[0]
    assert good.skipped is None and good.f1 == alone.f1
    torch.testing.assert_close(good.weight, alone.weight)
    told = rows.x[rows.subset == TEST] @ good.weight + good.bias > 0
    assert f1(told, rows.labels[rows.subset == TEST, 0]) == good.f1
