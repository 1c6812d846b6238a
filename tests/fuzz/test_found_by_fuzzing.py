"""What the fuzz has found, one case each: all of these once ended in a traceback, or in numbers that were wrong."""

import json
import shutil
import socket
import time
import zipfile
from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
from foreign_saes import FOREIGN
from safetensors.torch import load_file, save_file

import sae_lm
from sae_lm.cli import parse
from sae_lm.commands.inspect import inspect
from sae_lm.commands.verify import verify
from sae_lm.data import remote
from sae_lm.data.manifest import MANIFEST, read_manifest, write_manifest
from sae_lm.data.partial_store import _read_place, read_partial_store
from sae_lm.data.writer import file_record
from sae_lm.errors import HubError, SaeError, SaeLmError, SettingsError, StoreError
from sae_lm.hub.repository import Branch, list_files
from sae_lm.hub.revision import pin
from sae_lm.metrics.stored_codes import store_codes
from sae_lm.runtime.files import read_json, write_json
from sae_lm.sae.formats.saelens import save
from sae_lm.sae.tensors import read_torch
from sae_lm.training.run_folder import read_run
from sae_lm.training.trackers import Track, read_lines

DEEP = "[" * 100_000


@pytest.fixture
def store(tiny_store, tmp_path):
    return shutil.copytree(tiny_store, tmp_path / "store")


def resealed(store, name):
    """The manifest says that this file is as it ought to be."""
    manifest = read_manifest(store)
    record = file_record(store / name)
    for shard in manifest.shards:
        shard.files.update({name: record} if name in shard.files else {})
    manifest.files.update({name: record} if name in manifest.files else {})
    write_manifest(store, manifest)


def changed(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_sentence_stays_on_its_line_and_tells_a_terminal_nothing():
    said = str(SaeLmError("a\nb \x1b[2J \ud800 \u202e é 中\u3000" + "x" * 9000 + " do this"))
    assert said.startswith("a b \\x1b[2J \\ud800 \\u202e é 中") and said.endswith("do this") and len(said) < 4100
    said.encode()


def test_brackets_within_brackets_are_one_sentence_in_json_toml_and_text(store, tmp_path):
    (store / MANIFEST).write_text(DEEP)
    with pytest.raises(StoreError, match="too many brackets"):
        sae_lm.open_store(store)
    (tmp_path / "a.toml").write_text(f"[train]\nd_sae = {DEEP}")
    with pytest.raises(SettingsError, match="not valid TOML"):
        parse(["train", "--config", str(tmp_path / "a.toml")])
    (tmp_path / "saes.jsonl").write_text(DEEP + "\n")
    with pytest.raises(SaeError, match="expected a JSON object with a step"):
        read_lines(tmp_path / "saes.jsonl")


@pytest.mark.parametrize("number", ["9" * 5000, "1979-13-77"])
def test_toml_that_holds_an_impossible_number_is_one_sentence(tmp_path, number):
    (tmp_path / "a.toml").write_text(f"[train]\nd_sae = {number}")
    with pytest.raises(SettingsError, match="not valid TOML"):
        parse(["train", "--config", str(tmp_path / "a.toml")])


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": -1},
        {"rows": 10**9},
        {"contexts": 3},
        {"model": {"id": None}},
        {"model": {"n_layers": "many"}},
        {"text": {"split": ["a"]}},
        {"hooks": {"blocks.0.hook_out": 2**60}},
        {"context_size": 0},
        {"files": {"": {"bytes": 0, "sha256": ""}}},
        {"files": {"a\x00b": {"bytes": 0, "sha256": ""}}},
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(store, changes):
    content = json.loads((store / MANIFEST).read_text())
    for key, value in changes.items():
        place = content if key in content else content["recipe"]
        place[key] = {**place[key], **value} if isinstance(value, dict) else value
    content["files"] = {name: record for name, record in content["files"].items() if record is not None}
    (store / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(StoreError, match="is malformed|outside the store"):
        sae_lm.open_store(store)


@pytest.mark.parametrize(
    "name", ["blocks.0.hook_out/00000.safetensors", "tokens/00000.safetensors", "stats.safetensors"]
)
def test_tensors_of_another_size_or_kind_than_the_manifest_says_are_refused(store, name):
    tensors = load_file(store / name)
    save_file({key: torch.zeros(3, 3, dtype=torch.float16) for key in tensors}, store / name)
    resealed(store, name)
    with pytest.raises(StoreError, match="the manifest says"):
        _ = sae_lm.open_store(store).tokens(), inspect(str(store))


@pytest.mark.parametrize("text", ["{}", "[1]", "[", "\ud800"])
def test_a_vocabulary_that_is_no_list_of_texts_is_refused(store, text):
    (store / "vocabulary.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    resealed(store, "vocabulary.json")
    with pytest.raises(StoreError, match="sae-lm verify"):
        sae_lm.open_store(store).text_around(0, 1, 1)


@pytest.mark.parametrize("key", ["blocks", "position"])
def test_a_token_beyond_the_vocabulary_or_its_context_is_refused(store, key):
    name = "tokens/00000.safetensors"
    tensors = load_file(store / name)
    tensors[key] = torch.full_like(tensors[key], 10**6)
    save_file(tensors, store / name)
    resealed(store, name)
    with pytest.raises(StoreError, match="sae-lm verify"):
        sae_lm.open_store(store).text_around(3, 1, 1)


@pytest.mark.parametrize(
    "notes",
    [
        {"versions": {"torch": {}}},
        {"sink_norms": {"blocks.0.hook_out": "a"}},
        {"sink_norms": {"blocks.0.hook_out": float("inf")}},
        {"sink_norms": {"blocks.0.hook_out": float("nan")}},
        {"sink_norms": {"blocks.0.hook_out": 10**400}},
    ],
)
def test_notes_of_an_unfinished_store_that_are_no_notes_are_refused(store, notes):
    manifest = read_manifest(store)
    (store / MANIFEST).unlink()
    (store / "progress").mkdir()
    content = {"recipe": manifest.recipe.model_dump(), "batch_size": 4, "sink_norms": {}, "versions": {}, **notes}
    (store / "progress/recipe.json").write_text(json.dumps(content))
    with pytest.raises(StoreError, match="is not understood"):
        read_partial_store(store, manifest.recipe)


def test_what_is_printed_of_a_store_and_of_an_sae_tells_a_terminal_nothing(store, make_sae, tmp_path):
    manifest = read_manifest(store)
    manifest.recipe.model["id"] = "\x1b[2Jmodel"
    write_manifest(store, manifest)
    save(make_sae(model_name="\x1b[2J"), tmp_path / "sae")
    (store / "\x1b]0;title\x07").write_text("")
    for printed in (inspect(str(store)), inspect(str(tmp_path / "sae")), *verify(store)):
        assert "\x1b" not in printed


@pytest.mark.parametrize("version", ["6abc", "²", "99999999999999999999999.0", "4fa5"])
def test_a_version_of_saelens_that_is_no_number_does_not_matter(make_sae, tmp_path, version):
    save(make_sae(), tmp_path / "sae")
    config = json.loads((tmp_path / "sae/cfg.json").read_text())
    changed(tmp_path / "sae/cfg.json", metadata={**config["metadata"], "sae_lens_version": version})
    sae_lm.load(tmp_path / "sae")


@pytest.mark.parametrize(
    "name, file, key, value",
    [
        ("saelens expected_average_only_in", "activation_scaler.json", "scaling_factor", 10**400),
        ("dictionary_learning JumpReluAutoEncoder", "config.json", "trainer", {"dict_class": ["a"]}),
    ],
)
def test_a_foreign_configuration_with_another_type_is_refused(tmp_path, name, file, key, value):
    path, _ = FOREIGN[name][0](tmp_path)
    changed(path / file, **{key: value})
    with pytest.raises(SaeError):
        sae_lm.load(path)


@pytest.mark.parametrize(
    "values", [{"seeds": 10**6}, {"seeds": 2**60}, {"first_seed": "a"}, {"seeds": -1}, {"first_seed": 5}]
)
def test_a_run_with_impossible_seeds_is_refused(tmp_path, values):
    (tmp_path / "run.json").write_text(json.dumps({"arms": ["none"], "seeds": 3, "store": "acts", **values}))
    with pytest.raises(SaeError, match="is not understood"):
        read_run(tmp_path)


@pytest.mark.parametrize("line", ["3", "{}", '{"step": "a"}', '{"step": 1', "\x00"])
def test_a_damaged_line_of_a_log_is_named(tmp_path, line):
    path = tmp_path / "a.metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n')
    for read in (lambda: read_lines(path), lambda: Track(path, (), {}).begin(2).__enter__()):
        with pytest.raises(SaeError, match="delete that line"):
            read()
    assert line in path.read_text()


def test_one_flipped_bit_of_codes_on_disk_is_noticed_and_they_are_encoded_again(tiny_store, make_sae, tmp_path):
    store, sae = sae_lm.open_store(tiny_store), make_sae(d_in=16, d_sae=40)
    codes = store_codes(store, "blocks.0.hook_out", sae, 0, 200, tmp_path)
    file = next(tmp_path.rglob("*.safetensors"))
    whole = file.read_bytes()
    for at in (len(whole) - 1, len(whole) // 2, len(whole) - 5):
        flipped = bytearray(whole)
        flipped[at] ^= 1
        file.write_bytes(flipped)
        codes = store_codes(store, "blocks.0.hook_out", sae, 0, 200, tmp_path)
        assert file.read_bytes() == whole and len(codes) == 200


def test_half_a_character_is_written_and_read_again(tmp_path):
    write_json(tmp_path / "a.json", {"text": "a\ud800 é"})
    assert read_json(tmp_path / "a.json", SaeLmError, "it") == {"text": "a\ud800 é"}


@pytest.mark.parametrize("text", ['["jsonl", 1e999, "a", 1, 1, 1]', '["jsonl", 1, "a", 1, 1, 1e999]'])
def test_a_place_in_the_text_beyond_numbers_counts_as_none(tmp_path, text):
    (tmp_path / "00000.place.json").write_text(text)
    assert _read_place(tmp_path / "00000.place.json") is None


def test_a_scale_that_is_a_whole_number_beyond_64_bits_is_a_number_as_any_other(tmp_path):
    path, _ = FOREIGN["saelens expected_average_only_in"][0](tmp_path)
    changed(path / "activation_scaler.json", scaling_factor=2**70)
    whole = sae_lm.load(path).W_enc
    changed(path / "activation_scaler.json", scaling_factor=2.0**70)
    assert torch.equal(whole, sae_lm.load(path).W_enc)


@pytest.mark.parametrize("archive", [True, False])
def test_a_pickle_that_names_code_at_absurd_length_is_refused_at_once(tmp_path, archive):
    """torch searches its own message with a pattern that takes time with the square of the name's length."""
    torch.save({"a": OrderedDict()}, tmp_path / "a.pt", _use_new_zipfile_serialization=archive)
    content = (tmp_path / "a.pt").read_bytes()
    long = content.replace(b"OrderedDict\n", b"[" * 40_000 + b"\n")
    assert long != content
    if archive:  # whose members know their length
        with zipfile.ZipFile(tmp_path / "a.pt") as old, zipfile.ZipFile(tmp_path / "b.pt", "w") as new:
            for name in old.namelist():
                new.writestr(name, old.read(name).replace(b"OrderedDict\n", b"[" * 40_000 + b"\n"))
    else:
        (tmp_path / "b.pt").write_bytes(long)
    began = time.monotonic()
    with pytest.raises(SaeError, match="nothing of it was executed"):
        read_torch(tmp_path / "b.pt")
    assert time.monotonic() - began < 2


def test_a_long_name_of_code_that_is_not_of_ascii_is_refused_at_once_too(tmp_path):
    torch.save({"a": OrderedDict()}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    long = b"[" * 40_000 + "é".encode() + b"\n"
    (tmp_path / "b.pt").write_bytes((tmp_path / "a.pt").read_bytes().replace(b"OrderedDict\n", long))
    began = time.monotonic()
    with pytest.raises(SaeError, match="cannot be read as a torch file"):
        read_torch(tmp_path / "b.pt")
    assert time.monotonic() - began < 2


def test_one_flipped_bit_of_an_saes_configuration_is_noticed_when_it_is_verified(make_sae, tmp_path):
    save(make_sae(), tmp_path / "sae")
    file = tmp_path / "sae/cfg.json"
    assert not verify(tmp_path / "sae")
    file.write_text(json.dumps(json.loads(file.read_text())))  # another layout says the same
    assert not verify(tmp_path / "sae")
    file.write_text(file.read_text().replace('"k": 3', '"k": 2'))
    assert verify(tmp_path / "sae") == ["cfg.json: content does not match its checksum"]


@pytest.mark.parametrize("paths", [[1, "cfg.json"], [None], [["a"]]])
def test_a_list_of_files_of_the_hub_that_holds_other_than_names_is_refused(monkeypatch, paths):
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda self, repo_id, revision=None: paths)
    with pytest.raises(HubError, match="answers with something else than names of files"):
        list_files("me/saes", "c" * 40)


@pytest.mark.parametrize("sha", [None, 7, "main", "../../../outside", "A" * 40])
def test_a_commit_of_the_hub_that_is_none_is_no_answer(monkeypatch, tmp_path, sha):
    about = SimpleNamespace(sha=sha, gated=False)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda self, repo_id, **options: about)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(HubError, match="the answer names no commit"):
        pin("me/saes", "model")


def test_a_hub_that_falls_silent_is_waited_for_in_bounds(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the system takes connections, and nobody answers
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("sae_lm.hub.errors.WAIT", 0.2)
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        began = time.monotonic()
        with pytest.raises(HubError, match="listing the model 'me/saes' failed: no answer from"):
            list_files("me/saes", "c" * 40)
        assert time.monotonic() - began < 20


def test_a_hub_that_lists_files_without_names_is_told_before_a_push(store, monkeypatch):
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    entry = RepoFile(path="a", size=1, oid="0")
    entry.path = True
    monkeypatch.setattr(HfApi, "list_repo_tree", lambda *_, **__: [entry])
    branch = SimpleNamespace(doing="pushing", repo_id="me/acts", kind="dataset", api=HfApi(), head="0" * 40)
    with pytest.raises(HubError, match="pushing failed: .* answers with something else than names of files"):
        Branch.tree(branch)


def test_a_push_whose_last_commit_came_to_nothing_is_not_told_as_done(store, monkeypatch):
    silent = SimpleNamespace(tree=dict, commit=lambda *_: None, head="0" * 40)
    monkeypatch.setattr(remote, "Branch", lambda *_: silent)
    monkeypatch.setattr(remote, "_is_kept", lambda *_: True)
    monkeypatch.setattr(remote, "_send", lambda *_: None)
    with pytest.raises(HubError, match="did not keep manifest.json, though it said so; push again"):
        remote.push(store, "me/acts")
