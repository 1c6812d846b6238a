"""Stores pushed to, pulled from and read at a stand-in for the hub, with the line cut and files damaged on the way."""

import filecmp
import re
from pathlib import Path
from typing import Any

import pytest
from store_scenes import FAILING, PASSWORD, TOKEN, WORKING, run

from sae_lm.commands.verify import verify
from sae_lm.data.manifest import read_manifest

HOOK, OTHER = "blocks.1.hook_out", "blocks.0.hook_out"
ONE = "/00002.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("remote")


@pytest.fixture(scope="module")
def one_hook(cache_settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What caching one of the tiny store's hooks alone writes."""
    from sae_lm.commands.cache import cache

    return cache(cache_settings(tmp_path_factory.mktemp("one") / "store", hooks=HOOK))


@pytest.fixture(scope="module")
def working(folder: Path, tiny_store: Path, one_hook: Path) -> dict[str, Any]:
    return run(WORKING, folder, tiny_store, one_hook, LOGGED="1", HF_HUB_VERBOSITY="debug")


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory, tiny_store: Path, one_hook: Path) -> dict[str, Any]:
    return run(FAILING, tmp_path_factory.mktemp("failing"), tiny_store, one_hook, LOGGED="1", HF_HUB_VERBOSITY="debug")


def same_files(one: Path, other: Path) -> bool:
    names = [{p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} for folder in (one, other)]
    return names[0] == names[1] and not any(filecmp.cmpfiles(one, other, names[0], shallow=False)[1:])


def fetched(requests: list[str]) -> list[str]:
    """The files of a repository that were downloaded."""
    return sorted(
        r.partition("/resolve/")[2].partition("/")[2] for r in requests if r.startswith("GET") and "/resolve/" in r
    )


def test_a_pushed_store_comes_back_byte_for_byte(working, folder, tiny_store):
    assert re.fullmatch("hf://datasets/me/acts@[0-9a-f]{40}", working["push"])
    assert same_files(folder / "pulled", tiny_store) and verify(folder / "pulled") == []
    assert read_manifest(folder / "pulled") == read_manifest(tiny_store)
    assert not working["touched"], "the local store changed"


def test_the_manifest_comes_in_the_last_commit_and_a_new_repository_is_private(working, tiny_store):
    files = read_manifest(tiny_store).all_files()
    (_, made), (_, sent), (title, last) = working["commits"]
    assert made == [".gitattributes"] and set(sent) == set(files)
    assert last == ["manifest.json", "README.md"] and read_manifest(tiny_store).id[:12] in title
    assert working["private"]


def test_what_is_there_is_not_sent_again(working):
    assert len([r for r in working["push, requests"] if r.startswith("PUT")]) > 30
    assert working["push again"] == working["push"] and working["commits again"] == 0
    assert not [r for r in working["push again, requests"] if r.startswith("PUT") or "/commit/" in r or "batch" in r]


def test_what_is_there_is_not_fetched_again_and_a_damaged_file_is_mended(working, tiny_store):
    assert fetched(working["pull, requests"]) == sorted(read_manifest(tiny_store).all_files())
    assert fetched(working["pull again, requests"]) == []
    assert fetched(working["pull mends, requests"]) == ["tokens/00001.safetensors"]


def test_pulled_hooks_are_the_store_that_caching_them_alone_would_have_written(working, folder, tiny_store, one_hook):
    assert same_files(folder / "layer", one_hook)
    manifest = read_manifest(folder / "layer")
    assert manifest.id == read_manifest(one_hook).id != read_manifest(tiny_store).id
    assert not [name for name in fetched(working["pull a layer, requests"]) if name.startswith(OTHER)]
    assert fetched(working["pull a layer again, requests"]) == []
    assert same_files(folder / "both", tiny_store)
    assert verify(folder / "cached") == [] and list(read_manifest(folder / "cached").recipe.hooks) == [OTHER]


def test_reading_a_remote_store_fetches_the_touched_shards_of_one_hook_alone(working):
    assert fetched(working["open, requests"]) == []
    assert working["read a shard"] and fetched(working["read a shard, requests"]) == [HOOK + ONE]
    assert working["read on"] and fetched(working["read on, requests"]) == []
    assert working["read two shards"] and fetched(working["read two shards, requests"]) == [f"{HOOK}/00001.safetensors"]
    assert working["vocabulary"] and fetched(working["vocabulary, requests"]) == ["vocabulary.json"]


def test_threads_that_want_the_same_files_fetch_each_once(working):
    assert fetched(working["threads"]) == [f"tokens/0000{shard}.safetensors" for shard in (3, 4, 5)]
    assert len(working["threads"]) == 6  # HEAD and GET of each


def test_a_damaged_copy_in_the_cache_is_fetched_again(working):
    assert fetched(working["cached copy damaged, requests"]) == ["tokens/00003.safetensors"]
    assert "/snapshots/" in working["cached copy damaged"]
    assert (
        working["no such file"].startswith("StoreError: hf://datasets/me/acts@") and "99999" in working["no such file"]
    )


def test_what_the_cache_holds_is_not_fetched_to_be_pulled(working):
    names = fetched(working["pull from the cache, requests"])
    assert OTHER + ONE in names
    cached = ("vocabulary.json", "tokens/00003.safetensors", "tokens/00005.safetensors")
    assert not [r for r in working["pull from the cache, requests"] if r.endswith(cached)]


def test_an_opened_store_stays_at_its_commit_while_the_branch_moves_on(working):
    assert working["pinned"] and fetched(working["pinned, requests"]) == ["tokens/00006.safetensors"]
    assert working["moved on"].startswith("StoreError: store hf://datasets/me/acts@") and "None" in working["moved on"]
    assert not working["by commit"].startswith("StoreError")


def test_another_store_can_go_to_a_branch_of_its_own(working, folder, one_hook):
    assert "POST /api/datasets/me/acts/branch/v2%2Fnext" in working["branch, requests"]
    assert working["branch"].startswith("hf://datasets/me/acts@") and same_files(folder / "branch", one_hook)


def test_files_lost_or_changed_there_are_sent_and_a_card_in_the_owners_words_is_kept(working):
    assert working["mending commits"] == [["vocabulary.json", "tokens/00001.safetensors", "tokens/00002.safetensors"]]
    assert working["card kept"] == "my own words"


def test_the_card_says_what_the_store_is_and_how_to_open_it(working, tiny_store):
    card = working["card"]
    assert card.startswith("---\ntags:\n- sae_lm\n") and 'open_store("hf://datasets/me/acts")' in card
    for part in ("tiny-gpt2", HOOK, "1,500 of float32", "documents.jsonl", read_manifest(tiny_store).id):
        assert part in card


def test_where_the_hub_is_out_of_reach_the_cache_serves_and_the_rest_is_one_sentence(working):
    assert working["out of reach, cached"] == 1500 and working["out of reach, read"] == 5
    said = working["out of reach, not cached"]
    assert said.startswith(f"HubError: fetching {HOOK}/00009.safetensors of hf://datasets/me/acts@")
    assert "no answer from http://127.0.0.1" in said and "run the same again" in said
    assert working["out of reach, push"].startswith("HubError: pushing ") and "\n" not in working["out of reach, push"]
    assert working["out of reach, seconds"] < 20


def test_no_file_holds_the_token_although_it_was_sent(working, folder, tiny_store):
    assert working["authorized"]
    paths = [path for top in (folder, tiny_store) for path in top.rglob("*") if path.is_file()]
    assert len(paths) > 300
    assert not [path for path in paths if TOKEN.encode() in path.read_bytes()]


def refused(said: str, error: str, *parts: str) -> None:
    """One sentence of that kind with these parts."""
    assert said.startswith(f"{error}: ") and "\n" not in said, said
    for part in parts:
        assert part in said, said


@pytest.mark.parametrize(
    "name, part",
    [
        ("unfinished", "is unfinished"),
        ("short", "is damaged (stats.safetensors)"),
        ("missing", "is damaged (tokens/00000.safetensors)"),
    ],
)
def test_what_is_not_a_whole_store_is_not_pushed_and_nothing_asked_of_the_hub(failing, name, part):
    refused(failing[name], "StoreError", part)
    assert failing[f"{name}, requests"] == []


def test_a_flipped_bit_is_found_before_it_goes_out(failing):
    refused(failing["flipped"], "StoreError", f"is damaged ({HOOK}{ONE})", "sae-lm verify")
    assert failing["flipped, commits"] == ["initial commit"]
    assert not [request for request in failing["flipped, requests"] if request.startswith("PUT")]


@pytest.mark.parametrize(
    "name, part",
    [
        ("no id", "'acts' is no id of a repository"),
        ("not mine", "does not let this account at the data set 'you/acts'"),
        ("wrong token, push", "asks for a valid token; run `hf auth login` or set HF_TOKEN"),
        ("odd token, push", "LocalProtocolError"),
        ("no token, push", "asks for a valid token"),
        ("wrong token, open", "has no data set 'me/acts', or it is private"),
        ("wrong token, pull", "has no data set 'me/acts', or it is private"),
        ("public", "the data set 'me/public' is public; allow that (--no-private)"),
        ("another store", "is another store, other in hooks; push to another repository"),
        ("same recipe", "is another store, other in the contents of its files"),
        ("part of another store", "holds part of another store (stats.safetensors)"),
        ("ignored there", "did not keep stats.safetensors; see whether a .gitignore there names it"),
        ("no store there", "holds a store that cannot be read here"),
        ("meddled", "someone else has changed the data set 'me/meddled' meanwhile; run the same again"),
        ("no revision", "no revision 'v9'"),
        ("open a table", "has no data set 'me/nothing-here'"),
    ],
)
def test_what_the_hub_does_not_allow_is_one_sentence(failing, name, part):
    refused(failing[name], "HubError", part)


def test_a_hub_without_xet_is_named_with_the_way_around_it(failing):
    pytest.importorskip("hf_xet")
    refused(failing["no Xet there"], "HubError", "through Xet (which HF_HUB_DISABLE_XET=1 turns off) failed")


def test_a_store_that_a_repository_would_not_keep_whole_is_not_completed(failing):
    assert not failing["ignored there, manifest"]


def test_a_store_may_stand_beside_other_files_and_a_public_repository_be_allowed(failing):
    for name in ("beside other files", "public, allowed", "meddled, again"):
        assert re.fullmatch("hf://datasets/me/[a-z]+@[0-9a-f]{40}", failing[name]), failing[name]


def test_a_push_that_was_cut_off_goes_on_where_it_was(failing):
    refused(failing["upload cut"], "HubError", "pushing", "no answer from http://127.0.0.1", "run the same again")
    assert failing["upload cut, stored"] == 13 and not failing["upload cut, manifest"]
    refused(failing["open what is not whole"], "StoreError", "has no manifest.json", "a push has not ended")
    sent = [r for r in failing["upload goes on, requests"] if r.startswith("PUT")]
    *commits, last = failing["upload goes on, commits"]
    large = [name for commit in commits for name in commit if name.endswith(".safetensors")]
    assert len(sent) == len(large) - 13
    assert [len(commit) for commit in commits[:-1]] == [8] * (len(commits) - 1) and len(commits) > 3
    assert len(set(large)) == len(large)
    assert last == ["manifest.json", "README.md"]


def test_a_pull_that_was_cut_off_goes_on_where_it_was(failing, tiny_store):
    refused(failing["download cut"], "HubError", "fetching", "no answer from http://127.0.0.1")
    there = {name for name in failing["download cut, there"] if not name.startswith("pull.part/")}
    files = set(read_manifest(tiny_store).all_files())
    assert there and there < files
    assert set(fetched(failing["download goes on, requests"])) <= files - there
    assert failing["download goes on, there"] == sorted(path.name for path in tiny_store.iterdir())


def test_a_file_damaged_at_the_hub_is_named_until_it_is_whole_again(failing):
    for name in ("damaged there, pull", "damaged there, locate"):
        refused(failing[name], "StoreError", "tokens/00002.safetensors of hf://datasets/me/acts@", "checksum")
        assert fetched(failing[f"{name}, requests"]).count("tokens/00002.safetensors") == 2
    assert not failing["damaged there, manifest"]
    assert failing["whole again, locate"].endswith("tokens/00002.safetensors")
    assert failing["whole again, pull"].endswith("damaged")


@pytest.mark.parametrize(
    "name, error, part",
    [
        ("foreign folder", "StoreError", "thesis.txt is not of hf://datasets/me/acts@"),
        ("unfinished cache", "StoreError", "progress/recipe.json is not of hf://datasets/me/acts@"),
        ("other store", "StoreError", "holds another store than hf://datasets/me/acts@"),
        ("a file", "StoreError", "thesis.txt is a file"),
        (
            "no such hook",
            "StoreError",
            "has no hook 'blocks.2.hook_out'; it holds blocks.0.hook_out, blocks.1.hook_out",
        ),
        ("no hook at all", "ModelError", "'blocks.x'"),
        ("disk full", "StoreError", "GB free"),
        ("sinks, in part", "StoreError", "cannot be pulled in part: it has no rows where"),
        ("open a text", "StoreError", "has no manifest.json: it holds no whole store"),
    ],
)
def test_what_cannot_be_pulled_is_one_sentence(failing, name, error, part):
    refused(failing[name], error, part)


def test_a_store_without_sinks_is_pulled_whole(failing):
    assert failing["sinks, whole"].endswith("sinks pulled")


@pytest.mark.parametrize(
    "address",
    [
        "hf://acts",
        "hf://datasets/acts",
        "hf://models/me/acts",
        "hf://spaces/me",
        "hf://me/acts@",
        "hf://datasets/me/../acts",
        "acts",
    ],
)
def test_a_malformed_address_is_answered_with_what_one_reads_like(failing, address):
    refused(failing[address], "HubError", repr(address), "hf://datasets/OWNER/NAME[@REVISION]")
    assert failing[f"{address}, requests"] == []


@pytest.mark.parametrize("name", ["../../x", "/x", "a/../../x", "..\\x", "manifest.json", "pull.part/x"])
def test_a_manifest_that_names_what_is_not_its_own_is_refused_before_anything_is_fetched(failing, name):
    refused(failing[f"names {name}"], "StoreError", repr(name), "do not trust this store", "hf://datasets/me/evil@")
    assert fetched(failing[f"names {name}, requests"]) == ["manifest.json"]
    assert failing["evil wrote"] == []


def test_a_manifest_that_is_damaged_or_of_another_version_is_named_by_its_address(failing):
    refused(failing["not intact"], "StoreError", "hf://datasets/me/evil@", "does not match its own checksum")
    refused(failing["other version"], "StoreError", "hf://datasets/me/evil@", "has format version 99")


def test_a_password_in_the_address_of_the_hub_is_not_shown(tmp_path, tiny_store, one_hook):
    said = run(PASSWORD, tmp_path, tiny_store, one_hook)
    for name in ("download cut", "gone"):
        refused(said[name], "HubError", "no answer from http://127.0.0.1")
    assert same_files(tmp_path / "password", tiny_store)
    for name in ("broken, push", "broken, locate"):
        refused(said[name], "HubError", "no answer from http://127.0.0.1", "(status 500)")
    paths = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert paths and not [path for path in paths if TOKEN.encode() in path.read_bytes()]


def test_nothing_is_pulled_through_a_link_out_of_the_folder(failing):
    for name in ("tokens", "pull.part"):
        said = failing[f"link out, {name}"]
        assert said.startswith("StoreError: ") and "is a link out of" in said
    assert failing["link out wrote"] == []
