"""Stores of one configuration are laid end to end; others are refused, and nothing is left half made."""

import shutil

import pytest
import torch

import sae_lm
from sae_lm.cli import main
from sae_lm.commands.cache import cache
from sae_lm.commands.verify import verify
from sae_lm.data import merge as merging
from sae_lm.data.manifest import read_manifest, write_manifest
from sae_lm.runtime.locks import has_locks, held_if_free


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def another_store(cache_settings, tmp_path):
    """Of the same settings and another text."""
    text = tmp_path / "other.jsonl"
    text.write_text('{"text": "' + "Quite another story about a cat and a mat. " * 40 + '"}\n')
    return cache(cache_settings(tmp_path / "other", text=str(text), tokens=200))


def test_merged_stores_hold_the_rows_of_both(cache_settings, tiny_store, tmp_path, capsys):
    other = another_store(cache_settings, tmp_path)
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
    other = another_store(cache_settings, tmp_path)
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


@pytest.fixture
def two_stores(cache_settings, tiny_store, tmp_path):
    """A store that may be changed, and one of another text that goes with it."""
    return shutil.copytree(tiny_store, tmp_path / "first"), another_store(cache_settings, tmp_path)


def test_what_a_killed_merge_left_goes_with_the_next(two_stores, tmp_path, monkeypatch):
    command = ["merge", *map(str, two_stores), "--out", str(tmp_path / "both")]
    with monkeypatch.context() as patch:
        patch.setattr(merging, "write_manifest", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        patch.setattr(merging.shutil, "rmtree", lambda *_, **__: None)
        assert main(command) == 130
    assert [*tmp_path.glob("both*")]
    assert main(command) == 0 and [*tmp_path.glob("both*")] == [tmp_path / "both"]
    assert verify(tmp_path / "both") == []


def test_two_merges_into_one_folder_do_not_meet(two_stores, tmp_path, capsys):
    if not has_locks():
        pytest.skip("no locks here")
    (tmp_path / "both.merge.part").mkdir()
    with held_if_free(tmp_path / "both.merge.part"):
        assert main(["merge", *map(str, two_stores), "--out", str(tmp_path / "both")]) == 2
    assert "another process is merging into" in capsys.readouterr().err


@pytest.mark.parametrize(
    "damaged", ["tokens/00000.safetensors", "blocks.1.hook_out/00001.safetensors", "vocabulary.json"]
)
def test_damage_does_not_become_part_of_a_merged_store_that_passes_for_whole(two_stores, tmp_path, capsys, damaged):
    first, other = two_stores
    content = bytearray((first / damaged).read_bytes())
    content[-2] ^= 1
    (first / damaged).write_bytes(content)
    assert main(["merge", str(first), str(other), "--out", str(tmp_path / "both")]) == 2
    assert f"store {first} is damaged: {damaged}; run sae-lm verify" in capsys.readouterr().err
    assert not (tmp_path / "both").exists()


def recipe_changed(store, **changes):
    manifest = read_manifest(store)
    write_manifest(store, manifest.model_copy(update={"recipe": manifest.recipe.model_copy(update=changes)}))


def test_what_must_agree_does_so_in_either_order(two_stores, tmp_path, capsys):
    first, other = two_stores
    recipe_changed(other, other_special=(2,))
    for stores in ((first, other), (other, first)):
        assert main(["merge", *map(str, stores), "--out", str(tmp_path / "both")]) == 2
        assert "other_special is" in capsys.readouterr().err


def test_one_repeated_text_makes_the_merged_store_one_whose_text_repeats(two_stores, tmp_path):
    first, other = two_stores
    recipe_changed(other, repeat=True)
    for name, stores in (("ab", (first, other)), ("ba", (other, first))):
        assert main(["merge", *map(str, stores), "--out", str(tmp_path / name)]) == 0
        assert sae_lm.open_store(tmp_path / name).text_repeats


def test_stores_that_do_not_say_all_of_their_texts_are_merged(two_stores, tmp_path):
    first, other = two_stores
    recipe_changed(first, text={"id": "made by hand"})
    assert main(["merge", str(first), str(other), "--out", str(tmp_path / "both")]) == 0
    assert len(sae_lm.open_store(tmp_path / "both", checksums=True)) == 1700


LOCAL = {"id": "a.jsonl", "split": None, "column": "text", "fingerprint": "1" * 64}
ON_HUB = {"id": "someone/lines", "split": "train", "column": "text", "fingerprint": "1" * 40}
EMBEDDED = {"id": "embedded", "split": "train", "column": "text", "fingerprint": "2" * 64}


@pytest.mark.parametrize(
    ("one", "changes", "same"),
    [
        (LOCAL, {"id": "b"}, True),
        (LOCAL, {"fingerprint": "3" * 64}, False),
        (LOCAL, {"column": "title"}, False),
        (LOCAL, ON_HUB, False),
        (ON_HUB, {"fingerprint": "2" * 40}, True),
        (ON_HUB, {"split": "test"}, False),
        (ON_HUB, {"id": "someone/others"}, False),
        (EMBEDDED, {"split": "all", "fingerprint": "3" * 64}, True),
        (EMBEDDED, {"split": "held_out", "fingerprint": "3" * 64}, False),
        ({"id": "made by hand"}, {}, True),
        ({"id": "made by hand"}, {"id": "another"}, False),
    ],
)
def test_a_text_is_not_merged_with_itself_or_a_part_of_it(two_stores, tmp_path, capsys, one, changes, same):
    first, other = two_stores
    recipe_changed(first, text=one)
    recipe_changed(other, text={**one, **changes})
    for number, stores in enumerate(((first, other), (other, first))):
        code = main(["merge", *map(str, stores), "--out", str(tmp_path / f"both{number}")])
        assert code == (2 if same else 0)
        assert ("hold rows of the same text" in capsys.readouterr().err) == same


def test_a_file_under_another_name_is_the_same_text(cache_settings, tiny_store, text_file, tmp_path, capsys):
    shutil.copy(text_file, tmp_path / "another name.jsonl")
    other = cache(cache_settings(tmp_path / "other", text=str(tmp_path / "another name.jsonl")))
    assert main(["merge", str(tiny_store), str(other), "--out", str(tmp_path / "both")]) == 2
    assert "hold rows of the same text ('another name.jsonl')" in capsys.readouterr().err


def test_copies_that_no_recipe_tells_of_are_told_after_merging(cache_settings, tiny_store, text_file, tmp_path, capsys):
    (tmp_path / "copy.jsonl").write_text(f"{text_file.read_text()}\n")
    other = cache(cache_settings(tmp_path / "other", text=str(tmp_path / "copy.jsonl")))
    capsys.readouterr()
    assert main(["merge", str(tiny_store), str(other), "--out", str(tmp_path / "both")]) == 0
    said = capsys.readouterr().out
    assert "of the text of the last 10% of the rows, which training holds out, stands word for word" in said
