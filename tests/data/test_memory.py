"""What the store's sums take of memory does not grow with the size or the number of its shards."""

import os
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sae_lm.commands.cache import cache
from sae_lm.data import store as store_module
from sae_lm.data import writer
from sae_lm.data.store import open_store
from sae_lm.errors import StoreError


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


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_reading_a_store_of_many_shards_holds_no_more_than_one_of_them_mapped_or_open(
    cache_settings, tmp_path, monkeypatch
):
    store = open_store(cache(cache_settings(tmp_path / "store", shard_tokens=12, tokens=900)))
    hook, mapped, opened = "blocks.1.hook_out", [], []
    assert len(store.manifest.shards) > 50
    real = store_module.read_tensor

    def looked(path, *given):
        tensor = real(path, *given)
        mapped.append(sum(str(store.path) in line for line in open("/proc/self/maps")))  # noqa: SIM115
        opened.append(
            sum(str(store.path) in str(os.path.realpath(f"/proc/self/fd/{n}")) for n in os.listdir("/proc/self/fd"))
        )
        return tensor

    monkeypatch.setattr(store_module, "read_tensor", looked)
    rows, tokens, blocks = store.rows(hook), store.tokens(), store.blocks()
    store.gather(hook, torch.arange(0, len(store), 5))
    store.moments(hook), store.rows_beyond(2.0, hook), store.rowless(0, 20)
    for batch in store.batches(64, hook=hook):
        assert len(batch) == 64
    assert max(mapped) <= 4 and max(opened) == 0  # two columns, and the next two before the last are let go
    assert len(rows) == len(tokens["context"]) == len(store) and len(blocks) == store.manifest.contexts


@pytest.mark.parametrize("span", [(-1, 5), (3, 2), (0, 10**15)])
def test_rows_that_a_store_lacks_are_refused_before_room_is_made_for_them(tiny_store, span):
    store = open_store(tiny_store)
    for read in (
        lambda: store.rows("blocks.1.hook_out", *span),
        lambda: store.tokens(*span),
        lambda: store.blocks(*span),
    ):
        with pytest.raises(StoreError, match="asked for, it holds 0 to"):
            read()
