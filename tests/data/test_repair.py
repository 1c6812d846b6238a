"""Damaged files of a store are cached again, to the bytes they had, and no others are touched."""

import hashlib
import json
import shutil

import pytest

import sae_lm
from sae_lm.cli import main
from sae_lm.commands.cache import cache
from sae_lm.data import tokens, writer
from sae_lm.data.manifest import read_manifest, write_manifest
from sae_lm.data.repair import repair
from sae_lm.data.writer import ShardMaker
from sae_lm.errors import StoreError


@pytest.fixture
def copied_store(tiny_store, tmp_path):
    return shutil.copytree(tiny_store, tmp_path / "copy")


def tokenizer_of(model):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_repair_caches_the_damaged_shards_again_and_only_those(copied_store, tiny_store, tiny_model, text_file, capsys):
    hook = copied_store / "blocks.1.hook_out"
    last = max(hook.iterdir())
    for victim in (hook / "00002.safetensors", copied_store / "tokens" / "00002.safetensors", last):
        victim.write_bytes(b"\0" * 100)
    (copied_store / "vocabulary.json").unlink()
    untouched = {p: p.stat().st_mtime_ns for p in hook.iterdir() if p.name not in ("00002.safetensors", last.name)}
    assert main(["verify", str(copied_store)]) == 1
    assert main(["verify", str(copied_store), "--repair"]) == 2
    assert "cached from a local model named 'tiny-gpt2'; give its folder with --model" in capsys.readouterr().err
    assert main(["verify", str(copied_store), "--repair", "--model", str(tiny_model), "--text", str(text_file)]) == 0
    said = capsys.readouterr().out
    assert said.count("cached again") == 3 and "vocabulary.json: written again" in said and said.endswith("whole\n")
    assert contents(copied_store) == contents(tiny_store)
    assert untouched == {p: p.stat().st_mtime_ns for p in untouched}


def test_repair_from_another_text_is_refused_and_changes_nothing(copied_store, tiny_model, text_file, tmp_path, capsys):
    (copied_store / "tokens" / "00001.safetensors").unlink()
    other = tmp_path / text_file.name
    other.write_text(text_file.read_text().replace("fox", "ox"))
    before = contents(copied_store)
    assert main(["verify", str(copied_store), "--repair", "--model", str(tiny_model), "--text", str(other)]) == 2
    said = capsys.readouterr().err
    assert "was cached from something else: text.fingerprint is" in said and "delete" not in said
    assert "give the model and the text that it was cached from with --model and --text" in said
    assert contents(copied_store) == before


def test_repair_from_a_model_whose_folder_has_another_name_gives_the_bytes_back(
    copied_store, tiny_store, tiny_model, text_file, tmp_path
):
    (copied_store / "tokens" / "00001.safetensors").unlink()
    moved = shutil.copytree(tiny_model, tmp_path / "moved here")
    assert main(["verify", str(copied_store), "--repair", "--model", str(moved), "--text", str(text_file)]) == 0
    assert contents(copied_store) == contents(tiny_store)


@pytest.fixture
def of_an_earlier_version(copied_store, text_file):
    """A store whose fingerprint takes in the file's name, as all did."""
    content = text_file.read_bytes()
    named = hashlib.sha256(f"{text_file.name}\n{len(content)}\n".encode() + content).hexdigest()
    manifest = read_manifest(copied_store)
    text = {**manifest.recipe.text, "fingerprint": named}
    write_manifest(
        copied_store, manifest.model_copy(update={"recipe": manifest.recipe.model_copy(update={"text": text})})
    )
    return copied_store


@pytest.mark.parametrize("earlier", [False, True])
def test_repair_from_a_text_whose_file_has_another_name_gives_the_bytes_back(
    copied_store, tiny_model, text_file, tmp_path, earlier, request
):
    store = request.getfixturevalue("of_an_earlier_version") if earlier else copied_store
    before = contents(store)
    (store / "tokens" / "00001.safetensors").unlink()
    moved = shutil.copy(text_file, tmp_path / "moved here.jsonl")
    assert main(["verify", str(store), "--repair", "--model", str(tiny_model), "--text", str(moved)]) == 0
    assert contents(store) == before


def test_a_store_of_an_earlier_version_is_reused_and_its_text_known_again(
    of_an_earlier_version, cache_settings, text_file, tmp_path, capsys
):
    before = contents(of_an_earlier_version)
    settings = cache_settings(of_an_earlier_version)
    assert cache(settings) == of_an_earlier_version and "is there already; reused" in capsys.readouterr().out
    assert contents(of_an_earlier_version) == before
    other = tmp_path / text_file.name
    other.write_text(text_file.read_text().replace("fox", "ox"))
    with pytest.raises(StoreError, match="text.fingerprint is"):
        cache(settings.model_copy(update={"text": str(other)}))


def test_repair_of_a_store_without_packing_with_sinks_dropped_gives_its_bytes_back(cache_settings, tmp_path, capsys):
    settings = cache_settings(tmp_path / "store", pack=False, drop_sinks=1.2, tokens=900)
    before = contents(cache(settings))
    for file in (settings.out / "blocks.0.hook_out").iterdir():
        file.unlink()
    assert main(["verify", str(settings.out), "--repair", "--model", settings.model, "--text", settings.text]) == 0
    assert contents(settings.out) == before


def test_repair_asks_for_no_text_where_tokens_are_whole(copied_store, tiny_store, tiny_model, capsys):
    victim = copied_store / "blocks.1.hook_out" / "00002.safetensors"
    victim.write_bytes(b"\0" * 100)
    (copied_store / "vocabulary.json").unlink()
    assert main(["verify", str(copied_store), "--repair"]) == 2
    assert "cached from a local model named 'tiny-gpt2'; give its folder with --model" in capsys.readouterr().err
    assert main(["verify", str(copied_store), "--repair", "--model", str(tiny_model)]) == 0
    assert contents(copied_store) == contents(tiny_store)
    (copied_store / "tokens" / "00002.safetensors").unlink()
    assert main(["verify", str(copied_store), "--repair", "--model", str(tiny_model)]) == 2
    assert "a local text named 'documents.jsonl'; give its path with --text" in capsys.readouterr().err


def test_repair_of_the_statistics_asks_for_neither_model_nor_text(copied_store, tiny_store):
    (copied_store / "stats.safetensors").unlink()
    assert main(["verify", str(copied_store), "--repair"]) == 0
    assert contents(copied_store) == contents(tiny_store)


def test_statistics_and_vocabulary_of_a_merged_store_are_written_again(
    cache_settings, tiny_store, tiny_model, tmp_path, capsys
):
    text = tmp_path / "other.jsonl"
    text.write_text(json.dumps({"text": "Quite another story about a cat and a mat. " * 20}) + "\n")
    other = cache(cache_settings(tmp_path / "other", text=str(text), tokens=100))
    both = str(tmp_path / "both")
    assert main(["merge", str(tiny_store), str(other), "--out", both]) == 0
    before = contents(tmp_path / "both")
    for name in ("stats.safetensors", "vocabulary.json"):
        (tmp_path / "both" / name).unlink()
    assert main(["verify", both, "--repair", "--model", str(tiny_model)]) == 0
    assert contents(tmp_path / "both") == before
    (tmp_path / "both" / "tokens" / "00000.safetensors").unlink()
    assert main(["verify", both, "--repair", "--model", str(tiny_model)]) == 2
    assert "was merged from several stores; repair those" in capsys.readouterr().err


@pytest.mark.parametrize("changes", [{}, {"pack": False}, {"drop_sinks": 1.2}, {"pack": False, "drop_sinks": 1.2}])
def test_repair_of_activations_tokenizes_nothing(cache_settings, tmp_path, monkeypatch, changes):
    settings = cache_settings(tmp_path / "store", tokens=900, **changes)
    before = contents(cache(settings))
    for folder in sae_lm.open_store(settings.out).hooks:
        for file in sorted((settings.out / folder).iterdir())[: -1 if "drop_sinks" in changes else None]:
            file.unlink()
    monkeypatch.setattr(ShardMaker, "stream", lambda *given, **named: pytest.fail("tokens are made again"))
    assert len(repair(settings.out, settings.model, settings.text)) > 10
    assert contents(settings.out) == before


def test_repair_reads_the_text_where_padding_is_not_told_from_what_a_document_ends_with(cache_settings, tmp_path):
    text = tmp_path / "text.jsonl"
    tokenizer = tokenizer_of(cache_settings(tmp_path).model)
    end = tokenizer.eos_token or tokenizer.bos_token
    text.write_text("".join(json.dumps({"text": f"The quick fox{end * (n % 4)}"}) + "\n" for n in range(80)))
    settings = cache_settings(tmp_path / "store", text=str(text), tokens=200, pack=False)
    before = contents(cache(settings))
    for file in (settings.out / "blocks.0.hook_out").iterdir():
        file.unlink()
    repair(settings.out, settings.model, settings.text)
    assert contents(settings.out) == before


def test_repair_of_two_shards_far_apart_tokenizes_no_document_between_them(cache_settings, tmp_path, monkeypatch):
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": f"The fox {n} jumps. " * 12}) + "\n" for n in range(60)))
    settings = cache_settings(tmp_path / "store", text=str(text), tokens=3000, shard_tokens=48)
    before = contents(cache(settings))
    shards = sorted((settings.out / "tokens").iterdir())
    assert len(shards) > 50
    for victim in (shards[3], shards[-3]):
        victim.unlink()
    given, real = [], tokens._cut

    def cut(*arguments):
        for index, piece in real(*arguments):
            given.append(index)
            yield index, piece

    monkeypatch.setattr(tokens, "_cut", cut)
    monkeypatch.setattr(tokens, "PIECES_PER_CALL", 1)
    repair(settings.out, settings.model, settings.text)
    assert contents(settings.out) == before
    assert len(given) < 8 and max(given) > 20


def test_repair_gives_a_shard_back_whose_last_context_has_no_row(cache_settings, tmp_path):
    text = tmp_path / "text.jsonl"
    short = ["fox", "The quick brown fox jumps over the lazy dog and the cat"]
    text.write_text("".join(json.dumps({"text": short[n % 2]}) + "\n" for n in range(80)))
    settings = cache_settings(tmp_path / "store", text=str(text), tokens=400, pack=False)
    store = sae_lm.open_store(cache(settings))
    tokens_of, norms = store.tokens(), store.rows("0").norm(dim=1)
    limit = float(norms[tokens_of["document"] == 0].min()) * 0.999  # the tokens of every second document are sinks
    last = int(tokens_of["context"][tokens_of["document"] == 10][0])
    shutil.rmtree(settings.out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShardMaker, "sink_norms", lambda self: {"blocks.0.hook_out": limit})
        changes = {"drop_sinks": 1.5, "tokens": 100_000, "shard_tokens": (last + 1) * 16}
        before = contents(cache(settings.model_copy(update=changes)))
    first = sae_lm.open_store(settings.out)
    assert int(first.tokens()["context"][first.first_row[1] - 1]) < first.first_context[1] - 1
    for folder in ("tokens", "blocks.0.hook_out"):
        (settings.out / folder / "00000.safetensors").unlink()
    repair(settings.out, settings.model, settings.text)
    assert contents(settings.out) == before


@pytest.fixture
def with_a_borderline_sink(cache_settings, tmp_path, monkeypatch):
    """Settings of a store with a token in each shard whose norm is barely beyond the limit; with the next model it is not."""
    settings = cache_settings(tmp_path / "store", tokens=900, shard_tokens=160)
    lengths = sae_lm.open_store(cache(settings)).rows("0").norm(dim=1)
    shutil.rmtree(settings.out)
    limit = float(lengths.sort().values[-200]) * 0.9999
    monkeypatch.setattr(ShardMaker, "sink_norms", lambda self: {"blocks.0.hook_out": limit})
    settings = settings.model_copy(update={"drop_sinks": 1.2, "tokens": 600})
    cache(settings)
    real = writer.norms
    monkeypatch.setattr(writer, "norms", lambda rows: real(rows) * 0.99)  # as other hardware may round, only more
    return settings


@pytest.mark.parametrize("shard", [0, 1, -1])
def test_repair_keeps_the_rows_of_the_store_where_a_token_is_a_sink_no_more(with_a_borderline_sink, shard):
    settings = with_a_borderline_sink
    before = contents(settings.out)
    sorted((settings.out / "blocks.0.hook_out").iterdir())[shard].unlink()
    (line,) = repair(settings.out, settings.model, settings.text)
    assert line.endswith(": cached again") and contents(settings.out) == before


def test_repair_writes_nothing_where_the_tokens_are_gone_that_told_which_rows_there_were(with_a_borderline_sink):
    settings = with_a_borderline_sink
    for folder in ("blocks.0.hook_out", "tokens"):
        (settings.out / folder / "00001.safetensors").unlink()
    before = contents(settings.out)
    with pytest.raises(StoreError, match="tokens/00001.safetensors comes out otherwise than before; .* a sink"):
        repair(settings.out, settings.model, settings.text)
    assert contents(settings.out) == before
