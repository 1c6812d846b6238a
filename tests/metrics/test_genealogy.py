"""sae_lm.metrics.genealogy: on dictionaries whose history is known."""

import pytest
import torch

from sae_lm.metrics.codes import encode_sparse, firing_codes
from sae_lm.metrics.genealogy import firing, genealogy


def directions(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def codes(strength):
    """Codes of a dense [tokens, latents] matrix, each token's entries in some order."""
    strength = torch.as_tensor(strength, dtype=torch.float32)
    latent = strength.argsort(1)
    return firing_codes(strength.gather(1, latent), latent, strength.shape[1])


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
    alive = int(own.strength.new_zeros(40).scatter_add_(0, own.latent.long(), own.strength).gt(0).sum())
    assert genealogy(sae.W_dec, sae.W_dec, own, own).counts["kept"] == alive
    nothing = firing_codes(torch.zeros(200, 1), torch.zeros(200, 1, dtype=torch.long), 40)
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
