"""Text that stands in a store more than once is found, wherever contexts cut its copies."""

import json

import numpy as np
import pytest
import torch

from sae_lm.commands.cache import cache
from sae_lm.comparison.evaluation_set import why_noise_is_unknown
from sae_lm.concepts.text_units import text_units
from sae_lm.data.repeats import RUN, runs, share_in_several, share_seen_before
from sae_lm.data.store import open_store


def drawn(n, seed=0):
    return np.random.default_rng(seed).integers(0, 4096, n, dtype=np.int32)


def test_a_run_is_looked_at_in_every_copy_and_about_one_in_eight_is():
    text = drawn(4000)
    place, hashes = runs(np.concatenate([text, drawn(123, 1), text]))
    assert 0.1 < len(place) / 8123 < 0.15
    twice = set(hashes[place < 4000 - RUN + 1]) & set(hashes[place >= 4123])
    assert len(twice) == sum(place < 4000 - RUN + 1)
    assert len(runs(drawn(RUN - 1))[0]) == 0


def test_runs_are_the_same_if_and_only_if_all_their_tokens_are():
    text = drawn(3000) % 3  # few tokens, so that runs are alike but for one
    place, hashes = runs(text)
    by_hash = {}
    for at, value in zip(place.tolist(), hashes.tolist(), strict=True):
        by_hash.setdefault(value, set()).add(text[at : at + RUN].tobytes())
    assert all(len(texts) == 1 for texts in by_hash.values())
    assert len({next(iter(texts)) for texts in by_hash.values()}) == len(by_hash)


def test_the_share_of_text_in_several_units_is_that_of_the_copies():
    copied, own = drawn(2000), drawn(6000, 1)
    ids = torch.from_numpy(np.concatenate([copied, own, copied]))
    unit = torch.arange(10_000) // 1000
    assert share_in_several(ids, unit) == pytest.approx(0.4, abs=0.05)
    assert share_in_several(ids[:8000], unit[:8000]) == 0
    assert share_in_several(torch.zeros(10, dtype=torch.int32), torch.arange(10)) == 0  # too few to say


def test_the_noise_of_copies_of_one_text_and_of_a_single_context_is_unknown():
    text = drawn(500)
    copies = torch.from_numpy(np.tile(text, 40))
    document, context = torch.arange(20_000) // 500, torch.arange(20_000) // 128
    units = text_units(document, context)
    assert units.kind == "documents"
    assert "100% of the held-out text stands in it more than once" in why_noise_is_unknown(copies, units.of_row)
    assert why_noise_is_unknown(torch.from_numpy(drawn(20_000)), units.of_row) == ""
    one = torch.zeros(128, dtype=torch.long)
    says = "unknown: the held-out rows are of a single context or block of contexts; hold out more text"
    assert says in why_noise_is_unknown(torch.from_numpy(drawn(128)), one)
    three = torch.arange(128) // 50
    assert "of 3 contexts or blocks" in why_noise_is_unknown(torch.from_numpy(drawn(128)), three)


def lines(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def words(seed):
    return " ".join(str(number) for number in np.random.default_rng(seed).integers(0, 10**6, 60))


def test_caching_tells_of_held_out_text_that_stands_before_it(tmp_path, cache_settings, capsys):
    """The share that a store's end has in common with what is before it, against counting runs one by one."""
    distinct = [words(seed) for seed in range(30)]
    text = lines(tmp_path / "copies.jsonl", [*distinct[:20], distinct[3], distinct[20], distinct[5]])
    store = open_store(cache(cache_settings(tmp_path / "store", text=text, tokens=10**5, shard_tokens=2048)))
    assert (
        "of the text of the last 10% of the rows, which training holds out, stands word for word in the rows before it"
        in (capsys.readouterr().out)
    )
    start = round(len(store) * 0.9)
    ids = store.tokens()["token_id"].tolist()
    before = {tuple(ids[i : i + RUN]) for i in range(start - RUN + 1)}
    after = [tuple(ids[i : i + RUN]) for i in range(start, len(ids) - RUN + 1)]
    assert share_seen_before(store, start) == pytest.approx(np.mean([run in before for run in after]), abs=0.1)

    text = lines(tmp_path / "distinct.jsonl", distinct)
    store = open_store(cache(cache_settings(tmp_path / "other", text=text, tokens=10**5, shard_tokens=2048)))
    assert "word for word" not in capsys.readouterr().out
    assert share_seen_before(store, round(len(store) * 0.9)) == 0
    assert share_seen_before(store, len(store) - 40) is None  # too few to say
