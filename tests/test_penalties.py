"""sae_lm.sae.penalties against plain twins in float64."""

import pytest
import torch
from reference import mean_abs_cos, ortsae

from sae_lm.errors import SettingsError
from sae_lm.sae import penalties
from sae_lm.sae.penalties import Arm, abs_cos, max_cos, parse_arm


@pytest.mark.parametrize(("fast", "plain"), [(abs_cos, mean_abs_cos), (max_cos, ortsae)])
def test_value_and_gradient_equal_dense_autograd_across_tile_edges(fast, plain, monkeypatch):
    monkeypatch.setattr(penalties, "TILE", 7)  # 23 rows: three whole tiles and a short one
    rows = torch.randn(23, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    (got,) = torch.autograd.grad(fast(rows), rows)
    (expected,) = torch.autograd.grad(plain(rows), rows)
    assert abs(fast(rows).item() - plain(rows).item()) < 1e-12
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("penalty", [abs_cos, max_cos])
def test_gradients_repeat_bit_for_bit_although_many_rows_share_a_neighbour(penalty):
    rows = torch.randn(2048, 64, generator=torch.Generator().manual_seed(0))
    rows = (rows + 3 * rows[:1]).requires_grad_()  # row 0 is nearest to very many
    first = torch.autograd.grad(penalty(rows), rows)[0]
    for _ in range(20):
        assert torch.equal(torch.autograd.grad(penalty(rows), rows)[0], first)


@pytest.mark.parametrize("penalty", [abs_cos, max_cos])
def test_the_norm_of_a_row_changes_nothing(penalty):
    rows = torch.randn(9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    stretched = rows * torch.linspace(0.1, 30, 9, dtype=torch.float64)[:, None]
    torch.testing.assert_close(penalty(stretched), penalty(rows))


def test_three_hand_worked_rows():
    rows = torch.tensor([[0.0, 1.0], [1.0, 1.0], [1.0, 0.0]])
    # cosines: 1-2 and 2-3 are 1/sqrt2, 1-3 is 0; mean |cos| = (2/3)/sqrt2 = .4714; nearest squared = .5 for each
    assert abs_cos(rows).item() == pytest.approx(0.4714, abs=1e-4)
    assert max_cos(rows).item() == pytest.approx(0.5, abs=1e-6)


def test_antiparallel_rows_cost_max_cos_nothing_and_abs_cos_everything():
    rows = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert max_cos(rows).item() == 0
    assert abs_cos(rows).item() == pytest.approx(1.0)


def test_chunks_are_drawn_from_the_given_generator_alone(monkeypatch):
    monkeypatch.setattr(penalties, "CHUNK", 8)
    rows = torch.randn(20, 4, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = max_cos(rows, torch.Generator().manual_seed(5))
    assert torch.equal(torch.get_rng_state(), before)
    assert first == max_cos(rows, torch.Generator().manual_seed(5))
    assert first != max_cos(rows, torch.Generator().manual_seed(6))


def test_arms_are_read_with_their_coefficient_and_defaults():
    assert parse_arm("none") == Arm("none", 0.0)
    assert parse_arm("max_cos") == Arm("max_cos", 0.25)
    assert parse_arm(" abs_cos:1e-2 ").name == "abs_cos:0.01"


@pytest.mark.parametrize("text", ["abscos", "none:1", "max_cos:-1", "max_cos:nan", "max_cos:x", "abs_cos:inf"])
def test_a_malformed_arm_is_refused_with_what_was_expected(text):
    with pytest.raises(SettingsError, match="arms: "):
        parse_arm(text)
