"""sae_lm.synthetic.worlds: what is drawn, and how often."""

import math

import pytest
import torch
from toys import TREE

from sae_lm.synthetic.worlds import Trees, World, all_inputs, directions, forest, some_inputs

STRAYS = World(d_in=6, parent=(None, 0, None), probability=(0.25, 0.2, 0.05), stray=(0, 0.01, 0))


def test_a_forest_lists_its_trees_root_first_and_then_what_stands_alone():
    assert TREE.parent == (None, 0, 0, None, 3, 3, None, None)
    assert TREE.probability == (0.4, 0.3, 0.3, 0.4, 0.3, 0.3, 0.2, 0.2)
    assert TREE.pairs == [(0, 1), (0, 2), (3, 4), (3, 5)]


def test_listed_inputs_have_the_probabilities_of_the_world():
    every = all_inputs(STRAYS, seeds=2)
    assert every.sizes.shape == (2, 8, 3) and float(every.weight.sum()) == pytest.approx(1)
    share = {tuple(map(int, row)): float(p) for row, p in zip(every.sizes[0], every.weight, strict=True)}
    assert share[1, 1, 0] == pytest.approx(0.25 * 0.2 * 0.95)
    assert share[1, 0, 1] == pytest.approx(0.25 * 0.8 * 0.05)
    assert share[0, 1, 0] == pytest.approx(0.75 * 0.01 * 0.95)


def test_siblings_are_never_on_together_and_children_only_with_their_parent():
    every = all_inputs(TREE, seeds=1).sizes[0]
    assert len(every) == 4 * 4 * 4  # a tree is off, or on with either child or none
    drawn = some_inputs(TREE, 2000, [torch.Generator().manual_seed(0)]).sizes[0]
    for sizes in (every, drawn):
        assert not (sizes[:, 1] * sizes[:, 2]).any() and not (sizes[:, 4] * sizes[:, 5]).any()
        for parent, child in TREE.pairs:
            assert (sizes[sizes[:, child] > 0][:, parent] > 0).all()


@pytest.mark.parametrize("world", [TREE, STRAYS], ids=["exclusive children", "strays"])
def test_drawn_inputs_occur_as_often_as_listed_ones_say(world):
    drawn = some_inputs(world, 40_000, [torch.Generator().manual_seed(3)]).sizes[0]
    every = all_inputs(world, 1)
    patterns = 2.0 ** torch.arange(world.size)
    for code, expected in zip(every.sizes[0] @ patterns, every.weight, strict=True):
        share = float((drawn @ patterns == code).double().mean())
        assert share == pytest.approx(float(expected), abs=5 * math.sqrt(float(expected) / 40_000) + 1e-4)


def test_sizes_spread_about_one_only_where_a_feature_is_on():
    sizes = some_inputs(TREE._replace(spread=(0.1,) * 8), 20_000, [torch.Generator().manual_seed(1)]).sizes[0]
    on = sizes[sizes > 0]
    assert float(on.mean()) == pytest.approx(1, abs=0.01) and float(on.std()) == pytest.approx(0.1, abs=0.01)
    assert float((sizes[:, 0] > 0).double().mean()) == pytest.approx(0.4, abs=0.02)


def test_directions_are_orthonormal_unless_superposed_and_differ_by_seed():
    rows = directions(TREE, 0)
    torch.testing.assert_close(rows @ rows.T, torch.eye(8), atol=1e-5, rtol=0)
    crowded = directions(forest(4, Trees(3, 0.1, 2, 0.1), superposed=True), 0)
    assert crowded.shape == (9, 4)
    torch.testing.assert_close(crowded.norm(dim=1), torch.ones(9))
    assert not torch.equal(rows, directions(TREE, 1)) and torch.equal(rows, directions(TREE, 0))
