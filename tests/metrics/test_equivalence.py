"""sae_lm.metrics.equivalence and sae_lm.metrics.crossed: against scipy, by hand, against brute force."""

import math

import numpy as np
import pytest
from scipy import stats

from sae_lm.metrics.crossed import crossed_interval, crossed_mean_and_error, without_one
from sae_lm.metrics.equivalence import equivalence_p
from sae_lm.metrics.statistics import bootstrap

NAN = float("nan")


# --- equivalence


@pytest.mark.parametrize("n", [2, 3, 6, 10])
@pytest.mark.parametrize("shift", [-0.03, 0.0, 0.011, 0.02])
def test_the_equivalence_p_is_the_larger_of_scipys_two_one_sided_tests(n, shift):
    deltas = (shift + 0.01 * np.random.default_rng(n).normal(size=n)).tolist()
    above = stats.ttest_1samp(deltas, -0.02, alternative="greater").pvalue
    below = stats.ttest_1samp(deltas, 0.02, alternative="less").pvalue
    assert equivalence_p(deltas, 0.02) == pytest.approx(max(above, below))


def test_equivalence_is_shown_exactly_where_the_90_percent_interval_lies_within_the_margin():
    draw = np.random.default_rng(0)
    inside = []
    for _ in range(100):
        deltas = draw.normal(0.0, 0.015, size=5)
        low, high = stats.ttest_1samp(deltas, 0).confidence_interval(0.9)
        inside.append(low > -0.02 and high < 0.02)
        assert ((equivalence_p(deltas.tolist(), 0.02) or 1) < 0.05) == inside[-1]
    assert 10 < sum(inside) < 90


def test_differences_without_a_spread_or_too_few_of_them_show_no_equivalence():
    assert equivalence_p([0.001], 0.02) is equivalence_p([], 0.02) is equivalence_p([0.001, NAN], 0.02) is None
    assert equivalence_p([0.0, 0.0, 0.0], 0.02) is None
    assert equivalence_p([0.001, NAN, 0.002], 0.02) == equivalence_p([0.001, 0.002], 0.02)


# --- seeds and concepts together


def test_the_mean_and_error_of_a_sample_are_those_of_the_rows_and_columns_it_holds():
    """Slowly: the sample is laid out, and its two-way table of variance is taken term by term."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(4, 6)) + draw.normal(size=(4, 1)) + 2 * draw.normal(size=(1, 6))
    for _ in range(50):
        rows, columns = draw.integers(4, size=4), draw.integers(6, size=6)
        sample = x[rows][:, columns]
        middle, by_row, by_column = sample.mean(), sample.mean(1), sample.mean(0)
        of_rows = 6 * sum((row - middle) ** 2 for row in by_row) / 3
        of_columns = 4 * sum((column - middle) ** 2 for column in by_column) / 5
        rest = sum(
            (sample[i, j] - by_row[i] - by_column[j] + middle) ** 2 for i in range(4) for j in range(6)
        ) / (3 * 5)  # fmt: skip
        expected = math.sqrt(max(of_rows + of_columns - rest, of_rows, of_columns) / 24)
        counts = np.bincount(rows, minlength=4)[None], np.bincount(columns, minlength=6)[None]
        mean, error = crossed_mean_and_error(x, counts[0].astype(float), counts[1].astype(float))
        assert mean[0] == pytest.approx(middle) and error[0] == pytest.approx(expected)


def test_concepts_that_differ_widen_the_interval_and_seeds_alone_give_the_bootstrap_over_seeds():
    draw = np.random.default_rng(1)
    seeds = 0.1 + 0.02 * draw.normal(size=(8, 1))
    alike, differing = seeds + np.zeros((1, 12)), seeds + 0.2 * draw.normal(size=(1, 12))
    of_seeds = bootstrap(seeds[:, 0].tolist())
    ends = crossed_interval(alike + 1e-6 * draw.normal(size=(8, 12)))
    assert ends is not None and of_seeds is not None
    assert ends == pytest.approx(of_seeds, abs=0.003)
    wide = crossed_interval(differing)
    assert wide is not None and wide == crossed_interval(differing), "the same samples each time"
    assert wide[1] - wide[0] > 3 * (ends[1] - ends[0])
    assert wide[0] < differing.mean() < wide[1]


def test_three_seeds_have_an_interval_where_concepts_differ():
    draw = np.random.default_rng(2)
    assert crossed_interval(draw.normal(size=(1, 16)) + 0.1 * draw.normal(size=(3, 16))) is not None


def test_leaving_out_each_concept_is_what_a_loop_finds():
    draw = np.random.default_rng(3)
    x = draw.normal(size=(5, 7)) + 0.5
    x[:, 4] += 9
    left = without_one(x)
    for concept in range(7):
        of_seeds = np.delete(x, concept, axis=1).mean(1)
        assert left.means[concept] == pytest.approx(of_seeds.mean())
        assert left.p[concept] == pytest.approx(stats.ttest_1samp(of_seeds, 0).pvalue)
    assert left.most == 4
