"""sae_lm.sae's penalties against plain twins in float64, and the arms that name them."""

import pytest
import torch
from largest_tensor import LargestTensor
from reference import (
    anchored_coactivation,
    anchored_ortsae,
    coactivation_sq_cos,
    cross_sample,
    independent_sq_cos,
    mean_abs_cos,
    mean_abs_cos_over,
    mean_sq_cos,
    misalignment,
    ortsae,
    ortsae_over,
    silent_generals,
)

from sae_lm.penalties import coactive as coactivation
from sae_lm.penalties import pairwise as cosines
from sae_lm.penalties.align import align
from sae_lm.penalties.arms import PENALTIES
from sae_lm.penalties.c2r import c2r
from sae_lm.penalties.coactive import coactive
from sae_lm.penalties.max_cos import max_cos
from sae_lm.penalties.pairwise import abs_cos, freq_cos, sq_cos
from sae_lm.penalties.silent import silent
from sae_lm.sae import nearest as neighbours
from sae_lm.sae.nearest import NearestRows, coherence, nearest_in_chunks, nearest_row
from sae_lm.sae.sparse import Codes

M, D = 23, 5


def some_rows(m=M, d=D, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.rand(m, 1, dtype=dtype, generator=generator) * 3 + 0.01
    return (torch.randn(m, d, dtype=dtype, generator=generator) * lengths).requires_grad_()


def some_codes(m=M, batch=9, most=7, seed=0):
    """Rows of different length, an empty one among them, with entries of value 0; and the dense [batch, m] it means."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, most + 1, (batch,), generator=generator)
    counts[0], counts[1] = 0, most
    latents = [torch.randperm(m, generator=generator)[:count].sort().values for count in counts.tolist()]
    latent = torch.cat(latents)
    value = (torch.rand(len(latent), generator=generator) - 0.2).clamp_min(0)
    row = torch.repeat_interleave(torch.arange(batch), counts)
    fires = torch.zeros(batch, m)
    fires[row, latent] = (value > 0).float()
    starts = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)])
    return Codes(starts, latent, value, torch.rand(m, generator=generator)), fires


CODES, FIRES = some_codes()
ACTIVATIONS = FIRES.double()
ACTIVATIONS[FIRES > 0] = CODES.value[CODES.value > 0].double()
OTHERS = some_rows(seed=5).detach()
TIED = CODES._replace(firing_frequency=(CODES.firing_frequency * 4).round() / 4)
"""Its 23 latents have five frequencies among them."""


def ranked_twins(codes, said=""):
    """Of the penalties that ask which latent fires more often; said: what their names end with."""
    rate, doubles = codes.firing_frequency, codes._replace(value=codes.value.double())
    return {
        f"max_cos anchored{said}": (
            lambda rows: max_cos(rows, None, codes, anchored=True),
            lambda rows: anchored_ortsae(rows, rate),
        ),
        f"coactive anchored{said}": (
            lambda rows: coactive(rows, None, codes, anchored=True),
            lambda rows: anchored_coactivation(rows, rate, FIRES),
        ),
        f"c2r anchored{said}": (
            lambda rows: c2r(rows, None, doubles, anchored=True),
            lambda rows: cross_sample(rows, ACTIVATIONS, rate),
        ),
        f"silent{said}": (
            lambda rows: silent(rows, None, codes),
            lambda rows: silent_generals(rows, rate, FIRES),
        ),
    }


TWINS = {
    "abs_cos": (abs_cos, mean_abs_cos),
    "abs_cos with a margin": (
        lambda rows: abs_cos(rows, margin=0.2),
        lambda rows: mean_abs_cos_over(0.2, rows),
    ),
    "sq_cos": (sq_cos, mean_sq_cos),
    "max_cos": (max_cos, ortsae),
    "max_cos with a margin": (
        lambda rows: max_cos(rows, margin=0.3),
        lambda rows: ortsae_over(0.3, rows),
    ),
    "coactive": (
        lambda rows: coactive(rows, None, CODES),
        lambda rows: coactivation_sq_cos(rows, FIRES),
    ),
    "freq_cos": (
        lambda rows: freq_cos(rows, None, CODES),
        lambda rows: independent_sq_cos(rows, CODES.firing_frequency.double()),
    ),
    "c2r": (
        lambda rows: c2r(rows, None, CODES._replace(value=CODES.value.double())),
        lambda rows: cross_sample(rows, ACTIVATIONS),
    ),
    **ranked_twins(CODES),
    **ranked_twins(TIED, ", ties"),
    "align": (
        lambda rows: align(rows, encoder=OTHERS),
        lambda rows: misalignment(OTHERS, rows),
    ),
    "align, of the encoder": (
        lambda rows: align(OTHERS, encoder=rows),
        lambda rows: misalignment(rows, OTHERS),
    ),
}


@pytest.mark.parametrize(("fast", "plain"), TWINS.values(), ids=TWINS)
def test_value_and_gradient_equal_dense_autograd_across_tile_edges(fast, plain, monkeypatch):
    monkeypatch.setattr(cosines, "TILE", 7)  # 23 rows: three whole tiles and a short one
    monkeypatch.setattr(neighbours, "TILE", 7)
    rows = some_rows()
    (got,) = torch.autograd.grad(fast(rows), rows)
    (expected,) = torch.autograd.grad(plain(rows), rows)
    assert abs(fast(rows).item() - plain(rows).item()) < 1e-12
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-12)


def call(penalty, rows, generator=None):
    others = {"encoder": some_rows(*rows.shape, seed=5, dtype=rows.dtype).detach()} if penalty == "align" else {}
    return PENALTIES[penalty](rows, generator, some_codes(len(rows))[0], **others)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_the_norm_of_a_row_changes_nothing(penalty):
    rows = some_rows().detach()
    stretched = rows * torch.linspace(0.1, 30, M, dtype=torch.float64)[:, None]
    torch.testing.assert_close(call(penalty, stretched), call(penalty, rows))


@pytest.mark.parametrize("penalty", PENALTIES)
def test_a_row_of_zeros_costs_nothing_and_gets_no_gradient(penalty):
    rows = some_rows().detach()
    rows[4] = 0
    rows.requires_grad_()
    (gradient,) = torch.autograd.grad(call(penalty, rows), rows)
    assert gradient.isfinite().all() and (gradient[4] == 0).all() and gradient.any()


@pytest.mark.parametrize("penalty", PENALTIES)
def test_gradients_repeat_bit_for_bit_although_many_rows_meet_in_one(penalty):
    rows = some_rows(2048, 64, dtype=torch.float32).detach()
    rows = (rows + 3 * rows[:1]).requires_grad_()  # row 0 is nearest to very many
    first = torch.autograd.grad(call(penalty, rows), rows)[0]
    for _ in range(8):
        assert torch.equal(torch.autograd.grad(call(penalty, rows), rows)[0], first)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_penalties_are_float32_under_autocast(penalty):
    rows = some_rows(64, 32, dtype=torch.float32)
    expected = torch.autograd.grad(call(penalty, rows), rows)[0]
    with torch.autocast("cpu", torch.bfloat16):
        value = call(penalty, rows)
    assert value.dtype == torch.float32 and value == call(penalty, rows)
    assert torch.equal(torch.autograd.grad(value, rows)[0], expected)


@pytest.mark.parametrize("penalty", ["abs_cos", "sq_cos", "freq_cos"])
def test_products_in_bfloat16_give_nearly_the_gradient_of_float32(penalty):
    rows, (codes, _) = some_rows(512, 64, dtype=torch.float32), some_codes(512)
    exact, rounded = (
        torch.autograd.grad(PENALTIES[penalty](rows, None, codes, matmul_dtype=dtype), rows)[0]
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert not torch.equal(exact, rounded)
    assert (rounded - exact).norm() < 0.15 * exact.norm()  # measured: .08, .004, .004


def test_three_hand_worked_rows():
    rows = torch.tensor([[0.0, 1.0], [1.0, 1.0], [1.0, 0.0]])
    # cosines: 1-2 and 2-3 are 1/sqrt2, 1-3 is 0; mean |cos| = (2/3)/sqrt2 = .4714; mean cos^2 = 2/3 * .5
    assert abs_cos(rows).item() == pytest.approx(0.4714, abs=1e-4)
    assert abs_cos(rows, margin=0.5).item() == pytest.approx(2 / 3 * (0.5**0.5 - 0.5), abs=1e-6)
    assert sq_cos(rows).item() == pytest.approx(1 / 3, abs=1e-6)
    assert max_cos(rows).item() == pytest.approx(0.5, abs=1e-6)
    # one token has 1 and 2 on, the other 1 and 3: (2 * .5 + 2 * 0) / 4 firings
    codes = Codes(torch.tensor([0, 2, 4]), torch.tensor([0, 1, 0, 2]), torch.ones(4), torch.tensor([1.0, 0.5, 0.5]))
    assert coactive(rows, None, codes).item() == pytest.approx(0.25, abs=1e-6)
    # pairs 1-2 and 2-3 both ways: (2 * 1 * .5 * .5 + 2 * .5 * .5 * .5) / L0 of 2
    assert freq_cos(rows, None, codes).item() == pytest.approx(0.375, abs=1e-6)


def test_antiparallel_rows_cost_max_cos_nothing_and_abs_cos_everything():
    rows = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert max_cos(rows).item() == 0
    assert abs_cos(rows).item() == pytest.approx(1.0)


def test_coactive_sees_only_what_fires_together():
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    apart = Codes(torch.tensor([0, 1, 2]), torch.tensor([0, 1]), torch.ones(2), torch.ones(3))
    silent = Codes(torch.tensor([0, 2]), torch.tensor([0, 1]), torch.tensor([1.0, 0.0]), torch.ones(3))
    nothing = Codes(torch.tensor([0, 0]), torch.zeros(0, dtype=torch.long), torch.zeros(0), torch.zeros(3))
    assert coactive(rows, None, apart) == coactive(rows, None, silent) == coactive(rows, None, nothing) == 0


@pytest.mark.parametrize("anchored", [False, True])
def test_coactive_of_one_crowded_token_among_many_holds_no_more_than_the_pairs_there_are(anchored, monkeypatch):
    monkeypatch.setattr(coactivation, "PAIRS_AT_ONCE", 1000)
    draw, counts = torch.Generator().manual_seed(2), torch.tensor([3, 200, 0, 1, 5] + 300 * [2])
    latents = [torch.randperm(200, generator=draw)[:count].sort().values for count in counts.tolist()]
    fires = torch.zeros(len(counts), 200)
    for token, latent in enumerate(latents):
        fires[token, latent] = 1
    starts = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)])
    codes = Codes(starts, torch.cat(latents), torch.ones(len(torch.cat(latents))), fires.mean(0))
    rows = some_rows(200)
    with LargestTensor() as made:
        value = coactive(rows, None, codes, anchored=anchored)
    assert made.numbers == 200**2  # one width for all would be 305 times as much
    rate = codes.firing_frequency
    plain = anchored_coactivation(rows, rate, fires) if anchored else coactivation_sq_cos(rows, fires)
    torch.testing.assert_close(value, plain, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(*(torch.autograd.grad(each, rows)[0] for each in (value, plain)), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(
    ("estimate", "exact"),
    [
        (
            lambda rows, generator: abs_cos(rows, generator, sample=5, margin=0.1),
            lambda rows: mean_abs_cos_over(0.1, rows),
        ),
        (lambda rows, generator: sq_cos(rows, generator, sample=5), mean_sq_cos),
        (
            lambda rows, generator: freq_cos(rows, generator, CODES, sample=5),
            lambda rows: independent_sq_cos(rows, CODES.firing_frequency.double()),
        ),
        (
            lambda rows, generator: coactive(rows, generator, CODES, sample=80),
            lambda rows: coactivation_sq_cos(rows, FIRES),
        ),
    ],
    ids=["abs_cos of 5 of 23 rows", "sq_cos", "freq_cos", "coactive of 5 of 9 tokens, 4 entries of up to 7"],
)
def test_samples_have_the_exact_value_and_gradient_as_their_mean(estimate, exact):
    rows, generator = some_rows(), torch.Generator().manual_seed(0)
    (expected,) = torch.autograd.grad(exact(rows), rows)
    values, gradients = [], []
    for _ in range(120):
        value = estimate(rows, generator)
        gradients.append(torch.autograd.grad(value, rows)[0])
        values.append(value.detach())
    for found, true in ((torch.stack(values), exact(rows).detach()), (torch.stack(gradients), expected)):
        off = (found.mean(0) - true) / (found.std(0) / len(found) ** 0.5 + 1e-15)
        assert found.std(0).max() > 0
        assert off.abs().max() < 4.5  # in standard errors, of 115 coordinates


def test_draws_come_from_the_given_generator_alone():
    rows, before = some_rows(), torch.get_rng_state()
    for draw in (
        lambda generator: abs_cos(rows, generator, sample=5),
        lambda generator: coactive(rows, generator, CODES, sample=80),
        lambda generator: max_cos(rows, generator, chunk=8),
        lambda generator: c2r(rows, generator, CODES, chunk=8),
        lambda generator: coherence(rows, generator, 5),
    ):
        first = draw(torch.Generator().manual_seed(5))
        assert first == draw(torch.Generator().manual_seed(5))
        assert first != draw(torch.Generator().manual_seed(6))
    assert torch.equal(torch.get_rng_state(), before)


def units(seed, m=M):
    rows = some_rows(m, seed=seed).detach()
    return rows / rows.norm(dim=1, keepdim=True)


def test_neighbours_searched_part_by_part_are_all_found_within_a_round(monkeypatch):
    monkeypatch.setattr(neighbours, "TILE", 7)
    before, after = units(1), units(2)
    table = NearestRows(parts=4)  # of 5, 6, 6 and 6 rows
    nearest, cosine = table.update(before)
    assert torch.equal(nearest, nearest_row(before))  # the first update searches all parts
    torch.testing.assert_close(cosine, (before @ before.T).fill_diagonal_(-2).amax(1))
    for _ in range(4):
        nearest, cosine = table.update(after)
    assert torch.equal(nearest, nearest_row(after))
    torch.testing.assert_close(cosine, (after @ after.T).fill_diagonal_(-2).amax(1))


def test_between_searches_the_nearest_of_the_candidates_as_they_are_now_is_taken():
    before, after, bounds = units(1), units(2), (0, 5, 11, 17)
    table = NearestRows(parts=4)  # as many as are looked at again
    table.update(before)
    nearest, cosine = table.update(after)  # searches rows 0 to 4
    then, now = ((unit @ unit.T).fill_diagonal_(-2) for unit in (before, after))
    sources = (now, then, then, then)
    slices = [s.tensor_split(bounds[1:], 1)[i].argmax(1) + bounds[i] for i, s in enumerate(sources)]
    expected = now.gather(1, torch.stack(slices, 1)).amax(1)
    assert (expected < now.amax(1)).any()  # some were overtaken by rows that are no candidates
    torch.testing.assert_close(cosine, expected)
    torch.testing.assert_close(now[torch.arange(M), nearest], expected)


def test_penalty_and_gradient_are_those_of_the_neighbours_as_known():
    table, first, moved = NearestRows(parts=4), some_rows(), some_rows(seed=3)
    max_cos(first, neighbours=table)
    value = max_cos(moved, neighbours=table)
    again = NearestRows(parts=4)
    again.update(first.detach() / first.detach().norm(dim=1, keepdim=True))
    unit = moved / moved.norm(dim=1, keepdim=True)
    nearest, _ = again.update(unit.detach())
    expected = (unit * unit[nearest]).sum(1).clamp_min(0).square().mean()
    torch.testing.assert_close(value, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(*(torch.autograd.grad(v, moved)[0] for v in (value, expected)), atol=1e-12, rtol=0)


@pytest.mark.parametrize("codes", [CODES, TIED], ids=["all differ", "ties"])
@pytest.mark.parametrize("parts", [1, 3])
def test_ranked_neighbours_fire_more_often(parts, codes, monkeypatch):
    monkeypatch.setattr(neighbours, "TILE", 4)
    unit, rate, table = units(0), codes.firing_frequency, NearestRows(parts=parts, ranked=True)
    for updates in (1, parts):  # all at once, then in turns
        for _ in range(updates):
            nearest, cosine = table.update(unit, rate)
        for i in range(M):
            above = [j for j in range(M) if rate[j] > rate[i]]
            best = max(above, key=lambda j: float(unit[i] @ unit[j]), default=None)
            assert cosine[i] == -2 if best is None else nearest[i] == best
    rank = 1 - rate
    nearest, cosine = table.update(unit, rank)  # a rank that has changed holds at once
    has_neighbour = cosine > -2
    assert torch.equal(has_neighbour, rank < rank.max())
    assert (rank[nearest] > rank)[has_neighbour].all()


@pytest.mark.parametrize(("parts", "per_part"), [(3, 3), (6, 1)])
def test_several_neighbours_are_all_different_while_ranks_change(parts, per_part):
    """A row that moves to another part as ranks change is a candidate of both."""
    draw, unit = torch.Generator().manual_seed(1), units(0)
    table = NearestRows(parts=parts, ranked=True, per_part=per_part)
    for _ in range(12):
        rate = torch.rand(M, generator=draw)
        rows, cosines = table.update_several(unit, rate)
        for own, known in zip(rows.tolist(), (cosines > -2).tolist(), strict=True):
            there = [row for row, is_known in zip(own, known, strict=True) if is_known]
            assert len({*there}) == len(there)


def test_neighbours_in_chunks_are_the_nearest_inside_equal_chunks_of_a_random_partition():
    unit, chunks = units(0), torch.randperm(M, generator=torch.Generator().manual_seed(4)).tensor_split(3)
    nearest, cosine = nearest_in_chunks(unit, 8, torch.Generator().manual_seed(4))  # of 8, 8 and 7 rows
    for members in chunks:
        assert torch.equal(nearest[members], members[nearest_row(unit[members])])
    torch.testing.assert_close(cosine, (unit * unit[nearest]).sum(1))
    value = max_cos(unit, torch.Generator().manual_seed(4), chunk=8)
    torch.testing.assert_close(value, cosine.clamp_min(0).square().mean())


def test_no_chunk_is_of_one_row_which_would_be_its_own_neighbour():
    rows = torch.eye(3, requires_grad=True)
    nearest, _ = nearest_in_chunks(rows.detach(), 2, torch.Generator().manual_seed(0))
    assert (nearest != torch.arange(3)).all()
    assert max_cos(rows, torch.Generator().manual_seed(0), chunk=2) == 0


@pytest.mark.parametrize("ranked", [False, True])
def test_known_neighbours_continue_from_their_state_bit_for_bit(ranked):
    table = NearestRows(parts=3, ranked=ranked)
    for seed in range(5):
        table.update(units(seed), CODES.firing_frequency)
    state = table.state()
    rest = [table.update(units(seed), CODES.firing_frequency) for seed in range(5, 9)]
    again = NearestRows(parts=3, ranked=ranked)
    again.restore(state)
    for seed, found in zip(range(5, 9), rest, strict=True):
        assert all(map(torch.equal, again.update(units(seed), CODES.firing_frequency), found))


def test_coherence_is_the_mean_cosine_to_the_nearest():
    rows = some_rows(dtype=torch.float32).detach()
    unit = rows / rows.norm(dim=1, keepdim=True)
    torch.testing.assert_close(coherence(rows, None, M), (unit * unit[nearest_row(unit)]).sum(1).mean())
