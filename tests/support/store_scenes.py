"""Programs that push, pull and read stores at a stand-in for the hub, and say in JSON what was said and asked.

huggingface_hub reads the address of the hub when it is imported, so each scene runs in a process of its own, with the
stand-in in a thread beside it. Libraries log all they have to say there.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

TOKEN = "hf_not_to_be_shown"


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
    (folder / "mine").mkdir()
    for name in ("tokens", "pull.part"):
        (folder / f"linked {name}").mkdir()
        (folder / f"linked {name}" / name).symlink_to(folder / "mine")
        note(f"link out, {name}", pull, address, folder / f"linked {name}")
    said["link out wrote"] = [path.name for path in (folder / "mine").rglob("*")]
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
        "PYTHONPATH": os.pathsep.join(map(str, [Path(__file__).parents[2], Path(__file__).parent])),
    }
    command = [sys.executable, "-c", COMMON + scene, str(folder), str(store), str(one_hook)]
    done = subprocess.run(command, env=inherited | settings | changes, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    shown = [line[:400] for line in (done.stdout + done.stderr).splitlines() if "to_be_shown" in line]
    assert not shown, shown
    return json.loads(done.stdout)
