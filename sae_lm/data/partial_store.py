"""A store that is being written: its recipe, and a record for each shard whose files are whole."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from math import isfinite
from pathlib import Path

from pydantic import ValidationError

from sae_lm.data.manifest import MANIFEST, PROGRESS, RECIPE, Recipe, ShardRecord, read_manifest
from sae_lm.data.tokens import Place
from sae_lm.errors import StoreError
from sae_lm.runtime.differences import differences, in_words
from sae_lm.runtime.files import PART, PROBE, clear_probes, parse_json, read_json, refuse_links_out, write_json
from sae_lm.runtime.locks import has_locks, open_lock, take_lock

LOCK = f"{PROGRESS}/lock"


def check_folder(out: Path) -> None:
    """Raise StoreError where a store cannot be written or continued."""
    if out.exists() and not out.is_dir():
        raise StoreError(f"{out} is a file; give --out a folder")
    if not out.is_dir() or (out / MANIFEST).is_file() or (out / RECIPE).is_file():
        return
    names = {path.relative_to(out).as_posix() for path in out.rglob("*")}
    # what a run leaves that was killed in its first moments, or another does that begins
    of_first_moments = {PROGRESS, LOCK, f"{RECIPE}{PART}", *(name for name in names if name.startswith(PROBE))}
    if not names <= of_first_moments:
        raise StoreError(f"{out} is not empty and not an activation store; give --out a new folder")


@contextmanager
def open_for_writing(out: Path, recipe: Recipe, *, lock: bool = True) -> Iterator["PartialStore | None"]:
    """What there is of a store of this recipe; None where it is finished, which needs no lock.

    Inside the block no other process writes the store, unless ``lock`` is False: of several processes that write one
    store together the first holds the lock. Raises StoreError where another process writes it, or where the folder
    holds a store of another recipe.
    """
    if _is_finished(out, recipe):
        yield None
        return
    with _only_writer(out) if lock else nullcontext():
        yield read_partial_store(out, recipe)


@contextmanager
def _only_writer(out: Path) -> Iterator[None]:
    """Hold the store's lock. Raises StoreError where another process holds it, or where it is a link out of the store."""
    refuse_links_out(out, [LOCK], StoreError)
    if not has_locks():
        yield
        return
    with open_lock(out / LOCK) as file:
        if not take_lock(file, out):
            raise StoreError(f"another process is writing {out}; wait for its end, or give another --out")
        yield


class PartialStore:
    """A store that is being written."""

    def __init__(self, out: Path, recipe: Recipe) -> None:
        self.out, self.recipe = out, recipe
        self.records: dict[int, ShardRecord] = {}
        self.places: dict[int, Place] = {}
        """number of a shard -> from where the text is read on behind it; may lack some"""
        self.sink_norms: dict[str, float] = {}
        self.versions: dict[str, str] = {}
        self.batch_size = 0

    @staticmethod
    def record_file(out: Path, index: int) -> Path:
        return out / PROGRESS / f"{index:05d}.json"

    @staticmethod
    def place_file(out: Path, index: int) -> Path:
        return out / PROGRESS / f"{index:05d}.place.json"

    def begin(self, batch_size: int, sink_norms: dict[str, float]) -> None:
        """Write the recipe and what this run adds to an earlier one's notes. An earlier run's norms stay."""
        refuse_links_out(self.out, (PROGRESS, "tokens", *self.recipe.hooks), StoreError)
        self._clear()
        here = {name: version(name) for name in ("sae_lm", "torch", "transformers", "transformer-lens", "datasets")}
        self.versions = {
            name: ", ".join(dict.fromkeys([*filter(None, self.versions.get(name, "").split(", ")), number]))
            for name, number in here.items()
        }
        self.batch_size, self.sink_norms = batch_size, self.sink_norms or sink_norms
        notes = {"batch_size": self.batch_size, "sink_norms": self.sink_norms, "versions": self.versions}
        write_json(self.out / RECIPE, {"recipe": self.recipe.model_dump(), **notes})

    def _clear(self) -> None:
        """Delete what a killed run was writing: shards without a record, parts of files, safetensors' own ``.tmp`` files."""
        recorded = {self.out / name for record in self.records.values() for name in record.files}
        for folder in ("tokens", *self.recipe.hooks):
            for file in (self.out / folder).glob("*"):
                if file not in recorded:
                    file.unlink()
        names = ("manifest.json", "stats.safetensors", "vocabulary.json", "token_bytes.json")
        parts = [self.out / f"{name}{PART}" for name in names]
        for file in (*parts, *self.out.glob(".tmp??????"), *(self.out / PROGRESS).glob(f"*.json{PART}")):
            file.unlink(missing_ok=True)

    def reread(self) -> "PartialStore":
        state = read_partial_store(self.out, self.recipe)
        assert state is not None
        return state

    def end(self) -> None:
        """After the commit: the records are in the manifest now. Another process may see that, and clear them as well."""
        shutil.rmtree(self.out / PROGRESS, ignore_errors=True)
        clear_probes(self.out, age=1.0)

    def give_up(self) -> None:
        """Delete what was written of a store that has no rows; the folder too, if nothing else is in it."""
        for folder in (PROGRESS, "tokens", *self.recipe.hooks):
            shutil.rmtree(self.out / folder, ignore_errors=True)
        if not any(self.out.iterdir()):
            self.out.rmdir()


def read_partial_store(out: Path, recipe: Recipe) -> PartialStore | None:
    """What there is of a store; empty for a new one, None for a finished one of this recipe.

    Records whose files are missing or cut short are left out. Raises StoreError where the folder holds
    another store, naming what differs.
    """
    if _is_finished(out, recipe):
        return None
    state = PartialStore(out, recipe)
    if not (out / RECIPE).exists():
        return state
    content = read_json(out / RECIPE, StoreError, "an activation store")
    try:
        state.sink_norms, state.versions = dict(content["sink_norms"]), dict(content["versions"])
        state.batch_size = int(content["batch_size"])
        if not all(isinstance(number, str) for number in state.versions.values()):
            raise ValueError("versions")
        if not all(isinstance(norm, (int, float)) and isfinite(norm) for norm in state.sink_norms.values()):
            raise ValueError("sink_norms")
        for file in sorted((out / PROGRESS).glob("*.json")):
            if re.fullmatch(r"\d{5,}", file.stem):
                record = ShardRecord.model_validate(read_json(file, StoreError, "a shard's record"))
                if _files_are_whole(out, record):
                    state.records[int(file.stem)] = record
                    if place := _read_place(PartialStore.place_file(out, int(file.stem))):
                        state.places[int(file.stem)] = place
    except (ValidationError, KeyError, TypeError, ValueError, OverflowError, OSError):  # OSError: a name too long
        raise _not_understood(out) from None
    return state


def _read_place(file: Path) -> Place | None:
    """None where a store of an earlier version has none, or where it was cut: then the text is read from its beginning."""
    try:
        reader, skipped, anchor, *numbers = parse_json(file.read_text(encoding="utf-8"))
        document, index, offset = map(int, numbers)
        return Place(reader, int(skipped), str(anchor), document, index, offset)
    except (OSError, ValueError, TypeError, OverflowError):  # OverflowError: of an infinity
        return None


def stored_recipe(out: Path) -> Recipe | None:
    """The recipe of a whole or unfinished store; None where there is none. Raises StoreError for a damaged one."""
    if (out / MANIFEST).exists():
        return read_manifest(out).recipe
    if not (out / RECIPE).exists():
        return None
    content = read_json(out / RECIPE, StoreError, "an activation store")
    try:
        return Recipe.model_validate(content.get("recipe"))
    except ValidationError:
        raise _not_understood(out) from None


def _is_finished(out: Path, recipe: Recipe) -> bool:
    """Whether there is a whole store. Raises StoreError where a whole or unfinished one is of another recipe."""
    finished = (out / MANIFEST).exists()
    if (stored := stored_recipe(out)) is not None:
        check_same(out, stored, recipe)
    if finished:
        shutil.rmtree(out / PROGRESS, ignore_errors=True)  # a kill between the commit and the end leaves it
    return finished


def _not_understood(out: Path) -> StoreError:
    return StoreError(f"{out / PROGRESS} is not understood, so caching cannot go on; delete {out} and cache again")


def _files_are_whole(out: Path, record: ShardRecord) -> bool:
    paths = {out / name: file.bytes for name, file in record.files.items()}
    return all(path.is_file() and path.stat().st_size == size for path, size in paths.items())


def check_same(out: Path, stored: Recipe, wanted: Recipe) -> None:
    """Raise StoreError naming settings in which a store differs from the one asked for."""
    if differing := differences(stored.model_dump(), wanted.model_dump()):
        moved = [one.key for one in differing] == ["model.revision"] and stored.model.get("revision")
        go_on = f"give --revision {moved} to go on with it, " if moved else "give "
        raise StoreError(f"{out} holds another store: {in_words(differing)}; {go_on}another --out or delete the folder")
