"""text -> store -> batches: what is cached, what is refused, what survives a kill."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import TEXTS

import sae_lm
from sae_lm.commands.cache import cache
from sae_lm.commands.verify import verify
from sae_lm.data.batches import row_order, shuffled_batches
from sae_lm.data.manifest import MANIFEST, PROGRESS, RECIPE
from sae_lm.data.partial_store import PartialStore
from sae_lm.data.shards import hook_tensors
from sae_lm.errors import ModelError, SettingsError, StoreError, TextError

pytestmark = pytest.mark.transformer_lens_3


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_row_is_the_models_activation_at_its_token(tiny_store, tiny_model):
    store = sae_lm.open_store(tiny_store)
    model = sae_lm.load_model(str(tiny_model))
    assert len(store) == store.manifest.rows == 1500
    assert store.hooks == {"blocks.0.hook_out": 16, "blocks.1.hook_out": 16}
    blocks, tokens = store.blocks(), store.tokens()
    with torch.inference_mode():
        _, seen = model.run_with_cache(blocks.long(), names_filter=list(store.hooks))
    context, position = tokens["context"].long(), tokens["position"].long()
    assert torch.equal(blocks[context, position], tokens["token_id"])
    for hook in store.hooks:  # batches of another shape move float32 values by about 1e-6
        torch.testing.assert_close(store.rows(hook), seen[hook][context, position], atol=2e-5, rtol=1e-5)


def test_rows_are_exactly_the_tokens_that_are_not_special_in_order(tiny_store):
    store = sae_lm.open_store(tiny_store)
    blocks, tokens = store.blocks(), store.tokens()
    kept = (~store.special(blocks)).nonzero()[:1500]
    assert torch.equal(kept[:, 0].int(), tokens["context"]) and torch.equal(kept[:, 1].int(), tokens["position"])
    assert (blocks[:, 0] == 0).all() and not (tokens["token_id"] == 0).any()
    text = "".join(store.vocabulary[token] for token in tokens["token_id"][tokens["document"] == 1])
    assert text.startswith("Document 1: the quick brown fox number 1 jumps over 7 lazy dogs.")
    assert (tokens["document"].diff() >= 0).all()


def test_the_statistics_are_those_of_the_rows(tiny_store):
    store = sae_lm.open_store(tiny_store)
    rows = store.rows("blocks.1.hook_out").double()
    moments = store.moments("blocks.1.hook_resid_post")
    torch.testing.assert_close(moments.mean, rows.mean(0))
    part = store.moments("blocks.1.hook_out", 777)  # a border within a shard
    torch.testing.assert_close(part.mean, rows[:777].mean(0))
    assert part.mean_squared_norm == pytest.approx(float(rows[:777].square().sum(1).mean()))
    assert store.non_finite("blocks.1.hook_out") == 0
    assert moments.variance == pytest.approx(float((rows - rows.mean(0)).square().sum(1).mean()))


def test_rows_and_gather_read_across_shard_borders(tiny_store):
    store = sae_lm.open_store(tiny_store)
    hook = "blocks.0.hook_out"
    whole = store.rows(hook)
    border = store.first_row[1]
    assert len(store.manifest.shards) > 5
    assert torch.equal(store.rows(hook, border - 3, border + 4), whole[border - 3 : border + 4])
    index = torch.tensor([1499, 0, border, border - 1, 0, 700])
    assert torch.equal(store.gather(hook, index), whole[index])
    with pytest.raises(StoreError, match="holds 0 to 1500"):
        store.rows(hook, 0, 1501)


@pytest.mark.parametrize(("before", "after"), [(0, 0), (3, 1), (24, 8)])
def test_the_text_around_a_row_is_of_its_own_context(tiny_store, before, after):
    store = sae_lm.open_store(tiny_store)
    tokens, blocks, words = store.tokens(), store.blocks(), store.vocabulary
    for row in (0, 7, 14, 15, 700, 1499):
        got, block = store.text_around(row, before, after), blocks[tokens["context"][row]].tolist()
        place = got.position
        assert (got.document, got.context, place) == tuple(
            int(tokens[name][row]) for name in ("document", "context", "position")
        )
        assert got.before == "".join(words[token] for token in block[max(0, place - before) : place])
        assert got.token == words[int(tokens["token_id"][row])]
        assert got.after == "".join(words[token] for token in block[place + 1 : place + 1 + after])
        assert got.tokens == [words[token] for token in block[got.first : place + 1 + after]]
        assert (got.more_before, got.more_after) == (got.first > 0, place + after < 15)


@pytest.mark.parametrize("window_bytes", [1, 20_000, 2 << 30])
def test_every_row_comes_once_per_epoch_whatever_the_window(tiny_store, window_bytes):
    store = sae_lm.open_store(tiny_store)
    hook = "blocks.0.hook_out"
    order = row_order(store, 0, 100, 1300, window_bytes=window_bytes)
    made = shuffled_batches(store, [hook], order, 60, range(40))
    batches = [batch[hook] for batch in made]  # 1200 rows: 20 batches an epoch
    expected = store.rows(hook, 100, 1300).sort(dim=0).values
    for epoch in (batches[:20], batches[20:]):
        assert torch.equal(torch.cat(epoch).sort(dim=0).values, expected)
    assert not torch.equal(torch.cat(batches[:20]), torch.cat(batches[20:]))


def test_the_order_of_batches_depends_on_the_seed_alone(tiny_store):
    store = sae_lm.open_store(tiny_store)
    first, again, other = (torch.cat(list(store.batches(64, seed, hook="blocks.0.hook_out"))) for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_held_out_rows_share_no_context_with_training_rows(tiny_store):
    store = sae_lm.open_store(tiny_store)
    context, row = store.held_out_from(0.2)
    contexts = store.tokens()["context"]
    assert 0.75 < row / len(store) < 0.85
    assert (contexts[:row] < context).all() and (contexts[row:] >= context).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_half_precision_store_is_the_float32_store_rounded(cache_settings, tiny_store, tmp_path, dtype):
    half = sae_lm.open_store(cache(cache_settings(tmp_path / "half", dtype=dtype)))
    full = sae_lm.open_store(tiny_store)
    assert torch.equal(half.rows("blocks.0.hook_out"), full.rows("blocks.0.hook_out").to(getattr(torch, dtype)))


def test_a_whole_store_is_reused_and_another_recipe_refused(cache_settings, tiny_store, capsys):
    before = contents(tiny_store)
    cache(cache_settings(tiny_store))
    assert "reused" in capsys.readouterr().out
    with pytest.raises(StoreError, match="context_size is 16, asked for 8"):
        cache(cache_settings(tiny_store, context_size=8))
    assert contents(tiny_store) == before


@pytest.mark.parametrize("shards_before_the_kill", [0, 1, 5])
def test_an_interrupted_run_continues_to_the_same_bytes(
    cache_settings, tiny_store, tmp_path, monkeypatch, shards_before_the_kill
):
    from sae_lm.data.shards import OpenShard

    real, calls = OpenShard.write, 0

    def dies(*arguments):
        nonlocal calls
        calls += 1
        if calls > shards_before_the_kill:
            raise KeyboardInterrupt
        return real(*arguments)

    out = tmp_path / "store"
    monkeypatch.setattr(OpenShard, "write", dies)
    with pytest.raises(KeyboardInterrupt):
        cache(cache_settings(out))
    assert not (out / MANIFEST).exists() and (out / PROGRESS).exists()
    with pytest.raises(StoreError, match="unfinished"):
        sae_lm.open_store(out)
    monkeypatch.setattr(OpenShard, "write", real)
    cache(cache_settings(out))
    assert contents(out) == contents(tiny_store)


def test_a_text_that_ends_early_is_kept_and_said(cache_settings, tmp_path, capsys):
    store = sae_lm.open_store(cache(cache_settings(tmp_path / "store", tokens=10_000_000)))
    assert "the text ended after" in capsys.readouterr().out
    assert store.manifest.text_ended and store.manifest.documents == 40
    text = "".join(store.vocabulary[token] for token in store.tokens()["token_id"])
    whole = "".join(TEXTS)
    assert whole.startswith(text) and len(text) > len(whole) - 100  # once through, less an incomplete last context


def test_a_text_too_short_for_one_context_is_refused(cache_settings, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("hi")
    with pytest.raises(TextError, match="does not fill one context"):
        cache(cache_settings(tmp_path / "store", text=str(short)))


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"hooks": "blocks.9.hook_out"}, ModelError, "3 layers; residual streams are 0 to 2"),
        ({"hooks": "blocks.1.hook_outt"}, ModelError, "not a hook point"),
        ({"context_size": 64}, SettingsError, "at most 32 tokens"),
        ({"device": "cuda:7"}, SettingsError, "not available"),
        ({"device": "tpu"}, SettingsError, "expected `auto`"),
        ({"hooks": "blocks.0.attn.hook_pattern"}, ModelError, r"shape \[\d, 2, .*expected \[batch, pos, width\]"),
    ],
)
def test_what_the_model_lacks_is_named_before_anything_is_written(cache_settings, tmp_path, changes, error, says):
    out = tmp_path / "store"
    with pytest.raises(error, match=says):
        cache(cache_settings(out, **changes))
    assert not out.exists()


def test_a_retrained_local_model_is_another_recipe(cache_settings, tiny_model, tmp_path):
    from safetensors.torch import load_file, save_file

    model = shutil.copytree(tiny_model, tmp_path / "model")
    cache(cache_settings(tmp_path / "store", model=str(model), tokens=100))
    tensors = load_file(model / "model.safetensors")
    save_file({name: tensor * 1.5 for name, tensor in tensors.items()}, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(StoreError, match="files_sha256"):
        cache(cache_settings(tmp_path / "store", model=str(model), tokens=100))


def test_a_tokenizer_without_bos_is_taken_as_it_is(cache_settings, tiny_model, tmp_path):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(
        json.dumps({k: v for k, v in config.items() if k not in ("bos_token", "eos_token")})
    )
    with pytest.raises(ModelError, match="no BOS token; give --no-prepend-bos"):
        cache(cache_settings(tmp_path / "store", model=str(model)))
    out = cache(cache_settings(tmp_path / "store", model=str(model), prepend_bos=False))
    store = sae_lm.open_store(out)
    assert store.manifest.recipe.bos is store.manifest.recipe.separator is None
    assert len(store.tokens()["token_id"]) == 1500 and int(store.tokens()["token_id"].max()) < 300


def test_what_a_kill_between_commit_and_end_leaves_is_cleared(cache_settings, copied_store):
    (copied_store / PROGRESS).mkdir()
    (copied_store / RECIPE).write_text("{}")
    assert verify(copied_store) == []  # the store is whole
    cache(cache_settings(copied_store))
    assert not (copied_store / PROGRESS).exists()


def test_the_end_of_one_run_and_the_start_of_another_may_fall_together(cache_settings, tmp_path, monkeypatch):
    """The other sees the store committed and clears the notes of work, or it makes its lock as they are cleared."""
    real_end, real_mkdir, vanished = PartialStore.end, Path.mkdir, []

    def end(self):
        shutil.rmtree(self.out / PROGRESS)
        real_end(self)

    def mkdir(self, *given, **more):
        real_mkdir(self, *given, **more)
        if self.name == PROGRESS and not vanished:
            vanished.append(self.rmdir())

    left = tmp_path / "store" / "sae_lm.probe.x.part"  # by a kill while the disk was tried
    left.mkdir(parents=True)
    (left / "probe").write_text("")
    os.utime(left, (left.stat().st_mtime - 5,) * 2)
    monkeypatch.setattr(PartialStore, "end", end)
    monkeypatch.setattr(Path, "mkdir", mkdir)
    assert verify(cache(cache_settings(tmp_path / "store"))) == []
    assert vanished and not (tmp_path / "store" / PROGRESS).exists()


@pytest.mark.parametrize("content", ["{}", "[]", '{"recipe": {"model": {}}}'])
def test_a_progress_file_that_is_not_understood_is_one_sentence(cache_settings, copied_store, content):
    (copied_store / MANIFEST).unlink()
    (copied_store / PROGRESS).mkdir()
    (copied_store / RECIPE).write_text(content)
    with pytest.raises(StoreError, match="progress"):
        cache(cache_settings(copied_store))


def test_a_folder_of_something_else_is_left_alone(cache_settings, tmp_path):
    (tmp_path / "thesis.txt").write_text("do not touch")
    with pytest.raises(StoreError, match="not empty"):
        cache(cache_settings(tmp_path))
    assert contents(tmp_path) == {"thesis.txt": b"do not touch"}


def test_not_enough_disk_is_said_before_the_run(cache_settings, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(StoreError, match="the disk has 0.0 GB free"):
        cache(cache_settings(tmp_path / "store"))


def test_a_non_finite_activation_stops_the_run_and_names_hook_and_document(cache_settings, tmp_path, tiny_model):
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    weights = load_file(broken / "model.safetensors")
    weights["transformer.wpe.weight"][5] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StoreError, match=r"hook blocks.0.hook_out gave a NaN .* document 0, token id"):
        cache(cache_settings(tmp_path / "store", model=str(broken)))


@pytest.fixture
def copied_store(tiny_store, tmp_path):
    return shutil.copytree(tiny_store, tmp_path / "copy")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: {**m, "version": 99}, "format version 99, this program reads 2"),
        (lambda m: {**m, "rows": "many"}, "malformed at rows"),
        (lambda m: {**m, "files": {"../../etc/passwd": {"bytes": 1, "sha256": ""}}}, "outside the store"),
        (lambda m: [], "holds a JSON list"),
        (lambda m: {**m, "shards": []}, "lists no shards"),
        (lambda m: {**m, "recipe": {**m["recipe"], "hooks": {"../evil": 16}}}, "no file of ../evil"),
    ],
)
def test_a_manifest_that_is_not_understood_is_refused(copied_store, change, says):
    manifest = json.loads((copied_store / MANIFEST).read_text())
    (copied_store / MANIFEST).write_text(json.dumps(change(manifest)))
    with pytest.raises(StoreError, match=says):
        sae_lm.open_store(copied_store)


def test_a_half_written_manifest_is_not_taken_for_one(copied_store):
    text = (copied_store / MANIFEST).read_text()
    (copied_store / MANIFEST).write_text(text[: len(text) // 2])
    with pytest.raises(StoreError, match="cannot be read as JSON"):
        sae_lm.open_store(copied_store)


def test_a_missing_store_and_a_hook_it_lacks_are_named(tiny_store, tmp_path):
    with pytest.raises(StoreError, match="does not exist; write one with sae-lm cache"):
        sae_lm.open_store(tmp_path / "nothing")
    store = sae_lm.open_store(tiny_store)
    with pytest.raises(StoreError, match="no hook 'blocks.2.hook_out'; it holds blocks.0.hook_out, blocks.1.hook_out"):
        store.hook("blocks.2.hook_out")
    with pytest.raises(StoreError, match="several hooks"):
        store.hook()


def test_the_manifest_names_no_path_of_this_machine(tiny_store, tiny_model):
    text = (tiny_store / MANIFEST).read_text()
    assert str(tiny_model.parent) not in text and str(tiny_store) not in text


def test_rows_that_are_not_finite_are_counted():
    rows = torch.tensor([[1.0, 2.0], [float("nan"), 0.0], [float("inf"), 1.0]])
    tensors = hook_tensors(rows)
    assert int(tensors["non_finite"]) == 2 and len(tensors["rows"]) == 3


def test_rows_by_numbers_that_a_store_lacks_and_moments_of_none_are_refused(tiny_store):
    store = sae_lm.open_store(tiny_store)
    for numbers in ([0, len(store)], [-1, 0], [10**12]):
        with pytest.raises(StoreError, match="asked for, it holds 0 to"):
            store.gather("0", torch.tensor(numbers))
    assert len(store.gather("0", torch.tensor([], dtype=torch.long))) == 0
    for stop in (0, -1, len(store) + 1):
        with pytest.raises(StoreError, match="asked for, it holds 0 to"):
            store.moments("0", stop)
