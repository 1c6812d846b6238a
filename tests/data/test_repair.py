"""Damaged files of a store are cached again, to the bytes they had, and no others are touched."""

import shutil

import pytest

from sae_lm.cli import main
from sae_lm.commands.cache import cache


@pytest.fixture
def copied_store(tiny_store, tmp_path):
    return shutil.copytree(tiny_store, tmp_path / "copy")


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
    assert "holds another store: text.fingerprint is" in capsys.readouterr().err
    assert contents(copied_store) == before


def test_repair_of_a_store_without_packing_with_sinks_dropped_gives_its_bytes_back(cache_settings, tmp_path, capsys):
    settings = cache_settings(tmp_path / "store", pack=False, drop_sinks=1.2, tokens=900)
    before = contents(cache(settings))
    for file in (settings.out / "blocks.0.hook_out").iterdir():
        file.unlink()
    assert main(["verify", str(settings.out), "--repair", "--model", settings.model, "--text", settings.text]) == 0
    assert contents(settings.out) == before
