"""sae_lm.metrics.dictionaries and genealogy: against dense loops, and on dictionaries whose history is known."""

import itertools
import math

import pytest
import torch

from sae_lm.metrics.codes import Codes, encode_sparse
from sae_lm.metrics.dictionaries import (
    match_rows,
    matched_cosines,
    novelty_threshold,
    seed_stability,
    split_curve,
    stitch,
)
from sae_lm.metrics.genealogy import firing, genealogy


def directions(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def cosines(a, b):
    return torch.nn.functional.cosine_similarity(a.double()[:, None], b.double()[None], dim=2)


def codes(strength):
    """Codes of a dense [tokens, latents] matrix, each token's entries in some order."""
    strength = torch.as_tensor(strength, dtype=torch.float32)
    latent = strength.argsort(1)
    return Codes(strength.gather(1, latent), latent, strength.shape[1])


# --- matching


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
    assert seed_stability(a, b) == pytest.approx(int((pairs >= 0.7).sum()) / 5)
    torch.testing.assert_close(matched_cosines(a, b), pairs, atol=1e-6, rtol=0)


def test_beyond_the_limit_mutual_neighbours_are_matched():
    a = directions(20, 6)
    b = torch.cat([a[:12] * 3 + 0.01, directions(8, 6, 1)])[torch.randperm(20, generator=torch.Generator())]
    whole = cosines(a, b)
    mutual = [whole[i, j] for i, j in enumerate(whole.argmax(1)) if whole[:, j].argmax() == i]
    share = seed_stability(a, b, hungarian=10)
    assert share == sum(cosine >= 0.7 for cosine in mutual) / 20 >= 0.6
    torch.testing.assert_close(matched_cosines(a, b, hungarian=10), torch.stack(mutual), atol=1e-6, rtol=0)
    assert share <= seed_stability(a, b)


# --- stitching


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
    assert torch.equal(result.fires, (z > 0).any(0))
    assert not result.novel[~result.fires].any()


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


# --- genealogy

TOKENS = torch.arange(100)


def fires(*stretches):
    """[100, latents], strength 1 on tokens first <= t < last of each latent's stretches."""
    return torch.stack([sum(((f <= TOKENS) & (last > TOKENS)).float() for f, last in own) for own in stretches], dim=1)


def history():
    """A and B that hold every kind of change once: directions, and where they fire."""
    e = torch.eye(8)
    a = torch.stack([e[0], e[1], e[2], e[3], e[4], e[5]])
    fires_a = fires([(0, 10)], [(10, 30)], [(30, 34)], [(34, 38)], [(40, 60)], [(60, 70)])
    b = torch.stack(
        [
            2 * e[0],  # 0: as it was
            e[1],  # 1: kept, with a hole where 2 fires
            e[6] + 0.2 * e[1],  # 2: has absorbed it there
            e[2] + e[3],  # 3: both in one
            e[4],  # 4: kept
            e[4] + 0.9 * e[7],  # 5: and a piece of it
            e[7],  # 6: new
        ]
    )
    fires_b = fires([(0, 10)], [(10, 25)], [(25, 30)], [(30, 38)], [(40, 60)], [(45, 50)], [(80, 90)])
    return a, b, fires_a, fires_b


def test_the_matrix_of_firing_holds_every_strength_in_its_place(make_sae):
    sae, x = make_sae(unit=False), directions(30, 6)
    matrix = firing(encode_sparse(sae, [x])).toarray()
    torch.testing.assert_close(torch.from_numpy(matrix), (sae.encode(x) * sae.W_dec.norm(dim=1)).double())


def test_every_kind_of_change_is_told_from_the_others():
    a, b, fires_a, fires_b = history()
    found = genealogy(a, b, codes(fires_a), codes(fires_b))
    assert found.counts == {"kept": 3, "split": 1, "merged": 1, "absorbed": 1, "novel": 1, "lost": 1}
    told = {
        (tree["parent"], child["latent"]): (child["kind"], round(child["cos"], 3))
        for tree in found.trees
        for child in tree["children"]
    }
    assert told == {
        (1, 1): ("kept", 1.0),
        (1, 2): ("absorbed", 0.196),
        (4, 4): ("kept", 1.0),
        (4, 5): ("split", 0.743),
    }


def test_a_merged_latent_stands_under_all_its_parents():
    a, b, fires_a, fires_b = history()
    # a piece beside it, of cosine .64, makes each parent's family large enough to be shown
    b, fires_b = torch.cat([b, a[2:4] + 1.2 * torch.eye(8)[6:]]), torch.cat([fires_b, fires_a[:, 2:4]], 1)
    found = genealogy(a, b, codes(fires_a), codes(fires_b))
    under = {tree["parent"] for tree in found.trees for child in tree["children"] if child["kind"] == "merged"}
    assert found.counts["merged"] == 1 and under == {2, 3}


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ("the counterpart fires there too", "novel"),
        ("it fires elsewhere as well", "novel"),
        ("it has nothing of the parent's direction", "novel"),
        ("nothing is changed", "absorbed"),
    ],
)
def test_absorption_needs_the_hole_the_tokens_and_the_direction(change, kind):
    a, b, fires_a, fires_b = history()
    if change == "the counterpart fires there too":
        fires_b[25:30, 1] = 1
    elif change == "it fires elsewhere as well":
        fires_b[80:90, 2] = 1
    elif change == "it has nothing of the parent's direction":
        b[2] = torch.eye(8)[6]
    counts = genealogy(a, b, codes(fires_a), codes(fires_b)).counts
    assert counts["absorbed"] == (kind == "absorbed") and counts["novel"] == 1 + (kind == "novel")


def test_of_two_latents_whose_tokens_it_took_the_nearer_is_the_parent():
    e = torch.eye(6)
    for first, second in ((0.2, 0.5), (0.5, 0.2)):
        a, b = e[:2], torch.stack([e[0], e[1], e[5] + first * e[0] + second * e[1]])
        found = genealogy(
            a, b, codes(fires([(0, 20)], [(10, 30)])), codes(fires([(0, 15)], [(10, 14), (20, 30)], [(15, 20)]))
        )
        assert found.counts["absorbed"] == 1
        assert [tree["parent"] for tree in found.trees] == [int(second > first)]


def test_nothing_lies_inside_a_latent_that_always_fires():
    a, b, fires_a, fires_b = history()
    fires_a[:, 4] = 1
    counts = genealogy(a, b, codes(fires_a), codes(fires_b)).counts
    assert counts["split"] == 0 and counts["kept"] == 3


def test_a_dictionary_is_kept_whole_by_itself_and_latents_that_never_fire_are_left_out(make_sae):
    sae, x = make_sae(d_in=20, d_sae=40), directions(200, 20)
    own = encode_sparse(sae, [x])
    alive = int(own.strength.new_zeros(40).scatter_add_(0, own.latent.flatten(), own.strength.flatten()).gt(0).sum())
    assert genealogy(sae.W_dec, sae.W_dec, own, own).counts["kept"] == alive
    nothing = Codes(torch.zeros(200, 1), torch.zeros(200, 1, dtype=torch.long), 40)
    assert genealogy(sae.W_dec, sae.W_dec, own, nothing).counts["lost"] == alive
    assert genealogy(sae.W_dec, sae.W_dec, nothing, own).counts["novel"] == alive
    far = genealogy(sae.W_dec, -sae.W_dec, own, own, threshold=0.999)  # no counterparts at all
    assert far.counts["novel"] == far.counts["lost"] == alive and far.trees == []


def test_trees_are_the_largest_and_no_larger_than_asked():
    e = torch.eye(30)
    a, fires_a = e[:3], fires([(0, 30)], [(30, 60)], [(60, 90)])
    rows, where = [], []
    for parent, pieces in ((0, 2), (1, 5), (2, 3)):
        rows += [e[parent] + (0.5 + 0.01 * piece) * e[3 + piece] for piece in range(pieces)]
        where += [[(30 * parent + 2 * piece, 30 * parent + 2 * piece + 2)] for piece in range(pieces)]
    found = genealogy(a, torch.stack(rows), codes(fires_a), codes(fires(*where)), most_trees=2, most_children=4)
    assert [(tree["parent"], len(tree["children"])) for tree in found.trees] == [(1, 4), (2, 3)]
    assert [child["kind"] for child in found.trees[0]["children"]] == ["kept", "split", "split", "split"]


def test_a_latent_near_two_others_has_not_merged_them_unless_it_fires_where_they_did():
    a, b, fires_a, fires_b = history()
    fires_b[34:38, 3] = 0
    counts = genealogy(a, b, codes(fires_a), codes(fires_b)).counts
    assert counts["merged"] == 0 and counts["kept"] == 4
