"""sae_lm.metrics.geometry: every number against loops over pairs, and its null against drawn directions."""

import math

import numpy as np
import pytest
import torch

from sae_lm.metrics.geometry import (
    EDGES,
    compare_pairs,
    geometry,
    mean_sq_cos,
    nearest_shares,
    null_nearest_cos,
    null_nearest_shares,
)


def directions(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def nearest_cosines(rows):
    """Of each row to its nearest other."""
    return geometry(rows, torch.ones(len(rows), dtype=torch.bool), 0)[1]


def every_cosine(rows):
    """[n, n] in float64, the diagonal NaN."""
    unit = rows.double() / rows.double().norm(dim=1, keepdim=True)
    cosines = unit @ unit.T
    return cosines.fill_diagonal_(float("nan"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_figures_equal_those_of_the_whole_matrix_of_cosines_for_rows_of_any_norm(dtype):
    rows = directions(40, 6) * torch.linspace(0.1, 5, 40)[:, None]
    rows[7] = rows[3] * 2 + 0.01  # a near copy
    alive = torch.rand(40, generator=torch.Generator().manual_seed(1)) < 0.7
    shape = geometry(rows.to(dtype), alive, 0)[0]
    for suffix, cosines in (("", every_cosine(rows[alive])), ("_all", every_cosine(rows))):
        nearest = cosines.nan_to_num(-2).amax(1)
        assert getattr(shape, f"nearest_cos{suffix}") == pytest.approx(float(nearest.mean()), abs=1e-6)
    cosines = every_cosine(rows[alive])
    assert shape.mean_abs_cos == pytest.approx(float(cosines.abs().nanmean()), abs=1e-7)
    assert shape.mean_sq_cos == pytest.approx(float(cosines.square().nanmean()), abs=1e-7)
    nearest = cosines.nan_to_num(-2).amax(1)
    for name, least in (("near_half", 0.5), ("near_duplicates", 0.9)):
        assert getattr(shape, name) == pytest.approx(float((nearest > least).double().mean()))


@pytest.mark.parametrize("cells", [1, 90, 1 << 20])
def test_pairs_are_the_same_however_they_are_cut_into_tiles(cells):
    rows = directions(31, 5).double()
    unit = rows / rows.norm(dim=1, keepdim=True)
    pairs = compare_pairs(unit, 17, cells)
    inner, whole = every_cosine(rows[:17]), every_cosine(rows)
    torch.testing.assert_close(pairs.nearest, inner.nan_to_num(-2).amax(1))
    torch.testing.assert_close(pairs.nearest_all, whole.nan_to_num(-2).amax(1))
    assert pairs.abs_cos == pytest.approx(float(inner.abs().nanmean()))


def test_dead_latents_do_not_change_the_figures_of_the_living():
    rows = directions(30, 8)
    alive = torch.arange(60) < 30
    alone = geometry(rows, alive[:30], 0)[0]
    beside = geometry(torch.cat([rows, rows]), alive, 0)[0]  # a dead copy of every latent
    for name in ("nearest_cos", "mean_abs_cos", "mean_sq_cos", "near_duplicates", "nearest_cos_spread"):
        assert getattr(beside, name) == pytest.approx(getattr(alone, name), abs=1e-6)
    assert beside.nearest_cos_all == pytest.approx(1, abs=1e-6)


def test_a_zero_row_is_orthogonal_to_all():
    rows = torch.tensor([[1.0, 0.0], [0.0, 0.0], [-1.0, 0.0]])
    assert nearest_cosines(rows).tolist() == [0, 0, 0]
    assert mean_sq_cos(rows) == pytest.approx(1 / 3)


@pytest.mark.parametrize("alive", [0, 1])
def test_fewer_than_two_living_latents_give_no_number_instead_of_a_crash(alive):
    shape = geometry(torch.eye(4), torch.arange(4) < alive, 0)[0]
    told = {name for name, value in shape._asdict().items() if math.isfinite(value)}
    assert told == {"nearest_cos_all", "mean_abs_cos_null", "mean_sq_cos_null"}


@pytest.mark.parametrize(("n", "d"), [(300, 8), (400, 16), (1024, 64)])
def test_the_nulls_are_what_drawn_directions_give(n, d):
    draws = [geometry(directions(n, d, seed), torch.ones(n, dtype=torch.bool), seed)[0] for seed in range(4)]

    def drawn(name):
        return sum(getattr(shape, name) for shape in draws) / len(draws)

    assert draws[0].nearest_cos_null == pytest.approx(drawn("nearest_cos"), abs=0.005)
    assert draws[0].mean_abs_cos_null == pytest.approx(drawn("mean_abs_cos"), rel=0.03)
    assert draws[0].mean_sq_cos_null == pytest.approx(drawn("mean_sq_cos"), rel=0.06)
    shares = np.mean([nearest_shares(nearest_cosines(directions(n, d, seed))) for seed in range(4)], axis=0)
    expected = np.array(null_nearest_shares(n, d))
    assert expected.sum() == pytest.approx(1) and np.abs(shares - expected).max() < 0.04


def test_fewer_than_two_directions_have_no_nearest():
    assert all(map(math.isnan, null_nearest_shares(0, 8) + null_nearest_shares(1, 8)))
    assert sum(null_nearest_shares(2, 8)) == pytest.approx(1)


def test_the_null_equals_the_integral_worked_by_hand():
    assert null_nearest_cos(2, 7) == pytest.approx(0, abs=1e-7)  # two directions are as often near as far
    assert null_nearest_cos(50, 3) == pytest.approx(1 - 2 / 50, abs=1e-7)  # on the sphere a cosine is uniform


def test_latents_that_share_a_part_of_the_space_are_near_without_pairs_and_their_own_null_says_so():
    rows = directions(500, 40) * torch.cat([torch.ones(5), torch.full((35,), 0.05)])
    shape = geometry(rows, torch.ones(500, dtype=torch.bool), 0)[0]
    assert shape.nearest_cos > shape.nearest_cos_null + 0.3
    assert shape.nearest_cos == pytest.approx(shape.nearest_cos_spread, abs=0.01)


def test_a_histogram_counts_every_latent_once():
    nearest = torch.tensor([-0.3, 0.0, 0.02, 0.021, 0.5, 0.999, 1.0000001])
    shares = nearest_shares(nearest)
    assert len(shares) == len(EDGES) - 1 and sum(shares) == pytest.approx(1)
    assert [round(7 * share) for share in shares if share] == [3, 1, 1, 2]


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
