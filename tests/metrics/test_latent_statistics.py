"""Codes on disk, and what one pass makes of them: beside plain loops, in any order, after kills."""

import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hand_made import HOOK, WORDS, random_contexts, random_sae, write_store

from sae_lm.data.store import Store
from sae_lm.metrics import stored_codes
from sae_lm.metrics.latent_statistics import (
    BINS,
    QUANTILE_BINS,
    SAMPLED,
    Lowest,
    latent_statistics,
    quantile_groups,
    row_priority,
)
from sae_lm.metrics.stored_codes import StoredCodes, store_codes
from sae_lm.runtime.files import PART
from sae_lm.runtime.locks import has_locks
from sae_lm.sae.model import SAE

D_SAE = 12


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return write_store(tmp_path / "store", random_contexts(40, 9, 0), per_shard=7, scale=0.01)


def dense(store: Store, sae: SAE, start: int = 0) -> np.ndarray:
    return sae.encode(store.rows(HOOK, start).to(sae.W_enc)).numpy()


def encoded(store: Store, folder: Path, start: int = 0, seed: int = 1) -> tuple[SAE, StoredCodes]:
    sae = random_sae(len(WORDS), D_SAE, 3, seed)
    return sae, store_codes(store, HOOK, sae, start, len(store), folder)


@pytest.mark.parametrize(("start", "part_rows"), [(0, 10**6), (0, 50), (5, 1), (201, 64)])
def test_stored_codes_are_the_sparse_rows_of_the_dense_ones(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: int, part_rows: int
) -> None:
    monkeypatch.setattr(stored_codes, "PART_ROWS", part_rows)
    sae, codes = encoded(store, tmp_path, start)
    rows = [part.matrix(D_SAE).toarray() for part in codes.parts()]
    assert np.allclose(np.concatenate(rows), dense(store, sae, start), atol=1e-6)
    assert [part.first for part in codes.parts()] == list(range(start, len(store), part_rows))
    some = np.array([start, start + 3, len(store) - 1])
    assert np.allclose(codes.gather(some).matrix(D_SAE).toarray(), dense(store, sae)[some], atol=1e-6)


def test_rows_are_encoded_in_batches_of_bounded_size(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, before = [], SAE.pre_activations
    monkeypatch.setattr(SAE, "pre_activations", lambda self, x: sizes.append(len(x)) or before(self, x))
    monkeypatch.setattr(stored_codes, "BATCH_ROWS", 7)
    encoded(store, tmp_path)
    assert sizes and max(sizes) <= 7


def test_a_second_call_encodes_nothing_and_a_killed_one_goes_on(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_codes, "PART_ROWS", 50)
    calls, encode = [], stored_codes._encode
    monkeypatch.setattr(stored_codes, "_encode", lambda *of: calls.append(of[3]) or encode(*of))
    _, codes = encoded(store, tmp_path)
    files = {file.name: file.read_bytes() for file in codes.folder.iterdir()}
    assert calls == list(range(0, len(store), 50))
    encoded(store, tmp_path)
    assert len(calls) == len(codes.firsts), "nothing anew"
    # a kill leaves a part half written, or absent; a damaged one is made again
    (codes.folder / f"00001.safetensors{PART}").write_bytes(b"half")
    (codes.folder / "00002.safetensors").unlink()
    (codes.folder / "00003.safetensors").write_bytes(files["00003.safetensors"][:200])
    calls.clear()
    _, again = encoded(store, tmp_path)
    assert calls == [100, 150]
    assert {file.name: file.read_bytes() for file in again.folder.iterdir() if file.suffix != PART} == files


@pytest.mark.skipif(not has_locks(), reason="nobody is kept out there")
def test_two_at_once_store_the_same_codes_each_part_once(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_codes, "PART_ROWS", 100)
    calls, encode, save = [], stored_codes._encode, stored_codes.save_file
    monkeypatch.setattr(stored_codes, "_encode", lambda *of: calls.append(of[3]) or encode(*of))
    monkeypatch.setattr(stored_codes, "save_file", lambda *of, **more: (save(*of, **more), time.sleep(0.05)))
    with ThreadPoolExecutor(2) as pool:
        codes = [codes for _, codes in pool.map(lambda _: encoded(store, tmp_path), range(2))]
    assert sorted(calls) == list(range(0, len(store), 100))
    assert [len(part) for one in codes for part in one.parts()] == [len(part) for part in codes[0].parts()] * 2
    assert not list(tmp_path.rglob(f"*{PART}"))


def test_codes_of_other_weights_rows_or_stores_lie_in_folders_of_their_own(store: Store, tmp_path: Path) -> None:
    folders = {encoded(store, tmp_path)[1].folder, encoded(store, tmp_path, seed=2)[1].folder}
    folders.add(encoded(store, tmp_path, start=9)[1].folder)
    other = write_store(tmp_path / "other", random_contexts(40, 9, 1))
    folders.add(encoded(other, tmp_path)[1].folder)
    assert len(folders) == 4


class Plain:
    """The slow twin: one row after the other."""

    def __init__(self, store: Store, z: np.ndarray, start: int, contexts: int) -> None:
        columns = store.tokens(start)
        context, token = columns["context"].tolist(), columns["token_id"].tolist()
        rows = [start + i for i in range(len(z))]
        self.sample, self.top, self.tokens = [], [], []
        for latent in range(z.shape[1]):
            firing = [(int(row_priority(np.array([row]))[0]), row) for i, row in enumerate(rows) if z[i, latent] > 0]
            self.sample.append([row for _, row in sorted(firing)[:SAMPLED]])
            best: dict[int, tuple[float, int]] = {}
            for i, row in enumerate(rows):
                value = float(z[i, latent])
                if value > 0 and value > best.get(context[i], (0.0, 0))[0]:
                    best[context[i]] = (value, row)
            self.top.append([row for _, row in sorted(best.values(), key=lambda hit: (-hit[0], hit[1]))[:contexts]])
            counts: dict[int, int] = {}
            for i in range(len(rows)):
                if z[i, latent] > 0:
                    counts[token[i]] = counts.get(token[i], 0) + 1
            self.tokens.append(counts)


@pytest.mark.parametrize(("start", "part_rows"), [(0, 10**6), (0, 13), (5, 40), (201, 1)])
def test_the_pass_agrees_with_one_row_after_the_other(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: int, part_rows: int
) -> None:
    monkeypatch.setattr(stored_codes, "PART_ROWS", part_rows)
    _, codes = encoded(store, tmp_path, start)
    columns = store.tokens(start)
    token, context = columns["token_id"].numpy(), columns["context"].numpy()
    places = np.stack([token == 1, token > 3], 1)
    made = latent_statistics(codes, D_SAE, start, token, context, len(WORDS), places, 5)
    z = np.concatenate([part.matrix(D_SAE).toarray() for part in codes.parts()])
    plain = Plain(store, z, start, 5)
    assert made.rows == len(z)
    assert np.array_equal(made.fires, (z > 0).sum(0))
    assert np.allclose(made.total, z.sum(0)) and np.allclose(made.squares, np.square(z).sum(0))
    assert np.array_equal(made.largest, z.max(0))
    assert np.array_equal(made.histogram.sum(1), made.fires)
    for latent, value in itertools.product(range(D_SAE), z[z > 0][:20]):
        expected = int(np.floor(np.log2(value) * 2)) + BINS // 2
        inside = (np.floor(np.log2(z[z[:, latent] > 0, latent]) * 2) + BINS // 2 == expected).sum()
        assert made.histogram[latent, expected] == inside
    for latent in range(D_SAE):
        assert made.sample.rows_of(latent).tolist() == plain.sample[latent]
        assert made.top.rows_of(latent).tolist() == plain.top[latent]
        assert {t: n for t, n in enumerate(made.tokens.toarray()[latent].tolist()) if n} == plain.tokens[latent]
    assert np.array_equal(made.places, (z > 0).T.astype(int) @ places)
    assert made.place_rows.tolist() == places.sum(0).tolist()
    assert np.array_equal(made.token_rows, np.bincount(token, minlength=len(WORDS)))


def test_what_is_drawn_depends_neither_on_the_order_of_the_parts_nor_on_their_size(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = store.tokens()
    token, context = columns["token_id"].numpy(), columns["context"].numpy()
    none = np.zeros((len(store), 0), bool)
    results = []
    for part_rows, order in ((10**6, 1), (30, 1), (30, -1), (17, -1)):
        monkeypatch.setattr(stored_codes, "PART_ROWS", part_rows)
        _, codes = encoded(store, tmp_path / str(part_rows))
        parts = list(codes.parts())[::order]
        made = latent_statistics(parts, D_SAE, 0, token, context, len(WORDS), none, 4)
        results.append((made.sample.row, made.top.row, made.top.value, made.tokens.toarray()))
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_the_random_rows_are_a_fair_sample() -> None:
    rows = np.arange(200_000)
    drawn = rows[np.argsort(row_priority(rows))[:20_000]]
    assert abs(drawn.mean() / rows.mean() - 1) < 0.02
    assert abs((drawn % 2).mean() - 0.5) < 0.02 and abs((drawn % 128 == 5).mean() * 128 - 1) < 0.25
    assert len(np.unique(row_priority(rows))) == len(rows)


def test_lowest_keeps_one_row_of_a_context_even_where_contexts_come_in_pieces() -> None:
    kept = Lowest(1, 2, np.float32, one_per_context=True)
    one = np.zeros(1, np.int64)
    for row, (value, context) in enumerate([(1.0, 7), (3.0, 8), (2.0, 7), (2.5, 8), (0.5, 9)]):
        kept.add(one, np.array([-value], np.float32), np.array([row]), np.array([value], np.float32), one + context)
    assert kept.rows_of(0).tolist() == [1, 2] and kept.value[0].tolist() == [3.0, 2.0]


def test_quantiles_hold_equally_many_and_rise() -> None:
    values = torch.rand(43, generator=torch.Generator().manual_seed(0)).numpy()
    groups = quantile_groups(values)
    counts = np.bincount(groups)
    assert len(counts) == QUANTILE_BINS and counts.max() - counts.min() <= 1
    edges = [(values[groups == q].min(), values[groups == q].max()) for q in range(QUANTILE_BINS)]
    assert all(low[1] <= high[0] for low, high in itertools.pairwise(edges))
    assert quantile_groups(np.zeros(0)).tolist() == []
