"""sae_lm.metrics.dictionaries: against dense loops."""

import itertools
import math

import pytest
import torch

from sae_lm.metrics.dictionaries import (
    match_one_to_one,
    match_rows,
    novelty_threshold,
    split_curve,
    stability,
    stable_signal,
    stitch,
)


def directions(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def cosines(a, b):
    return torch.nn.functional.cosine_similarity(a.double()[:, None], b.double()[None], dim=2)


@pytest.mark.parametrize("cells", [1, 200, 1 << 20])
def test_nearest_rows_of_two_dictionaries_equal_the_whole_matrix_for_any_norms_and_tiles(cells):
    a, b = directions(30, 5) * torch.linspace(0.01, 9, 30)[:, None], directions(41, 5, 1)
    whole, found = cosines(a, b), match_rows(a, b, cells)
    torch.testing.assert_close(found.of_a.cosine.double(), whole.amax(1), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.of_b.cosine.double(), whole.amax(0), atol=1e-6, rtol=0)
    assert torch.equal(found.of_a.row, whole.argmax(1)) and torch.equal(found.of_b.row, whole.argmax(0))


def test_where_there_are_no_rows_nothing_is_near():
    some, none = directions(4, 5), directions(0, 5)
    for a, b in ((some, none), (none, some), (none, none)):
        found = match_rows(a, b)
        assert (len(found.of_a.cosine), len(found.of_b.row)) == (len(a), len(b))
        assert all((near.cosine == -1).all() and (near.row == -1).all() for near in found)
        assert all(math.isnan(of.split_ratio) for of in split_curve(found))
    assert all(of.novel == 1 and math.isnan(of.lost) for of in split_curve(match_rows(none, some)))


@pytest.mark.parametrize("hungarian", [0, 4096])
def test_a_dictionary_without_rows_has_no_pairs_however_wide_the_other(hungarian):
    some, none = directions(4, 5), directions(0, 5)
    for a, b in ((some, none), (none, some), (none, none)):
        found = match_one_to_one(a, b, hungarian)
        assert [len(part) for part in found] == [0, 0, 0] and found.cosine.dtype == torch.float64
        assert stability(found, (len(a), len(b))) == 0
    assert stable_signal(match_one_to_one(some, none, hungarian), torch.ones(4)) == 0


def test_children_are_counted_by_hand():
    a = torch.eye(3)
    b = torch.tensor([[1.0, 0, 0], [3.0, 1, 0], [0, 1.0, 1.2], [-1.0, -1, -1]])
    # cosines to the nearest of A: 1, .949, .768 (to the third), -.577
    low, high = split_curve(match_rows(a, b), (0.7, 0.9))
    assert low.split_ratio == 3 / 2 and low.novel == 1 / 4 and low.lost == pytest.approx(1 / 3)
    assert high.split_ratio == 2 and high.novel == 2 / 4 and high.lost == pytest.approx(2 / 3)
    assert math.isnan(split_curve(match_rows(a, -b[:1]), (0.7,))[0].split_ratio)


def test_the_best_matching_equals_a_search_through_all_of_them():
    a, b = directions(5, 3), directions(6, 3, 1)
    whole = cosines(a, b)
    best = max(itertools.permutations(range(6), 5), key=lambda order: sum(whole[i, j] for i, j in enumerate(order)))
    pairs = torch.stack([whole[i, j] for i, j in enumerate(best)])
    found = match_one_to_one(a, b)
    assert stability(found, (5, 6)) == pytest.approx(int((pairs >= 0.7).sum()) / 5)
    torch.testing.assert_close(found.cosine, pairs, atol=1e-6, rtol=0)


def test_beyond_the_limit_mutual_neighbours_are_matched():
    a = directions(20, 6)
    b = torch.cat([a[:12] * 3 + 0.01, directions(8, 6, 1)])[torch.randperm(20, generator=torch.Generator())]
    whole = cosines(a, b)
    mutual = [whole[i, j] for i, j in enumerate(whole.argmax(1)) if whole[:, j].argmax() == i]
    found = match_one_to_one(a, b, hungarian=10)
    share = stability(found, (20, 20))
    assert share == sum(cosine >= 0.7 for cosine in mutual) / 20 >= 0.6
    torch.testing.assert_close(found.cosine, torch.stack(mutual), atol=1e-6, rtol=0)
    assert share <= stability(match_one_to_one(a, b), (20, 20))


@pytest.mark.parametrize("hungarian", [4096, 0])
def test_the_signal_of_shared_latents_counts_each_by_what_it_contributes(hungarian):
    a, b = torch.eye(4), torch.eye(4)[[3, 1]]
    matched = match_one_to_one(a, b, hungarian)
    assert stable_signal(matched, torch.tensor([5.0, 1.0, 3.0, 1.0])) == pytest.approx(2 / 10)
    assert math.isnan(stable_signal(matched, torch.zeros(4)))


@pytest.mark.parametrize("architecture", ["topk", "standard", "jumprelu"])
def test_stitching_equals_inserting_latents_one_by_one(make_sae, architecture):
    a, b = make_sae(architecture, unit=False), make_sae(architecture, d_sae=14, unit=False, seed=1)
    x = directions(50, 6)
    result = stitch(a, b, x.split(13))
    z, before = b.encode(x).double(), (x - a(x)).double()
    for j in range(14):
        after = before - z[:, j, None] * b.W_dec[j]
        assert float(result.change[j]) == pytest.approx(
            float((after.square().sum(1) - before.square().sum(1)).mean()), abs=1e-4
        )
    silent = ~(z > 0).any(0)
    assert not result.change[silent].any() and not result.novel[silent].any()


def test_a_latent_that_a_lacks_is_novel_and_one_it_has_is_not(make_sae):
    b = make_sae("standard", d_in=4, d_sae=4)
    for name, value in (("W_enc", torch.eye(4)), ("W_dec", torch.eye(4)), ("b_enc", 0), ("b_dec", 0)):
        getattr(b, name).copy_(torch.as_tensor(value))
    a = make_sae("standard", d_in=4, d_sae=4)
    a.load_state_dict(b.state_dict())
    a.W_dec[3] = 0  # A does not know the last direction
    assert stitch(a, b, [directions(100, 4)]).novel.tolist() == [False, False, False, True]


def test_the_threshold_for_novelty_separates_best_among_all_cuts():
    cosine = torch.rand(60, generator=torch.Generator().manual_seed(0))
    novel = cosine + 0.4 * directions(60, 1)[:, 0] < 0.5
    found = novelty_threshold(cosine, novel)
    assert found is not None

    def rates(cut):
        called = cosine < cut
        return float(called[novel].double().mean()), float(called[~novel].double().mean())

    cuts = torch.cat([cosine, torch.tensor([2.0])])
    assert rates(found.threshold) == pytest.approx((found.true_positive, found.false_positive))
    best = max(rates(cut)[0] - rates(cut)[1] for cut in cuts)
    assert found.true_positive - found.false_positive == pytest.approx(best)
    wins = (cosine[novel][:, None] < cosine[~novel][None]).double().mean()
    assert found.auc == pytest.approx(float(wins))


def test_without_both_kinds_there_is_no_threshold():
    assert novelty_threshold(torch.rand(5), torch.ones(5, dtype=torch.bool)) is None
    assert novelty_threshold(torch.rand(0), torch.ones(0, dtype=torch.bool)) is None
