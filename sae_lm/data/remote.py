"""Push a store to a data-set repository of the hub, pull it whole or by hook, or read it from there shard by shard.

An address reads ``hf://datasets/OWNER/NAME[@REVISION]``, or short ``hf://OWNER/NAME[@REVISION]``; REVISION is a
branch, a tag or a commit, the main branch unless given. A repository holds a store as a folder does (see
``sae_lm.data.manifest``), and there too ``manifest.json`` comes last: its presence is the commit.

Of huggingface_hub's calls ``push`` takes those for single files and commits, not the two that upload a folder. One
keeps its notes inside the folder, and a store does not change by being pushed; the other makes a single commit
where Xet is not installed, hours after the first byte. Here a few files go out at a time, each held against its
checksum just before, and some hundreds are committed at once. What an interrupted push has sent is found by
checksum, in the repository's tree or in the hub's storage for large files, and is not sent again.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

from sae_lm.data.manifest import MANIFEST, FileRecord, Manifest, read_manifest, shard_of, write_manifest
from sae_lm.errors import HubError, StoreError
from sae_lm.fields import with_home
from sae_lm.hub.repository import SCHEME, Branch, address_of, download
from sae_lm.hub.revision import pin
from sae_lm.lm.hooks import expand_hooks
from sae_lm.runtime.differences import differences
from sae_lm.runtime.files import PART, free_bytes, refuse_links_out, sha256, write_whole
from sae_lm.runtime.progress import Progress

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile

CARD = "README.md"
STATS = "stats.safetensors"
STAGING = f"pull{PART}"
"""Folder inside a store that is being pulled: what has not been checked yet."""
WORKERS = 8
SENT_BYTES, SENT_FILES = 10**9, 32
"""What goes out at a time: about so many bytes, in at most so many files."""
COMMIT_FILES = 256
"""Files per commit, about: the hub wants neither thousands in one commit nor a commit for each."""


class _Remote(NamedTuple):
    """A store on the hub, at one commit."""

    repo_id: str
    commit: str
    folder: Path
    """the commit's files in the local hub cache, as far as they are there"""
    manifest: Manifest

    @property
    def address(self) -> str:
        return address_of(self.repo_id, self.commit)

    def fetch(self, name: str, record: FileRecord, folder: Path | None = None) -> Path:
        """A file that matches its record, from the local hub cache or fetched into it (or into ``folder``)."""
        for again in (False, True):  # a damaged copy is fetched once more
            path = download(self.repo_id, self.commit, name, again, folder)
            if _matches(path, record):
                return path
        raise StoreError(
            f"{name} of {self.address} does not match its checksum, although fetched twice; "
            "push the store again from a whole copy"
        )


def open_remote(address: str) -> tuple[Manifest, Callable[[str], Path]]:
    """The manifest of a store on the hub, and ``locate``: name of a file in the store -> its local path.

    The revision is pinned to the commit that it stands for now. ``locate`` fetches a file into the local hub cache
    when it is first asked for, checks its size at each call and its checksum at the first, and may be called from
    several threads. Raises HubError (no such repository, out of reach), StoreError (no store, damaged).
    """
    remote = _open(address)
    files = remote.manifest.all_files()
    locks = {name: Lock() for name in files}
    checked: dict[str, Path] = {}

    def locate(name: str) -> Path:
        if name not in files:
            raise StoreError(f"{remote.address} has no file {name!r}; expected one that its manifest names")
        with locks[name]:
            if name not in checked or not _has_size(checked[name], files[name]):
                checked[name] = remote.fetch(name, files[name])
            return checked[name]

    return remote.manifest, locate


def pull(address: str, out: str | Path, hooks: tuple[str, ...] | None = None) -> Path:
    """Download a store into the folder ``out``, each file held against its checksum. Returns ``out``.

    hooks: keep these alone (names, layer numbers, glob patterns). The result is a store in itself, the one that
        caching these hooks alone would have written, so its ``Manifest.id`` is another one.

    The same call goes on after an interruption, mends damaged files of the same store, and takes what the local
    hub cache holds. Raises StoreError (other content in ``out``, no such hook, damaged, disk full), HubError.
    """
    out, remote = Path(with_home(out)), _open(address)
    manifest, rewritten = (remote.manifest, {}) if hooks is None else _only(remote, hooks)
    files = manifest.all_files()
    _check_folder(out, remote.address, manifest)
    refuse_links_out(out, {STAGING, *(name.split("/")[0] for name in files)}, StoreError)
    out.mkdir(parents=True, exist_ok=True)

    def fetch(name: str) -> int:
        path, cached = out / name, remote.folder / name
        if _matches(path, files[name]):
            pass
        elif name in rewritten:
            write_whole(path, lambda temporary: temporary.write_bytes(rewritten[name]))
        elif _matches(cached, files[name]):
            write_whole(path, lambda temporary: shutil.copyfile(cached, temporary))
        else:
            staged = remote.fetch(name, files[name], out / STAGING)
            write_whole(path, lambda temporary: os.replace(staged, temporary))
        return files[name].bytes

    pool = ThreadPoolExecutor(WORKERS)
    try:
        with Progress("pulling", _total(files), "B") as bar:
            for fetched in as_completed([pool.submit(fetch, name) for name in files]):
                bar.update(fetched.result())
    finally:
        pool.shutdown(cancel_futures=True)
    shutil.rmtree(out / STAGING, ignore_errors=True)
    if (out / MANIFEST).exists():
        return out
    if rewritten:
        write_manifest(out, manifest)
    else:
        write_whole(out / MANIFEST, lambda temporary: shutil.copyfile(remote.folder / MANIFEST, temporary))
    return out


def push(store: str | Path, repo_id: str, *, private: bool = True, revision: str | None = None) -> str:
    """Upload a whole store to the data-set repository ``OWNER/NAME``, made if missing. Returns its address.

    private: whether a repository made here is private; into a public one only ``private=False`` pushes.
    revision: the branch to push to, made if missing; else the main one.

    The same call goes on after an interruption. A card (README.md) that describes the store is added unless there
    is one. Raises StoreError (not whole), HubError (not allowed, out of reach, another store is there).
    """
    from huggingface_hub import CommitOperationAdd

    store = Path(with_home(store))
    if not re.fullmatch(r"[^/\s@:]+/[^/\s@:]+", repo_id):
        raise HubError(f"{repo_id!r} is no id of a repository, which reads OWNER/NAME; name one to push to")
    manifest, committed = read_manifest(store), (store / MANIFEST).read_bytes()
    files = manifest.all_files()
    for name, record in files.items():
        if not _has_size(store / name, record):
            raise _damaged(store, name)
    branch = Branch(f"pushing {store}", repo_id, revision, private)
    pushed = branch.tree()
    missing = [name for name, record in files.items() if not _is_kept(pushed.get(name), store / name, record)]
    if MANIFEST in pushed:
        _check_same(branch, manifest)
    elif foreign := [name for name in pushed if name in missing or (name not in files and shard_of(name) is not None)]:
        raise HubError(
            f"the data set {repo_id!r} holds part of another store ({foreign[0]}); push to another repository, "
            "or delete that one"
        )
    _send(branch, store, files, missing)
    kept = branch.tree() if missing else pushed
    for name, record in files.items():
        if not _is_kept(kept.get(name), store / name, record):
            raise HubError(f"the data set {repo_id!r} did not keep {name}; see whether a .gitignore there names it")
    last = {MANIFEST: committed, CARD: _card(manifest, address_of(repo_id, revision)).encode()}
    if operations := [CommitOperationAdd(name, last[name]) for name in last if name not in pushed]:
        branch.commit(f"Complete activation store {manifest.id[:12]}", operations)
        if MANIFEST not in branch.tree():
            raise HubError(f"the data set {repo_id!r} did not keep {MANIFEST}, though it said so; push again")
    return address_of(repo_id, branch.head)


# --- pull and open


def _open(address: str) -> _Remote:
    parsed = re.fullmatch(rf"(?:{SCHEME})?(?:datasets/)?([^/@:]+/[^/@:]+)/?(?:@(.+))?", address)
    if not parsed or parsed[1].split("/")[0] in ("datasets", "models", "spaces"):
        raise HubError(f"{address!r} is no address of a store, which reads {SCHEME}datasets/OWNER/NAME[@REVISION]")
    repo_id, commit, _ = pin(parsed[1], "dataset", parsed[2])
    folder = download(repo_id, commit, MANIFEST).parent
    try:
        remote = _Remote(repo_id, commit, folder, read_manifest(folder))
    except StoreError as problem:
        raise StoreError(str(problem).replace(str(folder), address_of(repo_id, commit))) from None
    for name in remote.manifest.all_files():
        if name == MANIFEST or any(part.endswith(PART) for part in name.split("/")):
            raise StoreError(f"{remote.address} names {name!r}, which is no file of a store; do not trust this store")
    return remote


def _only(remote: _Remote, hooks: tuple[str, ...]) -> tuple[Manifest, dict[str, bytes]]:
    """The manifest of a store with some hooks alone, and the content of the files that are others for it."""
    manifest, recipe = remote.manifest, remote.manifest.recipe
    kept: set[str] = set()
    for pattern in hooks:
        wanted = expand_hooks([pattern], recipe.model.get("n_layers", 0), recipe.hooks) or []
        if not recipe.hooks.keys() & wanted:
            raise StoreError(f"{remote.address} has no hook {pattern!r}; it holds {', '.join(recipe.hooks)}")
        kept |= recipe.hooks.keys() & wanted
    dropped = recipe.hooks.keys() - kept
    if not dropped:
        return manifest, {}
    if recipe.drop_sinks is not None:
        raise StoreError(
            f"{remote.address} cannot be pulled in part: it has no rows where any of its hooks saw an attention sink; "
            "pull it whole, or open the address itself, which fetches only what is read"
        )

    def belonging(files: dict[str, FileRecord]) -> dict[str, FileRecord]:
        return {name: record for name, record in files.items() if name.split("/")[0] not in dropped}

    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save

    if STATS not in manifest.files:
        raise StoreError(f"{remote.address} has no {STATS}, so that no part of it is a store; pull it whole")
    try:
        with safe_open(remote.fetch(STATS, manifest.files[STATS]), "pt") as stats:
            names = [name for name in stats.keys() if name.rpartition("/")[0] not in dropped]  # noqa: SIM118
            content = save({name: stats.get_tensor(name) for name in names}, stats.metadata())
    except SafetensorError as problem:
        raise StoreError(f"{STATS} of {remote.address} cannot be read ({problem}); push the store again") from None
    record = FileRecord(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    changes = {
        "recipe": recipe.model_copy(update={"hooks": {h: width for h, width in recipe.hooks.items() if h in kept}}),
        "shards": [shard.model_copy(update={"files": belonging(shard.files)}) for shard in manifest.shards],
        "files": belonging(manifest.files) | {STATS: record},
    }
    return manifest.model_copy(update=changes), {STATS: content}


def _check_folder(out: Path, address: str, manifest: Manifest) -> None:
    """Refuse a folder that holds anything else, and a disk that has no room."""
    if out.exists() and not out.is_dir():
        raise StoreError(f"{out} is a file; give a folder to pull into")
    files = manifest.all_files()
    if (out / MANIFEST).exists():
        if read_manifest(out).id != manifest.id:
            raise StoreError(f"{out} holds another store than {address}; pull into another folder, or delete that one")
    else:
        for path in out.rglob("*"):
            name = path.relative_to(out).as_posix()
            if path.is_file() and name.split("/")[0] != STAGING and name.removesuffix(PART) not in {*files, MANIFEST}:
                raise StoreError(f"{out} is not empty: {name} is not of {address}; pull into a new folder")
    needed = sum(record.bytes for name, record in files.items() if not _has_size(out / name, record))
    if needed > (free := free_bytes(out)):
        raise StoreError(
            f"{out}: the store needs {needed / 1e9:.1f} GB more, the disk has {free / 1e9:.1f} GB free; "
            "pull fewer hooks, or to another disk"
        )


# --- push


def _send(branch: Branch, store: Path, files: dict[str, FileRecord], missing: list[str]) -> None:
    """Upload and commit the missing files. Raises StoreError before a damaged one goes out."""
    from huggingface_hub import CommitOperationAdd

    total = _total(files)
    waiting: list[CommitOperationAdd] = []
    with Progress("pushing", total, "B", total - sum(files[name].bytes for name in missing)) as bar:
        for names in _portions(missing, files):
            operations = [CommitOperationAdd(name, store / name) for name in names]
            with ThreadPoolExecutor(WORKERS) as pool:
                digests = pool.map(lambda operation: operation.upload_info.sha256.hex(), operations)
                for name, digest in zip(names, digests, strict=True):
                    if digest != files[name].sha256:
                        raise _damaged(store, name)
            branch.send(operations)
            waiting += operations
            if len(waiting) >= COMMIT_FILES or names[-1] == missing[-1]:
                branch.commit(f"Add {len(waiting)} of {len(files)} files", waiting)
                waiting = []
            bar.update(sum(files[name].bytes for name in names))


def _portions(names: list[str], files: dict[str, FileRecord]) -> Iterator[list[str]]:
    portion: list[str] = []
    for name in names:
        portion.append(name)
        if len(portion) == SENT_FILES or sum(files[one].bytes for one in portion) >= SENT_BYTES:
            yield portion
            portion = []
    if portion:
        yield portion


def _check_same(branch: Branch, manifest: Manifest) -> None:
    address = address_of(branch.repo_id, branch.head)
    try:
        pushed = read_manifest(download(branch.repo_id, branch.head, MANIFEST).parent)
    except StoreError:
        raise HubError(f"{address} holds a store that cannot be read here; push to another repository") from None
    if pushed.id != manifest.id:
        differing = differences(pushed.recipe.model_dump(), manifest.recipe.model_dump())
        what = ", ".join(difference.key for difference in differing) or "the contents of its files"
        raise HubError(f"{address} is another store, other in {what}; push to another repository, or delete it")


def _is_kept(entry: "RepoFile | None", path: Path, record: FileRecord) -> bool:
    if entry is None or entry.size != record.bytes:
        return False
    if entry.lfs is not None:
        return entry.lfs.sha256 == record.sha256
    content = path.read_bytes()  # only small files are kept outside the storage for large ones, under git's checksum
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    return entry.blob_id == blob and hashlib.sha256(content).hexdigest() == record.sha256


def _card(manifest: Manifest, address: str) -> str:
    recipe = manifest.recipe
    properties = {
        "language model": f"{recipe.model.get('id')} {recipe.model.get('revision') or ''}",
        "hooks": ", ".join(f"{hook} [{width}]" for hook, width in recipe.hooks.items()),
        "rows": f"{manifest.rows:,} of {recipe.dtype}, in {len(manifest.shards):,} shards",
        "contexts": f"{manifest.contexts:,} of {recipe.context_size} tokens",
        "text": " ".join(str(recipe.text.get(key) or "") for key in ("id", "split", "fingerprint")),
        "size": f"{_total(manifest.all_files()):,} bytes",
        "store": manifest.id,
    }
    rows = "\n".join(f"| {key} | `{' '.join(value.replace('`', '').split())}` |" for key, value in properties.items())
    return f"""---
tags:
- sae_lm
- activations
- interpretability
viewer: false
---

# Activations of a language model

An activation store written by `sae_lm`: what hooks of a language model saw, one row per token, beside token
ids, documents and positions; safetensors files, and a `manifest.json` with a checksum of each.

| | |
|---|---|
{rows}

```python
import sae_lm

store = sae_lm.open_store("{address}")  # fetches the shards that are read
```
"""


def _total(files: dict[str, FileRecord]) -> int:
    return sum(record.bytes for record in files.values())


def _has_size(path: Path, record: FileRecord) -> bool:
    return path.is_file() and path.stat().st_size == record.bytes


def _matches(path: Path, record: FileRecord) -> bool:
    return _has_size(path, record) and sha256(path) == record.sha256


def _damaged(store: Path, name: str) -> StoreError:
    return StoreError(f"store {store} is damaged ({name}), so it is not pushed; run sae-lm verify {store} --repair")
