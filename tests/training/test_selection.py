"""sae_lm.training.selection against torch.topk and nonzero on the same pre-activations."""

import threading

import pytest
import torch
from simulated_device import NAME, simulated_device

from sae_lm.runtime.distributed import Team
from sae_lm.training import selection
from sae_lm.training.selection import above_zero, largest, largest_of_batch, largest_of_rows

SHAPES = [(1, 5, 2), (7, 33, 1), (40, 1000, 13), (30, 129, 5), (3, 4, 4), (9, 2048, 40)]
"""rows, latents, k: with and without a remainder of groups, one group, all latents."""
DTYPES = [torch.bfloat16, torch.float32, torch.float64]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(selection, "TILE", 8)


def problem(batch, d_sae, matmul, seed=0):
    draw = torch.Generator().manual_seed(seed)
    dtype = torch.float64 if matmul == torch.float64 else torch.float32
    x, W, b = (torch.randn(shape, generator=draw, dtype=dtype) for shape in ((batch, 16), (d_sae, 16), (d_sae,)))
    return x, W, b * 0.1


def pre_activations(x, W, b, matmul):
    """The same tiles, since a product may round otherwise in another shape."""
    parts = [torch.addmm(b.to(matmul), rows.to(matmul), W.to(matmul).T) for rows in x.split(selection.TILE)]
    return torch.cat(parts)


def is_a_code(positions, count):
    """Ascending, none twice."""
    return len(positions) == count and bool((positions.diff() > 0).all())


@pytest.mark.parametrize("matmul", DTYPES)
@pytest.mark.parametrize(("batch", "d_sae", "k"), SHAPES)
def test_the_k_largest_of_each_row_are_found(batch, d_sae, k, matmul):
    x, W, b = problem(batch, d_sae, matmul)
    positions = largest_of_rows(x, W, b, k, matmul)
    assert is_a_code(positions, batch * k)
    assert torch.equal(positions // d_sae, torch.arange(batch).repeat_interleave(k))
    pre = pre_activations(x, W, b, matmul)
    found = pre.flatten()[positions].view(batch, k)
    assert torch.equal(found.sort(1, descending=True).values, pre.topk(k, 1).values)


@pytest.mark.parametrize("matmul", DTYPES)
@pytest.mark.parametrize(("batch", "d_sae", "k"), SHAPES)
def test_the_largest_of_a_batch_are_found_with_the_smallest_of_them(batch, d_sae, k, matmul):
    x, W, b = problem(batch, d_sae, matmul)
    pre = pre_activations(x, W, b, matmul)
    for count in {1, batch * k, batch * d_sae}:
        positions, smallest = largest_of_batch(x, W, b, count, matmul)
        expected = pre.flatten().topk(count).values
        assert is_a_code(positions, count)
        assert torch.equal(pre.flatten()[positions].sort(descending=True).values, expected)
        assert smallest == expected[-1].to(b.dtype)


@pytest.mark.parametrize("scale", [[100, 0.01, 0.01, 0.01, 0.01], [0.01, 0.01, 0.01, 0.01, 100], [1, 1, 1, 1, 1]])
def test_one_tile_may_hold_the_whole_batchs_largest(scale):
    """Then it proposes too few at first; what it left out must be noticed."""
    x, W, b = problem(40, 300, torch.float32)
    x = x[:8].repeat(5, 1) * torch.tensor(scale).repeat_interleave(8)[:, None]
    marks = []
    positions, _ = largest_of_batch(x, W, b, 200, torch.float32, mark=marks.append)
    pre = pre_activations(x, W, b, torch.float32).flatten()
    assert torch.equal(pre[positions].sort(descending=True).values, pre.topk(200).values)
    assert marks.count("encoder") == (5 if scale[0] == 1 else 10)  # five tiles, once or twice


@pytest.mark.parametrize("matmul", DTYPES)
def test_equal_pre_activations_fill_the_count_and_no_more(matmul):
    x, W, b = torch.ones(20, 4), torch.zeros(50, 4), torch.zeros(50)
    b[7] = 1
    rows = largest_of_rows(x, W, b, 3, matmul)
    assert is_a_code(rows, 60) and (rows % 50 == 7).sum() == 20
    positions, smallest = largest_of_batch(x, W, b, 33, matmul)
    assert is_a_code(positions, 33) and (positions % 50 == 7).sum() == 20 and smallest == 0


@pytest.mark.parametrize("matmul", DTYPES)
@pytest.mark.parametrize(("batch", "d_sae"), [(1, 5), (20, 129), (9, 2048)])
@pytest.mark.parametrize("shift", [0.0, -100.0, 100.0])
def test_everything_above_zero_is_found(batch, d_sae, shift, matmul):
    x, W, b = problem(batch, d_sae, matmul)
    positions = above_zero(x, W, b + shift, matmul)
    assert torch.equal(positions, (pre_activations(x, W, b + shift, matmul) > 0).flatten().nonzero().flatten())


def test_infinities_and_nan_neither_hang_nor_leave_the_matrix():
    x, W, b = problem(20, 129, torch.float32)
    x[3], x[5], x[6] = float("nan"), float("inf"), -float("inf")
    for matmul in (torch.bfloat16, torch.float32):
        for positions in (largest_of_rows(x, W, b, 4, matmul), largest_of_batch(x, W, b, 80, matmul)[0]):
            assert (positions >= 0).all() and (positions < 20 * 129).all()


def test_the_search_repeats_bit_for_bit():
    pre = torch.randn(30, 500, generator=torch.Generator().manual_seed(0)).bfloat16()  # with many equal numbers
    assert all(torch.equal(largest(pre, 20), largest(pre, 20)) for _ in range(5))


@pytest.mark.parametrize("positive", [0, 2, 7])
def test_the_k_largest_are_found_where_few_or_none_are_above_zero(positive):
    """Maxima over bits read as integers are right for positive numbers alone."""
    pre = -torch.rand(6, 300, generator=torch.Generator().manual_seed(0)).add(0.01).bfloat16()
    pre[:, :positive] = 1.0
    found = pre.flatten()[largest(pre, 7)]
    assert torch.equal(found.sort(1, descending=True).values, pre.topk(7, 1).values)


class ThreadTeam(Team):
    """A team whose members are threads; its group is the parts and the place where they meet."""

    def gather(self, part):
        parts, meeting = self.group
        meeting.wait()
        parts[self.rank] = part
        meeting.wait()
        return list(parts)


@pytest.mark.parametrize("where", ["cpu", NAME])
def test_a_teams_batchtopk_is_exact_where_one_slice_holds_most_of_the_largest(where):
    draw = torch.Generator().manual_seed(0)
    x, encoder = torch.randn(2, 40, 8, generator=draw), torch.randn(64, 8, generator=draw)
    x[1] *= 0.01  # so the first member selects twice its share
    bias, count, found = torch.zeros(64), 160, [None, None]
    parts, meeting = [None, None], threading.Barrier(2, timeout=20)

    def member(rank):
        mine = [tensor.to(where) for tensor in (x[rank], encoder, bias)]
        positions, smallest = largest_of_batch(*mine, count, torch.float32, ThreadTeam(rank, 2, (parts, meeting)))
        found[rank] = positions.cpu() + rank * 40 * 64, float(smallest)

    with simulated_device():
        threads = [threading.Thread(target=member, args=(rank,)) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    pre = (x.flatten(0, 1) @ encoder.T).flatten()
    expected = pre.topk(count)
    assert torch.cat([positions for positions, _ in found]).tolist() == expected.indices.sort().values.tolist()
    assert found[0][1] == pytest.approx(float(expected.values.min()))
