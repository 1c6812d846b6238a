"""What the store's sums take of memory does not grow with the size or the number of its shards."""

import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sae_lm.data import store as store_module
from sae_lm.data import writer
from sae_lm.data.store import open_store


class Largest(TorchDispatchMode):
    """The most bytes of one tensor of float64 that was made inside: rows are in float32, and mapped."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dtype == torch.float64 and not func.is_view:
            self.bytes = max(self.bytes, result.numel() * result.element_size())
        return result


@pytest.mark.parametrize("numbers", [16, 160, store_module.SUMMED_NUMBERS])
def test_moments_of_a_part_of_a_shard_are_taken_piece_by_piece(tiny_store, monkeypatch, numbers):
    store = open_store(tiny_store)
    hook, stop = "blocks.1.hook_out", store.first_row[1] - 5  # all in the first shard, of which no sums are stored
    rows = store.rows(hook, 0, stop).double()
    monkeypatch.setattr(store_module, "SUMMED_NUMBERS", numbers)
    with Largest() as largest:
        moments = store.moments(hook, stop)
    assert largest.bytes <= max(8 * numbers, 8 * 16)
    torch.testing.assert_close(moments.mean, rows.mean(0), rtol=1e-12, atol=1e-14)
    assert moments.mean_squared_norm == pytest.approx(float(rows.square().sum()) / stop, rel=1e-12)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_commit_holds_no_shard_mapped(tiny_store, monkeypatch):
    recipe, mapped = open_store(tiny_store).manifest.recipe, []
    real = writer.norm_quantiles

    def looked(*given):
        with open("/proc/self/maps") as maps:
            mapped.append([line for line in maps if str(tiny_store) in line])
        return real(*given)

    monkeypatch.setattr(writer, "norm_quantiles", looked)
    stats = writer.statistics(tiny_store, recipe, len(open_store(tiny_store).manifest.shards))
    assert mapped == [[]] * len(recipe.hooks)
    assert int(stats["blocks.1.hook_out/non_finite"]) == 0
