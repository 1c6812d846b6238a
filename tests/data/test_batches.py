"""The order of rows: once per epoch, from any batch on, split over ranks, mixed well."""

import threading
from inspect import unwrap

import pytest
import torch

import sae_lm
from sae_lm.data.batches import Slice, row_order, shuffle_quality, shuffled_batches
from sae_lm.data.norms import add_histograms, norm_histogram, norm_quantiles
from sae_lm.errors import SettingsError, StoreError
from sae_lm.runtime.threads import WriteBehind, read_ahead

HOOK = "blocks.1.hook_out"
WINDOWS = [500, 20_000, 1 << 30]


@pytest.fixture
def store(tiny_store):
    return sae_lm.open_store(tiny_store)


def make(store, window_bytes=1 << 30, columns=(HOOK,), batches=45, first=0, rank=0, world_size=1):
    order = row_order(store, 5, 50, 1450, window_bytes=window_bytes)
    made = shuffled_batches(store, columns, order, 64, range(first, batches), Slice(rank, world_size))
    return [batch if len(columns) > 1 else batch[columns[0]] for batch in made]


@pytest.mark.parametrize("window_bytes", WINDOWS)
def test_reading_can_begin_at_any_batch(store, window_bytes):
    whole = make(store, window_bytes)  # 1400 rows: batches cross windows and epochs
    assert len(whole) == 45
    for first in (1, 7, 21, 22, 44):
        again = make(store, window_bytes, first=first)
        assert len(again) == 45 - first
        assert all(torch.equal(a, b) for a, b in zip(again, whole[first:], strict=True))
    assert make(store, window_bytes, first=45) == []


@pytest.mark.parametrize("window_bytes", WINDOWS)
@pytest.mark.parametrize("size", [2, 4])
def test_ranks_read_slices_of_the_same_batches(store, window_bytes, size):
    whole = make(store, window_bytes)
    shares = [make(store, window_bytes, rank=rank, world_size=size) for rank in range(size)]
    for batch, parts in zip(whole, zip(*shares, strict=True), strict=True):
        assert torch.equal(torch.cat(parts), batch)
    with pytest.raises(SettingsError, match="batch_size is 64, which does not divide among 3 processes"):
        make(store, world_size=3)


def test_steps_end_the_batches_within_an_epoch_or_after_several(store):
    epochs = list(store.batches(64, seed=5, hook=HOOK, epochs=3, start=50, stop=1450))
    assert len(epochs) == 3 * 1400 // 64
    for steps in (0, 3, 22, 64):
        batches = list(store.batches(64, seed=5, hook=HOOK, steps=steps, start=50, stop=1450, first=min(2, steps)))
        assert len(batches) == max(0, steps - 2)
        assert all(torch.equal(a, b) for a, b in zip(batches, epochs[2:], strict=False))


def test_columns_of_a_batch_are_of_the_same_tokens(store):
    rows, tokens = store.rows(HOOK), store.tokens()
    number = {(int(c), int(p)): i for i, (c, p) in enumerate(zip(tokens["context"], tokens["position"], strict=True))}
    columns = ["blocks.1.hook_resid_post", "token_id", "context", "position", "document"]
    for batch in store.batches(128, seed=1, columns=columns, start=100):
        index = [number[int(c), int(p)] for c, p in zip(batch["context"], batch["position"], strict=True)]
        assert min(index) >= 100
        assert torch.equal(batch[HOOK], rows[index])
        for name in ("token_id", "document"):
            assert torch.equal(batch[name], tokens[name][index])


def test_which_columns_are_read_does_not_change_the_order(store):
    some = [batch["token_id"] for batch in make(store, 4000, ["token_id", HOOK])]
    other = [batch["token_id"] for batch in make(store, 4000, ["token_id", "document", "blocks.0.hook_out", HOOK])]
    assert all(torch.equal(a, b) for a, b in zip(some, other, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(some, make(store, 4000, ["token_id"]), strict=True))


def test_batches_are_asked_for_in_bounds(store):
    with pytest.raises(SettingsError, match="expected 0 <= start < stop <= 1500"):
        store.batches(8, hook=HOOK, start=20, stop=1501)
    for below in ({"first": -2, "steps": 1}, {"epochs": -1}, {"steps": -1}):
        with pytest.raises(SettingsError, match="(first -2|epochs -1|steps -1).* no other below 0"):
            store.batches(8, hook=HOOK, **below)
    with pytest.raises(StoreError, match="holds blocks.0.hook_out"):
        store.batches(8, columns=["tokens"])
    with pytest.raises(StoreError, match=r"rows\(start=..., stop=...\)"):
        unwrap(type(store).hook)(store, 0)  # as in store.rows(0, 5), where no type checker is on


def test_batches_mix_documents_and_the_figure_tells_when_they_do_not(store, monkeypatch):
    assert shuffle_quality(store, 100, window_bytes=1 << 30) == pytest.approx(1, abs=0.06)
    assert shuffle_quality(store, 100, window_bytes=100 * 64) == pytest.approx(
        1, abs=0.06
    )  # a window as large as a batch
    monkeypatch.setattr("sae_lm.data.batches.PIECES", 1)  # neighbouring rows, in order of the text
    assert shuffle_quality(store, 100, window_bytes=100 * 64) < 0.5
    with pytest.raises(SettingsError, match="more than the 1500 rows"):
        shuffle_quality(store, 2000)


def test_closing_a_reader_ends_its_thread(store):
    before = set(threading.enumerate())
    batches = store.batches(64, hook=HOOK, epochs=50)
    next(batches)
    (reader,) = set(threading.enumerate()) - before
    batches.close()
    assert not reader.is_alive() and set(threading.enumerate()) <= before


def test_reading_ahead_keeps_order_raises_in_place_and_stays_within_its_depth():
    made = []

    def numbers():
        for i in range(10):
            made.append(i)
            yield i
        raise KeyError("ten")

    got = []
    with pytest.raises(KeyError, match="ten"):
        for i in read_ahead(numbers(), 2):
            assert len(made) <= i + 4
            got.append(i)
    assert got == list(range(10))


def test_writing_behind_does_nothing_after_a_failure():
    done = []

    def work(i):
        if i == 3:
            raise ValueError("three")
        done.append(i)

    with pytest.raises(ValueError, match="three"), WriteBehind(2) as writer:
        for i in range(50):
            writer.submit(work, i)
    assert done == [0, 1, 2]
    with WriteBehind(2) as writer:
        for i in range(4, 9):
            writer.submit(work, i)
    assert done == [0, 1, 2, 4, 5, 6, 7, 8]


def test_quantiles_of_norms_are_within_a_percent_of_the_exact_ones(store):
    norms = torch.randn(5000, generator=torch.Generator().manual_seed(0)).exp() * 40
    bins, counts = add_histograms([norm_histogram(part) for part in norms.split(777)])
    assert int(counts.sum()) == 5000
    shares = [0.0, 0.01, 0.25, 0.5, 0.99, 1.0]
    exact = norms.double().sort().values[[max(1, round(share * 5000)) - 1 for share in shares]]
    torch.testing.assert_close(norm_quantiles(bins, counts, shares), exact, rtol=0.008, atol=0)
    rows = store.rows(HOOK).norm(dim=1)
    assert store.norm_quantiles(HOOK)[0.5] == pytest.approx(float(rows.median()), rel=0.01)
    assert store.norm_quantiles(HOOK)[1.0] == pytest.approx(float(rows.max()), rel=0.01)
