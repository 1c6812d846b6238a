"""sae_lm.synthetic.scores: on latents made by hand."""

import math

import pytest
import torch

from sae_lm.synthetic.scores import CodedInputs, KnownInputs, score

PARENT, CHILD = 0, 1


SIZES = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 1.0]])  # nothing; parent alone, twice; with its child


EVEN = torch.full((4,), 0.25)


def judged(rows, codes, encoder=None, weight=EVEN):
    """Scores of two or more latents where the parent is (1, 0) and the child (0, 1)."""
    W_dec = torch.nn.functional.normalize(torch.tensor(rows), dim=1)
    codes = torch.tensor(codes)
    encoder = W_dec if encoder is None else torch.tensor(encoder)
    known = KnownInputs(SIZES, SIZES, weight, torch.eye(2), [(PARENT, CHILD)])
    return score(known, CodedInputs(codes, SIZES - codes @ W_dec, W_dec, encoder))


TRUE_CODES = [[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 1.0]]


ABSORBED_CODES = [[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 2**0.5]]


def test_the_true_latents_have_no_holes_and_are_found():
    s = judged([[1.0, 0.0], [0.0, 1.0]], TRUE_CODES)
    assert (s.hole, s.weakened, s.gap, s.absorbed, s.merge, s.suppression, s.shared) == (0,) * 7
    assert s.mcc == s.recovered == s.uniqueness == s.f1 == s.parent_f1 == pytest.approx(1)
    assert s.fvu == pytest.approx(0, abs=1e-9) and s.dead == 0 and s.l0 == pytest.approx(1)  # .75 + .25


def test_an_absorbed_parent_is_a_hole_a_gap_a_merge_and_a_suppression():
    s = judged([[1.0, 0.0], [1.0, 1.0]], ABSORBED_CODES, encoder=[[1.0, -1.0], [0.0, 1.0]])
    assert s.hole == s.weakened == s.gap == s.absorbed == 1
    assert s.merge == pytest.approx(0.5**0.5) and s.suppression == pytest.approx(-(0.5**0.5))
    assert s.parent_f1 == pytest.approx(2 * 0.5 / (0.5 + 0.75))  # fires on two of the parent's three inputs
    assert s.mcc == pytest.approx((1 + 0.5**0.5) / 2) and s.recovered == 0.5
    assert s.nearest_cos == pytest.approx(0.5**0.5)
    assert s.fvu == pytest.approx(0, abs=1e-9)


def test_a_latent_that_misses_its_parent_everywhere_has_a_hole_and_no_gap():
    s = judged([[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    assert (
        s.hole == 1 and s.gap == 0 and s.absorbed == 0 and math.isnan(s.weakened)
    )  # the child's row carries nothing of the parent
    assert s.dead == 0.5


def test_a_parent_that_is_coded_in_part_is_weakened_and_no_hole():
    # with the child the parent's latent gives .25 of its 1, and the child's row carries the rest
    s = judged([[1.0, 0.0], [0.75, 1.0]], [[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.25, 1.25]])
    assert s.hole == s.gap == 0 and s.weakened == pytest.approx(0.75) and s.merge == pytest.approx(0.6)
    assert s.fvu == pytest.approx(0, abs=1e-9)


def test_one_latent_for_both_is_shared_and_not_a_merge():
    s = judged([[1.0, 0.9], [-1.0, 1.2]], [[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    assert s.shared == 0  # the second row is nearer to the child: .768 against .669
    s = judged([[1.0, 0.9], [-1.0, 0.0]], [[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    assert s.shared == 0 and s.hole == 1  # |cosine|: the second row lies along the parent, and never fires
    s = judged([[1.0, 0.9], [0.0, 0.0]], [[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    assert s.shared == 1 and s.hole == 0 and math.isnan(s.merge) and math.isnan(s.gap)


def test_weights_count_as_that_many_inputs():
    weight = torch.tensor([0.1, 0.3, 0.2, 0.4])
    codes = [[0.0, 0.0], [1.0, 0.0], [0.0, 0.0], [1.0, 1.0]]
    s = judged([[1.0, 0.0], [0.0, 1.0]], codes, weight=weight)
    assert s.l0 == pytest.approx(0.3 + 0.8)
    assert s.gap == pytest.approx(0.3 / 0.5 - 1)  # fires on .3 of the .5 without a child, on all with it
    assert s.parent_f1 == pytest.approx(2 * 0.7 / (0.7 + 0.9))
    # misses the parent (squared error 1) with .2; the variance is .9 * .1 + .4 * .6
    assert s.fvu == pytest.approx(0.2 / 0.33)
