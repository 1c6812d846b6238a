"""sae_lm.metrics: every number against a hand-worked case or a slow plain twin."""

import math

import pytest
import torch
from reference import dense_absorption

import sae_lm
from sae_lm.comparison.evaluate import (
    ConceptSet,
    EvaluationSet,
    candidates,
    concept_figures,
    documents,
    sae_codes,
    sae_splits,
    sampled,
)
from sae_lm.concepts.probes import f1, fit_probes, logistic
from sae_lm.concepts.rows import TEST, TRAIN, VALIDATION, ConceptRows, sample_rows
from sae_lm.concepts.token_labels import LABELS
from sae_lm.metrics.absorption import ConceptAtSae, absorption, fraction_scores, full_scores, projections
from sae_lm.metrics.codes import Codes, encode_sparse
from sae_lm.metrics.geometry import geometry
from sae_lm.metrics.language_model import CrossEntropy, HeldOutText, cross_entropies
from sae_lm.metrics.reconstruction import quality
from sae_lm.metrics.splitting import NO_LOGIT, l1_probe, nested_regressions, split_counts
from sae_lm.sae.model import SAE, SaeConfig


def identity_sae(d, bias=None, **changes):
    """A standard SAE whose latents are the d axes."""
    weights = {"W_enc": torch.eye(d), "b_enc": torch.zeros(d), "W_dec": torch.eye(d), "b_dec": torch.zeros(d)}
    return SAE(SaeConfig(architecture="standard", d_in=d, d_sae=d), {**weights, **changes})


# --- quality


def test_quality_of_a_hand_worked_case():
    sae = identity_sae(2)  # relu: the negative part of x is lost
    x = torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.0, 0.0], [4.0, 3.0]])
    measured, fired, per_row = quality(sae, [x[:3], x[3:]])
    # errors: only -1 -> squared error 1 in all; sum ||x||^2 = 5 + 10 + 0 + 25 = 40; mean = (2, 1), 40/4 - 5 = 5
    assert measured.rows == 4
    assert measured.l0 == pytest.approx((2 + 1 + 0 + 2) / 4)
    assert measured.nmse == pytest.approx(1 / 40)
    assert measured.fvu == pytest.approx((1 / 4) / 5)
    assert fired.tolist() == [True, True] and measured.dead == 0
    assert measured.dense == 1
    assert measured.mse == pytest.approx(1 / 4)
    assert per_row.squared_error.tolist() == [0, 1, 0, 0] and per_row.firings.tolist() == [2, 1, 0, 2]
    assert measured.bias == pytest.approx(39 / 39)  # x_hat = x but for the lost -1: both sums are 5 + 9 + 0 + 25
    assert quality(sae, [x * 0])[0].l0 == 0


def test_dense_latents_are_counted_above_one_and_ten_percent_and_by_their_share_of_firings():
    x = torch.zeros(200, 5)
    for latent, firings in enumerate((100, 20, 3, 2)):  # 50%, 10%, 1.5%, 1% of the rows; the last never
        x[:firings, latent] = 1
    measured, fired, _ = quality(identity_sae(5), x.split(64))
    assert (measured.dense, measured.dense_1, measured.dead) == pytest.approx((1 / 5, 3 / 5, 1 / 5))
    assert measured.dense_firings == pytest.approx(100 / 125)
    assert measured.dense_1_firings == pytest.approx(123 / 125)
    assert fired.tolist() == [True] * 4 + [False]


def test_shrinkage_shows_in_norm_ratio_and_bias():
    x = torch.rand(50, 3, generator=torch.Generator().manual_seed(0)) + 0.1
    measured = quality(identity_sae(3, W_dec=torch.eye(3) * 0.8), [x])[0]
    assert measured.l2_ratio == pytest.approx(0.8) and measured.bias == pytest.approx(0.8)


def test_fvu_is_the_same_however_rows_are_batched_and_equals_float64_by_hand(make_sae):
    sae = make_sae(unit=False)
    x = torch.randn(100, 6, generator=torch.Generator().manual_seed(0)) + 3
    error = (x - sae(x)).double()
    expected = error.square().sum() / (x.double() - x.double().mean(0)).square().sum()
    for size in (7, 100):
        assert quality(sae, x.split(size))[0].fvu == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize(("constant", "rows"), [(0.3, 1000), (0.7, 100), (1 / 3, 100), (12.34, 999), (0.0, 10)])
def test_rows_that_are_all_alike_have_no_variance_and_no_fvu(make_sae, constant, rows):
    # but for 0, rounding leaves these a variance of 1e-16 of their square
    assert math.isnan(quality(make_sae(), [torch.full((rows, 6), constant)])[0].fvu)


def test_predicting_the_mean_has_an_fvu_of_one():
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) + 5
    sae = identity_sae(3, W_dec=torch.zeros(3, 3), b_dec=x.mean(0))
    assert quality(sae, [x])[0].fvu == pytest.approx(1.0, abs=1e-5)


def test_cross_entropies_equal_plain_runs_with_special_tokens_left_out(tiny_model, make_sae):
    model = sae_lm.load_model(str(tiny_model))
    sae = make_sae(d_in=16, d_sae=32)
    blocks = torch.randint(0, 300, (5, 12), generator=torch.Generator().manual_seed(0))
    blocks[:, 0] = 0
    special = blocks == 0
    mean = torch.linspace(-1, 1, 16)
    result = cross_entropies(model, HeldOutText(blocks, special, "blocks.1.hook_out", mean), {"a": sae}, batch_size=2)[
        "a"
    ]

    def plain(function):
        hook = ("blocks.1.hook_out", lambda tensor, hook: function(tensor))
        logits = model.run_with_hooks(blocks, fwd_hooks=[hook])
        counted = [(c, p) for c in range(5) for p in range(11) if not special[c, p]]
        return torch.stack([logits[c, p].double().log_softmax(-1) for c, p in counted])

    targets = torch.tensor([int(blocks[c, p + 1]) for c in range(5) for p in range(11) if not special[c, p]])

    def loss(logs):
        return float(-logs[torch.arange(len(targets)), targets].mean())

    clean = plain(lambda x: x)
    assert result.tokens == len(clean) == int((~special[:, :-1]).sum())
    assert result.clean == pytest.approx(loss(clean), abs=1e-5)
    kept = {
        "spliced": plain(lambda x: torch.where(special[..., None], x, sae(x))),
        "ablated": plain(torch.zeros_like),
        "mean_ablated": plain(lambda x: torch.where(special[..., None], x, mean)),
    }
    for name, logs in kept.items():
        assert getattr(result, name) == pytest.approx(loss(logs), abs=1e-5)
    for name in ("spliced", "ablated"):
        divergence = float((clean.exp() * (clean - kept[name])).sum(1).mean())
        assert getattr(result, f"kl_{name}") == pytest.approx(divergence, abs=1e-5) and divergence > 0


@pytest.mark.parametrize(
    "hook", ["blocks.0.hook_in", "blocks.1.hook_in", "blocks.1.attn.hook_out", "blocks.2.hook_out"]
)
def test_passes_that_start_at_the_hook_come_to_what_whole_passes_do(tiny_model, make_sae, hook):
    model = sae_lm.load_model(str(tiny_model))
    saes = {"a": make_sae(d_in=16, d_sae=32), "b": make_sae("standard", d_in=16, d_sae=32, seed=1)}
    blocks = torch.randint(1, 300, (5, 12), generator=torch.Generator().manual_seed(0))
    runs = [0]
    model.blocks[0].attn.register_forward_hook(lambda *_: runs.append(runs.pop() + 1))
    short = cross_entropies(model, HeldOutText(blocks, blocks == 0, hook), saes, batch_size=2)
    if hook != "blocks.0.hook_in":
        assert runs == [3]  # once per batch, however many SAEs
    left, runs[0] = [], 0
    model.blocks[0].attn.register_forward_hook(lambda *_: left.append(True))
    model.blocks[2].register_forward_pre_hook(lambda *_: left.pop() and None)  # nothing left: IndexError
    whole = cross_entropies(model, HeldOutText(blocks, blocks == 0, hook), saes, batch_size=2)
    # as it is, with zeros and with each SAE; where no block is left out, the check is a pass as well
    assert runs == [3 * 4 + (hook == "blocks.0.hook_in")]
    for name in saes:
        assert list(short[name][:6]) == pytest.approx(list(whole[name][:6]), abs=1e-6)
    assert not any("forward" in vars(block.original_component) for block in model.blocks)


def test_saes_that_do_not_fit_in_memory_together_share_the_models_passes_too(
    tiny_model, make_sae, tmp_path, monkeypatch
):
    from sae_lm.comparison import runs as runs_module
    from sae_lm.comparison.runs import Loaded, Run
    from sae_lm.sae.formats.saelens import save

    model = sae_lm.load_model(str(tiny_model))
    saes = {("a", seed): make_sae(d_in=16, d_sae=32, seed=seed) for seed in range(3)}
    for (arm, seed), sae in saes.items():
        save(sae, tmp_path / f"{arm}{seed}")
    of = {(arm, seed): Run(arm, seed, tmp_path / f"{arm}{seed}", {}, "topk") for arm, seed in saes}
    monkeypatch.setattr(runs_module, "KEPT_BYTES", 0)
    loaded = Loaded(of, "cpu")
    blocks = torch.randint(1, 300, (5, 12), generator=torch.Generator().manual_seed(0))
    runs, done = [0], []
    model.blocks[0].attn.register_forward_hook(lambda *_: runs.append(runs.pop() + 1))
    hook = "blocks.1.hook_out"
    found = cross_entropies(model, HeldOutText(blocks, blocks == 0, hook), loaded, batch_size=2, tell=done.append)
    assert runs == [3] and sum(done) == 15 and loaded.kept is None
    expected = cross_entropies(model, HeldOutText(blocks, blocks == 0, hook), saes, batch_size=2)
    assert list(found) == list(expected)
    for key in saes:
        assert list(found[key][:6]) == pytest.approx(list(expected[key][:6]), abs=1e-6)


def test_a_model_whose_blocks_hand_on_more_than_their_output_runs_whole(tiny_model, make_sae):
    model = sae_lm.load_model(str(tiny_model))
    saes = {"a": make_sae(d_in=16, d_sae=32)}
    blocks = torch.randint(1, 300, (4, 12), generator=torch.Generator().manual_seed(0))
    expected = cross_entropies(model, HeldOutText(blocks, blocks == 0, "blocks.1.hook_out"), saes)["a"]
    left = []
    model.blocks[0].attn.register_forward_hook(lambda *_: left.append(True))
    fails = model.blocks[2].register_forward_pre_hook(lambda *_: left.pop() and None)  # nothing left: IndexError
    found = cross_entropies(model, HeldOutText(blocks, blocks == 0, "blocks.1.hook_out"), saes)["a"]
    assert list(found[:6]) == pytest.approx(list(expected[:6]), abs=1e-6)
    fails.remove()

    def off_unless_left(module, inputs, output):
        return output if left and left.pop() else output * 3

    left.clear()
    model.blocks[2].attn.register_forward_hook(
        lambda module, inputs, output: (off_unless_left(module, inputs, output[0]), *output[1:])
    )
    found = cross_entropies(model, HeldOutText(blocks, blocks == 0, "blocks.1.hook_out"), saes)["a"]
    assert list(found[:6]) == pytest.approx(list(expected[:6]), abs=1e-6)


def test_recovered_is_one_for_a_lossless_splice_and_zero_for_one_as_bad_as_zeros():
    assert CrossEntropy(10, clean=3.0, spliced=3.0, ablated=9.0).recovered == 1
    assert CrossEntropy(10, clean=3.0, spliced=9.0, ablated=9.0).recovered == 0
    assert CrossEntropy(10, clean=3.0, spliced=4.5, ablated=9.0).recovered == 0.75
    assert CrossEntropy(10, 3.0, 4.5, 9.0, kl_spliced=1.0, kl_ablated=4.0).kl_recovered == 0.75
    assert CrossEntropy(10, 3.0, 4.5, 9.0, mean_ablated=6.0).recovered_from_mean == 0.5
    free = CrossEntropy(10, 3.0, 4.5, 3.0, kl_spliced=0.1, kl_ablated=0.0, mean_ablated=3.0)
    assert all(map(math.isnan, (free.recovered, free.kl_recovered, free.recovered_from_mean)))


# --- geometry


def test_nearest_cosines_equal_a_loop_and_leave_out_dead_latents():
    rows = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    unit = rows / rows.norm(dim=1, keepdim=True)
    expected = torch.tensor([max(float(unit[i] @ unit[j]) for j in range(30) if j != i) for i in range(30)])
    torch.testing.assert_close(geometry(rows, torch.ones(30, dtype=torch.bool), 0)[1], expected)
    twins = torch.cat([rows, rows[:1]])  # a dead copy of latent 0
    alive = torch.ones(31, dtype=torch.bool)
    alive[30] = False
    shape = geometry(twins, alive, 0)[0]
    assert shape.nearest_cos == pytest.approx(float(expected.mean()), abs=1e-5)
    assert shape.nearest_cos_all > shape.nearest_cos and shape.near_duplicates == pytest.approx(0.2)


def test_the_null_of_random_directions_is_the_published_one():
    # measured: m = 1024 random directions in d = 64 have mean nearest cosine .394
    shape = geometry(torch.eye(64).repeat(16, 1) + 1e-3, torch.ones(1024, dtype=torch.bool), 0)[0]
    assert shape.nearest_cos_null == pytest.approx(0.394, abs=0.005)


def test_a_decoder_without_alive_latents_gives_no_number_instead_of_a_crash():
    assert math.isnan(geometry(torch.eye(4), torch.zeros(4, dtype=torch.bool), 0)[0].nearest_cos)


# --- codes and concepts


def test_sparse_codes_hold_exactly_what_fires_scaled_by_decoder_norms(make_sae):
    sae = make_sae("standard", unit=False)
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    codes = encode_sparse(sae, x.split(9))
    dense = sae.encode(x) * sae.W_dec.norm(dim=1)
    torch.testing.assert_close(codes.columns(list(range(10))), dense)


def test_labels_read_the_tokens_text():
    texts = (" The", "the", " NASA", "12", "),", " running", " s", "_x")
    told = {name: [text for text in texts if has(text)] for name, has in LABELS.items()}
    assert told["leading space"] == [" The", " NASA", " running", " s"]
    assert told["capitalised"] == [" The"]
    assert told["all capitals"] == [" NASA"]
    assert told["digit"] == ["12"]
    assert told["punctuation"] == ["),"]
    assert told["ends in -ing"] == [" running"]
    assert told["ends in -s"] == []
    assert told["first letter t"] == [" The", "the"]


def test_the_sample_holds_at_most_so_many_rows_per_type_each_labelled_by_its_token(tiny_store):
    store = sae_lm.open_store(tiny_store)
    rows = sample_rows(store, "blocks.0.hook_out", 600, per_type=3, seed=0)
    types, counts = rows.token_id.unique(return_counts=True)
    _, all_counts = store.tokens(600)["token_id"].unique(return_counts=True)
    assert torch.equal(counts, all_counts.clamp_max(3)) and len(types) == len(all_counts)
    whole, tokens = store.rows("blocks.0.hook_out", 600), store.tokens(600)["token_id"]
    for index in (0, len(rows.x) // 2, len(rows.x) - 1):
        where = (whole == rows.x[index]).all(1).nonzero()[0]
        assert tokens[where] == rows.token_id[index]
    text = [store.vocabulary[token] for token in rows.token_id]
    column = rows.names.index("digit")
    assert rows.labels[:, column].tolist() == [any(c.isdigit() for c in t) for t in text]
    for token in types:  # a type is on one side of the split only
        assert len(rows.part[rows.token_id == token].unique()) == 1


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


def toy_rows(carriers, n=1200, d=6, seed=0):
    """Rows whose concept 0 holds where any of the carrier axes is on; types are all different."""
    draw = torch.Generator().manual_seed(seed)
    which = torch.randint(0, d, (n,), generator=draw)
    x = torch.nn.functional.one_hot(which, d).float() + 0.01 * torch.randn(n, d, generator=draw)
    labels = torch.isin(which, torch.tensor(carriers))[:, None]
    part = torch.randint(0, 3, (n,), generator=draw)
    return ConceptRows(x, torch.arange(n), labels, part, ["concept"])


def test_a_concept_carried_by_one_latent_counts_one_and_by_three_counts_three():
    for carriers in ([2], [0, 2, 5]):
        rows = toy_rows(carriers)
        codes = encode_sparse(identity_sae(6, b_enc=torch.full((6,), -0.1)), [rows.x])
        split = split_counts(codes, rows, [0], max_k=6, gain=0.03, seed=0)[0]
        assert sorted(split.latents) == carriers and split.test_f1_by_k[len(carriers) - 1] > 0.99


def test_main_latents_are_told_with_the_number_that_all_saes_get_and_not_with_their_own():
    rows, sae = toy_rows([0, 2, 5]), identity_sae(6, b_enc=torch.full((6,), -0.1))
    (probe,) = fit_probes(rows, min_types=50, gate=0.6)
    of_rows = documents(torch.arange(len(rows.x)), 0)
    found = candidates(0, rows, [(0, probe)], of_rows)
    evaluation_set = EvaluationSet(
        lambda size: iter([]), of_rows, sampled(lambda size: iter([rows.x]), of_rows), [ConceptSet(rows, [0])], found, 0
    )
    codes = sae_codes(sae, evaluation_set)
    splits = sae_splits(codes, evaluation_set, 6, 0.03)
    for common in (1, 2, 3):
        (figures,), _ = concept_figures(sae, codes, splits, evaluation_set, [common])
        predicted = codes[0].columns(splits[0].ranking[:common]).gt(0).any(1)
        test = rows.part == TEST
        assert figures["splits"] == 3 and figures["main_f1"] == pytest.approx(f1(predicted[test], rows.labels[test, 0]))


def test_an_sae_that_never_fires_gets_a_splitting_count_of_one_and_no_skill():
    rows = toy_rows([1])
    codes = encode_sparse(identity_sae(6, b_enc=torch.full((6,), -100.0)), [rows.x])
    assert torch.isfinite(l1_probe(codes, rows.labels, 0)).all()
    split = split_counts(codes, rows, [0], max_k=3, gain=0.03, seed=0)[0]
    assert len(split.latents) == 1 and split.test_f1_by_k == [0, 0, 0]


def test_latents_that_never_fire_say_no_whatever_rounding_leaves_of_their_bias():
    rounded = 0
    for positive in range(20, 300, 7):
        weight, bias = nested_regressions(torch.zeros(431, 2), torch.arange(431) < positive)
        rounded += int(bias[0] > 0)
        assert (weight == 0).all() and (bias <= NO_LOGIT).all()
    assert rounded, "else nothing is tested here"


def test_a_probe_passes_its_gate_only_on_types_it_has_not_seen():
    rows = toy_rows([1, 2])
    (probe,) = fit_probes(rows, min_types=50, gate=0.6)
    assert probe.skipped is None and probe.f1 > 0.99
    assert "token types" in str(fit_probes(rows, min_types=10_000, gate=0.6)[0].skipped)
    shuffled = rows._replace(labels=rows.labels[torch.randperm(1200, generator=torch.Generator().manual_seed(1))])
    assert "below 0.6" in str(fit_probes(shuffled, min_types=50, gate=0.6)[0].skipped)
    assert {TRAIN, VALIDATION, TEST} == set(rows.part.tolist())


# --- absorption


@pytest.mark.parametrize("unit", [True, False])
def test_absorption_scores_equal_the_plain_definition_row_by_row(unit):
    draw = torch.Generator().manual_seed(0)
    n, m, d = 300, 12, 8
    W_dec = torch.randn(m, d, generator=draw)
    W_dec = W_dec / W_dec.norm(dim=1, keepdim=True) if unit else W_dec
    a = torch.randn(n, m, generator=draw).relu() * (torch.rand(n, m, generator=draw) < 0.4)
    x = a @ W_dec + 0.3 * torch.randn(n, d, generator=draw)
    w = W_dec[0] + 0.5 * W_dec[1]
    main = [0, 3]
    strength, latent = (a * W_dec.norm(dim=1)).topk(m, dim=1)
    parts = projections(ConceptAtSae(Codes(strength, latent, m), x, torch.arange(n), W_dec, w), main)
    full, fraction = full_scores(parts), fraction_scores(parts)
    expected = dense_absorption(a, x, W_dec, w, main)
    assert full.tolist() == [full for full, _ in expected]
    torch.testing.assert_close(fraction, torch.tensor([f for _, f in expected]), atol=1e-5, rtol=1e-5)
    assert 0 < int(full.sum()) < n and 0 < int((fraction > 0).sum()) < n


def test_a_child_latent_that_swallows_its_parent_is_found():
    # latent 0: the parent's own direction; latent 1: child + parent, absorbing
    W_dec = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    W_dec = W_dec / W_dec.norm(dim=1, keepdim=True)
    x = torch.tensor([[1.0, 0.0], [1.0, 1.0]])  # parent alone, parent with child
    strength = torch.tensor([[1.0], [2**0.5]])
    latent = torch.tensor([[0], [1]])
    probe = torch.tensor([1.0, 0.0])
    token_id = torch.tensor([4, 4])
    result = absorption(ConceptAtSae(Codes(strength, latent, 2), x, token_id, W_dec, probe, torch.zeros(2)), main=[0])
    assert result is not None
    assert (result.candidates, result.types) == (2, 1)
    assert result.full == result.fraction == result.hole_rate == 0.5
    assert result.recovered == pytest.approx(1.0)  # the absorber carries the whole projection on the hole


def test_token_types_weigh_the_same_however_often_they_occur():
    W_dec = torch.eye(2)
    x = torch.tensor([[1.0, 0.0]] * 4)
    strength = torch.tensor([[1.0], [1.0], [1.0], [0.0]])  # the one row of the second type is a hole
    codes = Codes(strength, torch.zeros(4, 1, dtype=torch.long), 2)
    concept = ConceptAtSae(codes, x, torch.tensor([7, 7, 7, 8]), W_dec, torch.tensor([1.0, 0.0]), torch.zeros(2))
    result = absorption(concept, [0])
    assert result is not None and result.hole_rate == 0.5
