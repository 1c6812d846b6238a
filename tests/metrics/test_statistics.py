"""sae_lm.metrics.statistics: by hand, against scipy, against brute force."""

import math
from itertools import product

import numpy as np
import pytest
import reference
import torch
from scipy import stats

from sae_lm.metrics.statistics import (
    bootstrap,
    detectable,
    holm,
    paired_difference,
    pooled,
    power,
    resamples,
    seeds_needed,
    sign_flip,
    spread_of,
    sums_of_units,
)

NAN = float("nan")


# --- one difference


def test_an_interval_of_three_paired_seeds_by_hand():
    # differences -.1, -.2, -.3: mean -.2, sd .1, t(2) = 4.303, half width 4.303 * .1 / sqrt 3 = .2484
    result = paired_difference([0.4, 0.3, 0.2], [0.5, 0.5, 0.5])
    assert result.mean == pytest.approx(-0.2) and result.spread == pytest.approx(0.1)
    assert result.low == pytest.approx(-0.4484, abs=1e-4) and result.high == pytest.approx(0.0484, abs=1e-4)


def test_interval_and_p_are_scipys_paired_t_test():
    arm, baseline = [0.31, 0.42, 0.39, 0.44, 0.28], [0.35, 0.44, 0.47, 0.45, 0.33]
    result, twin = paired_difference(arm, baseline), stats.ttest_rel(arm, baseline)
    interval = twin.confidence_interval(0.95)
    assert result.p == pytest.approx(twin.pvalue)
    assert (result.low, result.high) == (pytest.approx(interval.low), pytest.approx(interval.high))


@pytest.mark.parametrize("n", [2, 3, 4, 6, 10])
def test_intervals_and_p_values_are_the_formulas_of_the_books(n):
    draw = np.random.default_rng(n)
    for scale in (1e-6, 1.0, 1e3):
        arm, baseline = (draw.normal(size=(2, n)) * scale).tolist()
        result = paired_difference(arm, baseline)
        low, high, p = reference.t_interval_and_p(result.per_seed)
        assert (result.low, result.high) == (
            pytest.approx(low, abs=1e-9 * scale),
            pytest.approx(high, abs=1e-9 * scale),
        )
        assert result.p == pytest.approx(p, rel=1e-9)
        assert result.p_sign_flip == reference.sign_flip([delta / scale for delta in result.per_seed])


def test_patterns_that_tie_but_for_rounding_count_as_equal():
    deltas = [0.1 + 0.2, 0.1 + 0.2, -0.2, -0.2, -0.1, -0.4, -0.1, 0.4]
    assert 0 < abs(sum(deltas)) < 1e-15 and sign_flip(deltas) == reference.sign_flip(deltas) == 1


def test_pairing_removes_what_seeds_share():
    baseline = [0.1, 0.5, 0.9]
    result = paired_difference([b + 0.01 + e for b, e in zip(baseline, (0, 0.001, -0.001), strict=True)], baseline)
    assert result.low is not None and result.low > 0
    assert stats.ttest_ind([b + 0.01 for b in baseline], baseline).pvalue > 0.9


def test_seeds_without_a_number_keep_their_place_and_count_for_nothing():
    result = paired_difference([0.4, NAN, 0.3, 0.2], [0.5, 0.5, 0.5, NAN])
    assert math.isnan(result.per_seed[1]) and result.seeds == 2 and result.mean == pytest.approx(-0.15)
    nothing = paired_difference([NAN] * 3, [0.5] * 3)
    assert nothing.seeds == 0 and nothing.mean is nothing.low is nothing.p is None
    assert paired_difference([0.4], [0.5]).low is None


def test_equal_differences_get_no_interval_and_only_the_sign_flips_p():
    # .1 + .2 - .2 differs from .1 by rounding alone, which is no spread
    result = paired_difference([0.1 + 0.2, 0.1 + 0.3, 0.1 + 0.7], [0.2, 0.3, 0.7])
    assert result.low is None and result.spread == 0 and result.p == result.p_sign_flip == 0.25
    assert paired_difference([0.5, 0.5], [0.5, 0.5]).p == 1


def test_the_sign_flip_p_is_the_share_of_patterns_as_extreme():
    deltas = [0.3, -0.1, 0.25, 0.4, 0.02]
    extreme = [abs(sum(s * d for s, d in zip(signs, deltas, strict=True))) for signs in product((1, -1), repeat=5)]
    expected = sum(total >= abs(sum(deltas)) - 1e-12 for total in extreme) / 32
    assert sign_flip(deltas) == expected
    twin = stats.permutation_test((deltas,), lambda x: x.mean(), permutation_type="samples", n_resamples=10**6)
    assert sign_flip(deltas) == pytest.approx(twin.pvalue)


@pytest.mark.parametrize("n", [1, 3, 5, 6, 10])
def test_the_sign_flip_p_has_its_floor_at_two_in_two_to_the_n(n):
    assert sign_flip([1.0 + 0.1 * i for i in range(n)]) == 2 / 2**n


def test_many_seeds_are_flipped_at_random_and_come_to_about_the_normal_p():
    deltas = [0.2 + math.sin(7 * i) for i in range(40)]
    assert sign_flip(deltas) == pytest.approx(stats.ttest_1samp(deltas, 0).pvalue, abs=0.02)


def test_the_bootstrap_interval_has_no_ends_at_three_seeds_and_is_scipys_at_ten():
    assert bootstrap([0.1, 0.2, 0.4]) is None
    deltas = [0.1, 0.25, 0.4, 0.32, 0.18, 0.29, -0.05, 0.5, 0.22, 0.35]
    ends = bootstrap(deltas)
    assert ends == bootstrap(deltas) and ends is not None
    t = stats.t.interval(0.95, 9, stats.tmean(deltas), stats.sem(deltas))
    assert ends[0] == pytest.approx(t[0], abs=0.03) and ends[1] == pytest.approx(t[1], abs=0.03)


# --- many differences, power


def test_holms_correction_by_hand():
    # sorted .01 .02 .03 .04 times 4, 3, 2, 1 = .04 .06 .06 .04, made monotone
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_holm_keeps_the_chance_of_any_false_claim_at_the_level():
    draw = torch.Generator().manual_seed(0)
    p = torch.rand(2000, 10, generator=draw).tolist()
    false = sum(min(holm(row)) <= 0.05 for row in p) / len(p)
    assert false == pytest.approx(0.05, abs=0.015)


@pytest.mark.parametrize(("n", "size"), [(3, 3.26), (4, 2.13), (5, 1.68), (8, 1.16), (10, 1.00), (20, 0.66)])
def test_the_detectable_difference_is_that_of_the_noncentral_t(n, size):
    assert detectable(n) == pytest.approx(size, abs=0.005)
    reach, shift = stats.t.isf(0.025, n - 1), detectable(n) * n**0.5
    assert stats.nct.sf(reach, n - 1, shift) + stats.nct.cdf(-reach, n - 1, shift) == pytest.approx(0.8, abs=1e-3)


def test_as_many_seeds_are_needed_as_give_eighty_percent_power():
    needed = seeds_needed(0.5, 1.0)
    assert needed is not None and power(needed, 0.5) >= 0.8 > power(needed - 1, 0.5)
    assert needed == 34  # G*Power: a paired t test of dz .5
    stricter = seeds_needed(0.5, 1.0, level=0.005)
    assert stricter is not None and stricter > needed
    assert seeds_needed(0.0, 1.0) is seeds_needed(0.001, 1.0) is None


@pytest.mark.parametrize("level", [0.05, 0.01, 0.3])
def test_equal_differences_need_as_many_seeds_as_the_sign_flip_does(level):
    needed = seeds_needed(1.0, 0.0, level)
    assert needed is not None and sign_flip([0.1] * needed) <= level
    assert needed == 3 or sign_flip([0.1] * (needed - 1)) > level


# --- noise


def test_resamples_draw_as_many_units_as_there_are():
    counts = resamples(50, samples=400, seed=0)
    assert (counts.sum(1) == 50).all() and counts.mean(0).mean() == pytest.approx(1)
    assert counts.var(0).mean() == pytest.approx(1 - 1 / 50, rel=0.1)


def test_the_bootstraps_spread_of_a_mean_is_its_standard_error():
    draw = torch.Generator().manual_seed(0)
    values, unit = torch.randn(2000, generator=draw), torch.arange(2000) // 4  # 500 documents of 4 rows
    values += torch.randn(500, generator=draw)[unit]  # rows of a document are alike
    totals = sums_of_units(values, unit, 500)
    spread = spread_of((resamples(500, 300, 0).double() @ totals / 2000).tolist())
    assert spread == pytest.approx(float((totals / 4).std() / 500**0.5), rel=0.15)
    assert spread > 1.3 * float(values.std() / 2000**0.5), "rows of one document are not independent"


def test_spreads_are_pooled_by_their_squares_and_none_is_left_out():
    assert pooled([3.0, None, 4.0]) == pytest.approx(12.5**0.5) and pooled([None]) is None
    assert spread_of([1.0, NAN, 3.0]) == pytest.approx(2**0.5) and spread_of([1.0]) is None
