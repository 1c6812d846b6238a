"""Damage of every kind is found and named, mended where it can be; stores are merged, estimated, inspected."""

import random
import shutil

import pytest
import torch

import sae_lm
from sae_lm.cli import main
from sae_lm.commands.cache import cache
from sae_lm.commands.verify import verify
from sae_lm.data.manifest import MANIFEST, read_manifest
from sae_lm.errors import StoreError
from sae_lm.runtime.files import write_whole

FLIPS = 150


@pytest.fixture
def copied_store(tiny_store, tmp_path):
    return shutil.copytree(tiny_store, tmp_path / "copy")


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_flipped_bit_is_found_in_the_file_that_has_it(copied_store):
    """Bits drawn at random over all bytes of the store, and as many in the manifest alone."""
    draw = random.Random(0)
    files = sorted(path for path in copied_store.rglob("*") if path.is_file())
    sizes = [path.stat().st_size for path in files]
    victims = draw.choices(files, sizes, k=FLIPS) + [copied_store / MANIFEST] * FLIPS
    for victim in victims:
        whole = victim.read_bytes()
        flipped = bytearray(whole)
        flipped[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        victim.write_bytes(bytes(flipped))
        found = verify(copied_store)
        assert len(found) == 1 and victim.name in found[0] and victim.parent.name in found[0] + str(copied_store)
        victim.write_bytes(whole)
    assert verify(copied_store) == []


def test_opening_reads_checksums_on_request(copied_store):
    victim = copied_store / "blocks.0.hook_out" / "00003.safetensors"
    victim.write_bytes(victim.read_bytes()[:-1] + b"?")
    sae_lm.open_store(copied_store)
    with pytest.raises(
        StoreError, match=r"00003.safetensors does not match its checksum; run sae-lm verify .* --repair"
    ):
        sae_lm.open_store(copied_store, checksums=True)


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


def test_merged_stores_hold_the_rows_of_both(cache_settings, tiny_store, tmp_path, capsys):
    other_text = tmp_path / "other.jsonl"
    other_text.write_text('{"text": "' + "Quite another story about a cat and a mat. " * 40 + '"}\n')
    other = cache(cache_settings(tmp_path / "other", text=str(other_text), tokens=200))
    assert main(["merge", str(tiny_store), str(other), "--out", str(tmp_path / "both")]) == 0
    both, first, second = (sae_lm.open_store(path, checksums=True) for path in (tmp_path / "both", tiny_store, other))
    assert verify(tmp_path / "both") == [] and len(both) == 1700
    for hook in both.hooks:
        assert torch.equal(both.rows(hook), torch.cat([first.rows(hook), second.rows(hook)]))
    assert torch.equal(both.blocks(), torch.cat([first.blocks(), second.blocks()]))
    tokens, added = both.tokens(1500), second.tokens()
    assert torch.equal(tokens["document"], added["document"] + first.manifest.documents)
    assert torch.equal(tokens["context"], added["context"] + first.manifest.contexts)
    assert both.manifest.documents == first.manifest.documents + 1
    rows = both.rows("blocks.1.hook_out").double()
    torch.testing.assert_close(both.moments("blocks.1.hook_out").mean, rows.mean(0))
    assert main(["verify", str(tmp_path / "both"), "--repair"]) == 0  # nothing to mend, so nothing is asked


def test_a_merge_that_fails_leaves_nothing_and_touches_nobodys_files(cache_settings, tiny_store, tmp_path, monkeypatch):
    from sae_lm.data import merge as merging

    other_text = tmp_path / "other.jsonl"
    other_text.write_text('{"text": "' + "Quite another story about a cat and a mat. " * 40 + '"}\n')
    other = cache(cache_settings(tmp_path / "other", text=str(other_text), tokens=200))
    (tmp_path / "both.part").mkdir()
    (tmp_path / "both.part" / "mine.txt").write_text("mine")
    before = contents(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(merging, "write_manifest", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(["merge", str(tiny_store), str(other), "--out", str(tmp_path / "both")]) == 130
    assert contents(tmp_path) == before
    assert main(["merge", str(tiny_store), str(other), "--out", str(tmp_path / "both")]) == 0
    assert (tmp_path / "both.part" / "mine.txt").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"context_size": 8}, "context_size is 8 and 16"),
        ({"dtype": "bfloat16"}, "dtype is bfloat16 and float32"),
        ({"hooks": "0"}, "hooks is"),
        ({"tokens": 100}, "hold rows of the same text"),
    ],
)
def test_stores_that_do_not_go_together_are_not_merged(cache_settings, tiny_store, tmp_path, capsys, changes, says):
    other = cache(cache_settings(tmp_path / "other", **changes))
    assert main(["merge", str(tiny_store), str(other), "--out", str(tmp_path / "both")]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "both").exists()
    assert main(["merge", str(tiny_store), "--out", str(tmp_path / "both")]) == 2
    assert "got 1 store" in capsys.readouterr().err


def test_an_estimate_says_rows_bytes_time_and_space_and_writes_nothing(
    tiny_model, text_file, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    common = ["--model", str(tiny_model), "--text", str(text_file), "--context-size", "16", "--trial", "0.2"]
    assert main(["estimate", *common, "--hooks", "0,1", "--tokens", "1M", "--repeat"]) == 0
    said = capsys.readouterr().out
    assert "blocks.0.hook_out (16), blocks.1.hook_out (16)" in said and "1,000,000 in" in said
    size = float(
        said.split("disk:")[1].split()[0]
    )  # GB: 1M rows x (2 hooks x 16 x 2 bytes + 20), contexts' ids and headers
    assert 0.084 < size < 0.1
    assert "rows/s" in said and "enough" in said
    assert main(["estimate", *common, "--hooks", "0", "--tokens", "1M", "--trial", "60"]) == 0
    assert "all that the text has" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_an_estimate_of_all_rows_is_the_size_of_the_store(cache_settings, tmp_path):
    from sae_lm.data.writer import bytes_per_row

    out = cache(cache_settings(tmp_path / "store", tokens=5000, shard_tokens=65536, hooks="0,1,2"))
    rows = sum(path.stat().st_size for path in out.rglob("*.safetensors"))
    assert rows == pytest.approx(5000 * bytes_per_row(read_manifest(out).recipe), rel=0.05)


def test_an_estimate_without_packing_counts_what_padding_costs(tiny_model, text_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sizes = {}
    for flag in ("--pack", "--no-pack"):
        settings = [
            "--model",
            str(tiny_model),
            "--text",
            str(text_file),
            "--context-size",
            "32",
            "--tokens",
            "1M",
            "--hooks",
            "0",
            "--repeat",
        ]
        assert main(["estimate", *settings, "--trial", "0.3", flag]) == 0
        sizes[flag] = float(capsys.readouterr().out.split("disk:")[1].split()[0])
    assert 1 < sizes["--no-pack"] / sizes["--pack"] < 2
    special = tmp_path / "special.jsonl"
    special.write_text('{"text": "<|end|><|end|>"}\n' * 200)
    common = ["--model", str(tiny_model), "--hooks", "0", "--context-size", "16", "--trial", "0.1", "--tokens", "100"]
    assert main(["estimate", *common, "--text", str(special)]) == 2
    assert "with a token that gets a row" in capsys.readouterr().err


def test_inspect_shows_what_a_store_holds_in_words(tiny_store, make_sae, tmp_path, capsys):
    from sae_lm.sae.formats.saelens import save

    assert main(["inspect", str(tiny_store), "--rows", "3"]) == 0
    said = capsys.readouterr().out
    assert "tiny-gpt2" in said and "1,500 in" in said and "documents.jsonl" in said
    assert "norms" in said and "blocks.1.hook_out  width 16" in said and "special tokens" in said
    decoded = [line for line in said.splitlines() if "document " in line and "[" in line]
    assert len(decoded) == 3 and all("]" in line for line in decoded)
    save(make_sae(), tmp_path / "sae")
    assert main(["inspect", str(tmp_path / "sae")]) == 0
    assert "SAE(topk, d_in=6, d_sae=10" in capsys.readouterr().out


@pytest.mark.parametrize("problem", [KeyboardInterrupt, ValueError])
def test_a_write_that_ends_early_leaves_the_earlier_file_and_nothing_beside_it(tmp_path, problem):
    (tmp_path / "file").write_text("earlier")

    def half(part):
        part.write_text("ha")
        raise problem

    with pytest.raises(problem):
        write_whole(tmp_path / "file", half)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["earlier"]
