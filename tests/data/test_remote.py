"""Stores pushed to, pulled from and read at a stand-in for the hub, with the line cut and files damaged on the way.

huggingface_hub reads the address of the hub when it is imported, so each scene runs in a process of its own, with the
stand-in in a thread beside it, and prints what was said and asked. Libraries log all they have to say there.
"""

import filecmp
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sae_lm.commands.verify import verify
from sae_lm.data.manifest import read_manifest

TOKEN = "hf_not_to_be_shown"
HOOK, OTHER = "blocks.1.hook_out", "blocks.0.hook_out"
ONE = "/00002.safetensors"

COMMON = """
import base64, hashlib, json, logging, os, shutil, sys, threading, time
from pathlib import Path
from hub_stand_in import HubStandIn

folder, store, one_hook = map(Path, sys.argv[1:])
token = os.environ["HF_TOKEN"]
hub = HubStandIn(folder / "hub", accounts={token: "me"})
if "LOGGED" in os.environ:
    logging.basicConfig(level=logging.DEBUG)
    os.environ["HF_ENDPOINT"] = hub.endpoint
else:  # as some mirrors want it; a log of addresses, on request, would then show the password
    os.environ["HF_ENDPOINT"] = hub.endpoint.replace("://", f"://name:{token}@")

real_sleep = time.sleep
time.sleep = lambda seconds: real_sleep(min(seconds, 0.002))  # the pauses before a second try

from sae_lm.data import remote
from sae_lm.data.manifest import Manifest, read_manifest, write_manifest
from sae_lm.data.remote import open_remote, pull, push
from sae_lm.errors import SaeLmError

said = {}

def note(name, call, *arguments, **options):
    before = len(hub.requests)
    try:
        value = call(*arguments, **options)
        said[name] = value if isinstance(value, (str, int, list, dict, bool)) else str(value)
    except SaeLmError as error:
        value, said[name] = None, f"{type(error).__name__}: {error}"
    said[name + ", requests"] = hub.requests[before:]
    return value

def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)

def in_hub(repo_id):
    return folder / "hub/datasets" / repo_id

def copy_of_store(name):
    return Path(shutil.copytree(store, folder / name))

def changed(name, **changes):
    copy = copy_of_store(name)
    manifest = read_manifest(copy)
    recipe = manifest.recipe.model_copy(update=changes.pop("recipe", {}))
    write_manifest(copy, manifest.model_copy(update={**changes, "recipe": recipe}))
    return copy

def cut_after(count, part):
    seen = []
    def cut(request):
        seen.extend([request] if part in request else [])
        return len(seen) > count and part in request
    hub.cut = cut

def mend():
    hub.cut = lambda request: False
    hub.damaged.clear()
"""

WORKING = """
from sae_lm.data.store import open_store

files = {path.relative_to(store).as_posix(): path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file()}
with hub:
    address = note("push", push, store, "me/acts")
    said["commits"] = [[commit.title, commit.paths] for commit in hub.commits]
    said["private"] = "me/acts" in hub.private
    said["card"] = (in_hub("me/acts") / "README.md").read_text()
    note("push again", push, store, "me/acts")
    said["commits again"] = len(hub.commits) - len(said["commits"])
    said["touched"] = files != {
        path.relative_to(store).as_posix(): path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file()}

    note("pull", pull, address, folder / "pulled")
    note("pull again", pull, "me/acts", folder / "pulled")
    flip(folder / "pulled/tokens/00001.safetensors")
    note("pull mends", pull, "hf://me/acts", folder / "pulled")
    note("pull a layer", pull, address, folder / "layer", ("1",))
    note("pull a layer again", pull, address, folder / "layer", ("blocks.1.*",))
    note("pull both hooks", pull, address, folder / "both", ("blocks.*.hook_out",))

    remote_store = note("open", open_store, "hf://datasets/me/acts")
    local = open_store(store)
    first, hook = local.first_row[2], "blocks.1.hook_out"
    def read(start, stop):
        return bool((remote_store.rows(hook, start, stop) == local.rows(hook, start, stop)).all())
    note("read a shard", read, first, first + 5)
    note("read on", read, first + 5, first + 20)
    note("read two shards", read, first - 1, first + 1)
    note("vocabulary", lambda: remote_store.vocabulary == local.vocabulary)

    manifest, locate = open_remote("hf://me/acts")
    wanted = [f"tokens/{shard:05d}.safetensors" for shard in (3, 4, 5)]
    threads = [threading.Thread(target=locate, args=[name]) for name in wanted * 4]
    before = len(hub.requests)
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    said["threads"] = hub.requests[before:]
    note("no such file", locate, "tokens/99999.safetensors")

    flip(locate("tokens/00003.safetensors").resolve())
    note("cached copy damaged", open_remote(address)[1], "tokens/00003.safetensors")
    note("pull from the cache", pull, address, folder / "cached", ("0",))

    hub.push("datasets", "me/acts", "main", "others write", {
        "tokens/00006.safetensors": b"other", "manifest.json": b"{}", "README.md": b"my own words"})
    note("pinned", lambda: hashlib.sha256(locate("tokens/00006.safetensors").read_bytes()).hexdigest()
        == manifest.all_files()["tokens/00006.safetensors"].sha256)
    note("moved on", open_remote, "hf://datasets/me/acts")
    note("by commit", open_remote, address)

    note("branch", push, one_hook, "me/acts", revision="v2/next")
    note("pull a branch", pull, "hf://datasets/me/acts@v2/next", folder / "branch")

    push(store, "me/mended")
    bad = b"x" * (store / "tokens/00002.safetensors").stat().st_size
    hub.objects["datasets", "me/mended"][hashlib.sha256(bad).hexdigest()] = bad
    words = b"?" * (store / "vocabulary.json").stat().st_size
    hub.push("datasets", "me/mended", "main", "lost", {"README.md": b"my own words", "vocabulary.json": words,
        "tokens/00001.safetensors": None, "tokens/00002.safetensors": bad})
    before = len(hub.commits)
    note("push mends", push, store, "me/mended")
    said["mending commits"] = [commit.paths for commit in hub.commits[before:]]
    said["card kept"] = (in_hub("me/mended") / "README.md").read_text()
    said["authorized"] = hub.tokens == {f"Bearer {token}"}
said["out of reach, seconds"] = time.monotonic()
note("out of reach, cached", lambda: len(open_store(address)))
note("out of reach, read", lambda: open_store(address).rows(hook, first, first + 5).shape[0])
note("out of reach, not cached", lambda: open_remote(address)[1]("blocks.1.hook_out/00009.safetensors"))
note("out of reach, push", push, store, "me/acts")
said["out of reach, seconds"] = time.monotonic() - said["out of reach, seconds"]
print(json.dumps(said))
"""

FAILING = """
def damage(name, path, change):
    copy = copy_of_store(name)
    change(copy / path)
    return copy

with hub:
    unfinished = copy_of_store("unfinished")
    (unfinished / "manifest.json").unlink()
    (unfinished / "progress").mkdir()
    (unfinished / "progress/recipe.json").write_text("{}")
    note("unfinished", push, unfinished, "me/refused")
    note("short", push, damage("short", "stats.safetensors", lambda path: os.truncate(path, 100)), "me/refused")
    note("missing", push, damage("missing", "tokens/00000.safetensors", Path.unlink), "me/refused")
    note("flipped", push, damage("flipped", "blocks.1.hook_out/00002.safetensors", flip), "me/flipped")
    said["flipped, commits"] = [commit.title for commit in hub.commits if commit.repo_id == "me/flipped"]
    note("no id", push, store, "acts")
    note("not mine", push, store, "you/acts")
    for name, value in {"wrong token": "hf_wrong_to_be_shown", "odd token": "hf_odd\\x0cto_be_shown"}.items():
        os.environ["HF_TOKEN"] = value
        logging.disable(logging.DEBUG)  # on that level the HTTP library quotes a malformed header, to whoever asks
        note(f"{name}, push", push, store, "me/acts")
        logging.disable(logging.NOTSET)
    del os.environ["HF_TOKEN"]
    note("no token, push", push, store, "me/acts")
    os.environ["HF_TOKEN"] = token
    address = push(store, "me/acts")
    os.environ["HF_TOKEN"] = "hf_wrong_to_be_shown"
    note("wrong token, open", open_remote, address)
    note("wrong token, pull", pull, address, folder / "never")
    os.environ["HF_TOKEN"] = token

    push(store, "me/public", private=False)
    note("public", push, store, "me/public")
    note("public, allowed", push, store, "me/public", private=False)
    note("another store", push, one_hook, "me/acts")
    note("same recipe", push, changed("moved", batch_size=99), "me/acts")
    push(one_hook, "me/part")
    hub.push("datasets", "me/part", "main", "manifest lost", {"manifest.json": None})
    note("part of another store", push, changed("more", recipe={"tokens": 7}), "me/part")
    hub.push("datasets", "me/other", "main", "a table", {"data/train.parquet": b"PAR1", "manifest.json": b"[]"})
    note("no store there", push, store, "me/other", private=False)
    hub.push("datasets", "me/table", "main", "a table", {"data/train.parquet": b"PAR1", "LICENSE": b"MIT"})
    note("beside other files", push, store, "me/table", private=False)
    note("open a table", open_remote, "hf://datasets/me/nothing-here")
    hub.push("datasets", "me/ignoring", "main", "no stats", {".gitignore": b"stats.safetensors\\n"})
    note("ignored there", push, store, "me/ignoring", private=False)
    said["ignored there, manifest"] = "manifest.json" in hub.contents("datasets", "me/ignoring")
    hub.push("datasets", "me/plain", "main", "text", {"train.jsonl": b"{}"})
    note("open a text", open_remote, "hf://datasets/me/plain")

    remote.SENT_FILES, remote.COMMIT_FILES = 4, 8
    cut_after(13, "PUT /lfs")
    note("upload cut", push, store, "me/cut")
    said["upload cut, stored"] = len(hub.objects["datasets", "me/cut"])
    said["upload cut, manifest"] = "manifest.json" in hub.contents("datasets", "me/cut")
    note("open what is not whole", open_remote, "hf://datasets/me/cut")
    mend()
    note("upload goes on", push, store, "me/cut")
    said["upload goes on, commits"] = [c.paths for c in hub.commits if c.repo_id == "me/cut"][1:]
    remote.SENT_FILES, remote.COMMIT_FILES = 32, 256

    def meddle(request):
        if "PUT /lfs" in request:
            hub.cut = lambda request: False
            hub.push("datasets", "me/meddled", "main", "others write", {"notes.txt": b"mine"})
        return False
    hub.cut = meddle
    note("meddled", push, store, "me/meddled")
    note("meddled, again", push, store, "me/meddled")
    mend()

    cut_after(9, "GET /datasets/me/acts/resolve")
    note("download cut", pull, address, folder / "pulled")
    said["download cut, there"] = sorted(
        path.relative_to(folder / "pulled").as_posix() for path in (folder / "pulled").rglob("*") if path.is_file())
    mend()
    note("download goes on", pull, address, folder / "pulled")
    said["download goes on, there"] = sorted(path.name for path in (folder / "pulled").iterdir())

    hub.damaged.add("tokens/00002.safetensors")
    note("damaged there, pull", pull, address, folder / "damaged")
    said["damaged there, manifest"] = (folder / "damaged/manifest.json").exists()
    note("damaged there, locate", open_remote(address)[1], "tokens/00002.safetensors")
    mend()
    note("whole again, locate", open_remote(address)[1], "tokens/00002.safetensors")
    note("whole again, pull", pull, address, folder / "damaged")

    (folder / "notes").mkdir()
    (folder / "notes/thesis.txt").write_text("mine")
    note("foreign folder", pull, address, folder / "notes")
    note("unfinished cache", pull, address, unfinished)
    note("other store", pull, address, copy_of_store("whole"), ("0",))
    note("a file", pull, address, folder / "notes/thesis.txt")
    note("no such hook", pull, address, folder / "never", ("blocks.2.hook_out",))
    note("no hook at all", pull, address, folder / "never", ("blocks.x",))
    free, shutil.disk_usage = shutil.disk_usage, lambda path: type("Usage", (), {"free": 1000})
    note("disk full", pull, address, folder / "never")
    shutil.disk_usage = free
    sinks = changed("sinks", recipe={"drop_sinks": 10.0})
    note("sinks, in part", pull, push(sinks, "me/sinks"), folder / "never", ("0",))
    note("sinks, whole", pull, "me/sinks", folder / "sinks pulled")

    for odd in ("hf://acts", "hf://datasets/acts", "hf://models/me/acts", "hf://spaces/me", "hf://me/acts@",
                "hf://datasets/me/../acts", "acts"):
        note(odd, open_remote, odd)
    note("no revision", open_remote, "hf://me/acts@v9")

    def evil(name, *, self_checksum=True):
        content = json.loads((store / "manifest.json").read_text())
        content["files"][name] = content["files"].pop("vocabulary.json")
        path = in_hub("me/evil") / "manifest.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
        if self_checksum:
            write_manifest(path.parent, Manifest.model_validate(content))
    for name in ("../../x", "/x", "a/../../x", "..\\\\x", "manifest.json", "pull.part/x"):
        evil(name)
        note(f"names {name}", pull, "me/evil", folder / "evil")
    evil("x", self_checksum=False)
    note("not intact", pull, "me/evil", folder / "evil")
    said["evil wrote"] = [path.name for path in folder.rglob("x")] + [path.name for path in folder.glob("evil/*")]
    (in_hub("me/evil") / "manifest.json").write_text(json.dumps({"version": 99}))
    note("other version", open_remote, "hf://me/evil")

    from huggingface_hub import constants
    constants.HF_HUB_DISABLE_XET = False
    note("no Xet there", push, store, "me/xet")
print(json.dumps(said))
"""

PASSWORD = """
with hub:
    push(store, "me/acts")
    cut_after(5, "GET /datasets/me/acts/resolve")
    note("download cut", pull, "hf://me/acts", folder / "password")
    mend()
    note("download goes on", pull, "hf://me/acts", folder / "password")
    locate = open_remote("hf://me/acts")[1]
    hub.failing["me/acts"] = 500
    note("broken, push", push, store, "me/acts")
    note("broken, locate", locate, "stats.safetensors")
note("gone", push, store, "me/acts")
print(json.dumps(said))
"""


def run(scene: str, folder: Path, store: Path, one_hook: Path, **changes: str) -> dict[str, Any]:
    inherited = {k: v for k, v in os.environ.items() if not k.upper().startswith(("HF_", "HTTP", "ALL_PROXY"))}
    settings = {
        "HF_HOME": str(folder / "home"),
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": os.pathsep.join(map(str, [Path(__file__).parents[2], Path(__file__).parents[1] / "support"])),
    }
    command = [sys.executable, "-c", COMMON + scene, str(folder), str(store), str(one_hook)]
    done = subprocess.run(command, env=inherited | settings | changes, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    shown = [line[:400] for line in (done.stdout + done.stderr).splitlines() if "to_be_shown" in line]
    assert not shown, shown
    return json.loads(done.stdout)


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
