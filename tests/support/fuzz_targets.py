"""What of sae_lm reads which files: each target makes whole files once, and reads them again when one of them is damaged."""

import hashlib
import json
import random
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from hub_answers import PLAN, draw_plan, folder_of, reads_of
from hub_stand_in import HubStandIn

ZEROS = b"0" * 64


class Target(NamedTuple):
    """``read`` looks at a folder whose files are those of ``folder``, one of them damaged."""

    name: str
    folder: Path
    damaged: Sequence[str]
    """relative names of the files that may be damaged"""
    read: Callable[[Path], object]
    reseal: Callable[[Path, str, random.Random], None] = lambda folder, name, draw: None
    """makes checksums agree with the damage, as a forger would"""


def targets(scratch: Path, hub: HubStandIn | None = None) -> list[Target]:
    """All of them. scratch: an empty folder. hub: what this process takes for the hub; without it, none of its answers."""
    from foreign_saes import FOREIGN

    store = _store(scratch / "made")
    runs = _runs(scratch / "made", store)
    found = [
        *_of_store(store),
        *_of_runs(scratch, runs, store),
        *_of_settings(scratch / "settings"),
        _of_lists(scratch),
    ]
    for number, (name, (write, _)) in enumerate(FOREIGN.items()):
        folder = scratch / f"foreign{number}"
        folder.mkdir()
        path, _formula = write(folder)
        inside = path.relative_to(folder)
        files = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
        found.append(Target(f"SAE, {name}", folder, files, _load_at(inside)))
    if hub is not None:
        folder = folder_of(scratch, store, runs / "none-seed0")
        found += [Target(name, folder, [PLAN], read, draw_plan) for name, read in reads_of(hub).items()]
    return found


def _load_at(inside: Path) -> Callable[[Path], object]:
    def read(folder: Path) -> None:
        from sae_lm.commands.inspect import inspect
        from sae_lm.commands.verify import verify
        from sae_lm.sae.load import load

        sae = load(folder / inside, "cpu")
        sae(torch.zeros(2, sae.config.d_in))
        printable(inspect(str(folder / inside)))
        if "weights_sha256" in sae.config.metadata:  # without it there is nothing to verify
            verify(folder / inside)

    return read


def printable(text: str) -> None:
    """Raises ValueError where a terminal would obey the text rather than show it."""
    text.encode()
    if wrong := [c for c in text if not c.isprintable() and c != "\n"]:
        raise ValueError(f"the terminal is sent {wrong[0]!r}")


# --- stores


def _store(scratch: Path) -> Path:
    """Forty rows in two shards, of a tiny random model."""
    from conftest import TEXTS, save_tiny_model

    from sae_lm.commands.cache import cache
    from sae_lm.settings import CacheSettings

    scratch.mkdir(parents=True)
    model = save_tiny_model(scratch / "model", width=8, layers=2)
    text = scratch / "text.jsonl"
    text.write_text("".join(json.dumps({"text": one}) + "\n" for one in TEXTS))
    settings = {"hooks": "blocks.0.hook_out", "tokens": 400, "context_size": 16, "batch_size": 4, "shard_tokens": 256}
    return cache(
        CacheSettings(
            model=str(model), text=str(text), dtype="float32", device="cpu", out=scratch / "store", **settings
        )
    )


def _of_store(store: Path) -> Iterator[Target]:
    files = [path.relative_to(store).as_posix() for path in store.rglob("*") if path.is_file()]
    manifest = ["manifest.json"] * len(files)
    yield Target("store", store, [*files, *manifest], _read_store, _reseal_store)
    yield Target("store on the hub", store, [*files, *manifest], _pull, _reseal_store)
    unfinished = store.with_name("unfinished")
    shutil.copytree(store, unfinished)
    content = json.loads((unfinished / "manifest.json").read_bytes())
    (unfinished / "manifest.json").unlink()
    (unfinished / "progress").mkdir()
    notes = {key: content[key] for key in ("recipe", "batch_size", "sink_norms", "versions")}
    (unfinished / "progress/recipe.json").write_text(json.dumps(notes))
    for number, shard in enumerate(content["shards"]):
        (unfinished / f"progress/{number:05d}.json").write_text(json.dumps(shard))
        (unfinished / f"progress/{number:05d}.place.json").write_text(json.dumps(["jsonl", 1, "ab", 0, 0, 0]))
    names = sorted(f"progress/{path.name}" for path in (unfinished / "progress").iterdir())
    yield Target("unfinished store", unfinished, names, _read_unfinished(notes["recipe"]))


def _read_store(folder: Path) -> None:
    from sae_lm.commands.inspect import inspect
    from sae_lm.commands.verify import verify
    from sae_lm.data.store import open_store

    printable("\n".join(verify(folder)))
    store = open_store(folder)
    printable(inspect(str(folder), 3))
    store.rows_beyond(3.0)
    store.held_out_from(0.2)
    next(store.batches(8, columns=["token_id", store.hook()]))


def _pull(folder: Path) -> None:
    """As from a hub that serves these files."""
    from sae_lm.data import remote
    from sae_lm.errors import StoreError
    from sae_lm.hub.revision import Pinned

    def download(repo_id: str, commit: str, name: str, again: bool = False, out: Path | None = None) -> Path:
        if not (folder / name).is_file():
            raise StoreError(f"has no {name!r}")
        if out is None:
            return folder / name
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, target)
        return target

    before = remote.pin, remote.download
    remote.pin, remote.download = lambda *_: Pinned("a/b", "c" * 40, None), download
    out = folder / "pulled"
    try:
        remote.pull("hf://datasets/a/b", out, ("blocks.0.hook_out",))
        printable(remote._card(remote.read_manifest(out), "hf://datasets/a/b"))
    finally:
        remote.pin, remote.download = before
        shutil.rmtree(out, ignore_errors=True)


def _read_unfinished(recipe: dict) -> Callable[[Path], object]:
    def read(folder: Path) -> None:
        from sae_lm.data.manifest import Recipe
        from sae_lm.data.partial_store import open_for_writing

        with open_for_writing(folder, Recipe.model_validate(recipe)) as state:
            if state is not None:
                state.begin(4, {})

    return read


def _reseal_store(folder: Path, name: str, draw: random.Random) -> None:
    path = folder / "manifest.json"
    if draw.random() < 0.2:
        return
    content = path.read_bytes()
    if name != "manifest.json":
        damaged = (folder / name).read_bytes()
        manifest = json.loads(content)
        for files in (manifest["files"], *(shard["files"] for shard in manifest["shards"])):
            if name in files:
                files[name] = {"bytes": len(damaged), "sha256": hashlib.sha256(damaged).hexdigest()}
        content = json.dumps(manifest, indent=1).encode()
    if found := re.search(rb'"sha256": "([0-9a-f]{64})"', content):
        blank = content[: found.start(1)] + ZEROS + content[found.end(1) :]
        digest = hashlib.sha256(blank).hexdigest().encode()
        content = content[: found.start(1)] + digest + content[found.end(1) :]
    path.write_bytes(content)


# --- folders of runs


def _runs(scratch: Path, store: Path) -> Path:
    from sae_lm.commands.train import train
    from sae_lm.settings import TrainSettings

    settings = {"d_sae": 12, "k": 3, "seeds": 1, "tokens": 640, "batch_size": 32, "log_every": 5, "device": "cpu"}
    train(TrainSettings(store=str(store), out=scratch / "runs", arms="none,sq_cos:10", **settings))
    return scratch / "runs"


def _of_runs(scratch: Path, runs: Path, store: Path) -> Iterator[Target]:
    files = [path.relative_to(runs).as_posix() for path in runs.rglob("*") if path.is_file()]
    texts = [name for name in files if name.endswith(("json", "jsonl"))]
    yield _of_codes(scratch, runs, store)
    yield Target("folder of runs", runs, [*files, *texts], _read_runs, _reseal_sae)
    group, trainers, recipe = _group()
    folder = scratch / "checkpoints"
    from sae_lm.training.state import write_checkpoint

    write_checkpoint(group, trainers, folder, recipe, 5)
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]

    def read(place: Path) -> None:
        from sae_lm.training.state import read_unfinished, restore

        restore(group, _group()[1], place, recipe)
        read_unfinished(place, 0)

    yield Target("checkpoint", folder, names, read, _reseal_checkpoint)


def _of_codes(scratch: Path, runs: Path, store: Path) -> Target:
    """Codes on disk: what is damaged is encoded again, so that it cannot be noticed."""
    from sae_lm.data.store import open_store
    from sae_lm.metrics.stored_codes import store_codes
    from sae_lm.sae.load import load

    rows, sae, folder = open_store(store), load(runs / "none-seed0", "cpu"), scratch / "codes"

    def read(place: Path) -> list[bytes]:
        codes = store_codes(rows, rows.hook(), sae, 0, len(rows), place)
        return [array.tobytes() for part in codes.parts() for array in part[1:]]

    whole = read(folder)

    def compare(place: Path) -> None:
        if read(place) != whole:
            raise ValueError("silently wrong codes")

    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return Target("codes", folder, names, compare)


def _read_runs(folder: Path) -> None:
    from sae_lm.commands.verify import verify
    from sae_lm.comparison.runs import read_runs
    from sae_lm.sae.load import load
    from sae_lm.training.convergence import state_of_training
    from sae_lm.training.registered import not_registered, read_registered
    from sae_lm.training.run_folder import read_convergence, read_saes
    from sae_lm.training.trackers import Track, read_lines

    verify(folder / "none-seed0")
    load(folder / "none-seed0", "cpu")
    read_lines(folder / "none-seed0.metrics.jsonl")
    with Track(folder / "none-seed0.metrics.jsonl", (), {}).begin(10):
        pass
    if registered := read_registered(folder):
        not_registered(folder, registered)
    found = {sae.arm or "": [read_convergence(sae.directory)] for sae in read_saes(folder)}
    printable(state_of_training(found) or "")
    runs = read_runs(folder, "none")
    printable("\n".join(runs.partial))
    runs.check()


def _reseal_sae(folder: Path, name: str, draw: random.Random) -> None:
    if name.endswith(".safetensors") and draw.random() < 0.7:
        config = (folder / name).with_name("cfg.json")
        content = json.loads(config.read_bytes())
        content["metadata"]["weights_sha256"] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        config.write_text(json.dumps(content))


def _group():
    from recipes import training_recipe

    from sae_lm.penalties.arms import parse_arm
    from sae_lm.training.state import ArmGroup
    from sae_lm.training.trainer import ArmTraining

    recipe = training_recipe(steps=20, d_sae=12, k=3)
    arm = parse_arm("none")
    return ArmGroup(0, [arm], []), [ArmTraining(arm, 0, recipe, torch.zeros(6), "cpu")], recipe


def _reseal_checkpoint(folder: Path, name: str, draw: random.Random) -> None:
    if name.endswith(".safetensors") and draw.random() < 0.8:
        state = (folder / name).with_name("state.json")
        content = json.loads(state.read_bytes())
        content["files"][Path(name).name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        state.write_text(json.dumps(content))


# --- what a user writes, and what a hub lists

CONFIG = """\
[cache]
out = "acts"
hooks = "3,blocks.1.hook_out"
tokens = "10k"
context_size = 16
[train]
store = "acts"
d_sae = 64
k = 8
arms = "none,max_cos:0.25,sq_cos@fvu=0.005"
lr = 3e-3
seeds = 2
out = "saes"
[compare]
seed = 0
[[claim]]
sentence = "Rows are farther apart."
metric = "nearest_cos"
arm = "max_cos:0.25"
expect = "lower"
"""
LABELS = "token,label,child\n cat,animal,cat\n dog,animal,\nred,hue of red,\n"


def _of_settings(folder: Path) -> Iterator[Target]:
    folder.mkdir()
    (folder / "config.toml").write_text(CONFIG)
    (folder / "labels.csv").write_text(LABELS)
    yield Target("TOML file", folder, ["config.toml"], _read_config)
    yield Target("labels", folder, ["labels.csv"], _read_labels)


def _read_config(folder: Path) -> None:
    from sae_lm.cli import parse
    from sae_lm.settings import command_line
    from sae_lm.training.registered import _read

    for verb in ("cache", "train"):
        _, settings = parse([verb, "--config", str(folder / "config.toml")])
        command_line(settings)
    for claim in _read(folder / "config.toml").claims:
        claim.model_dump()


def _read_labels(folder: Path) -> None:
    from sae_lm.concepts.token_labels import label_table, read_labels

    vocabulary = [" cat", " dog", "red", "green", "", "�", " a"]
    given = read_labels(folder / "labels.csv", vocabulary)
    printable(given.unknown or "")
    label_table(vocabulary, range(len(vocabulary)), given)


def _of_lists(scratch: Path) -> Target:
    """A hub's answer: the paths of a repository's files."""
    folder = scratch / "lists"
    folder.mkdir()
    paths = ["README.md", "layer_1/cfg.json", "layer_1/sae_weights.safetensors", "layer_10/ae.pt", "layer_2/params.npz"]
    (folder / "paths.json").write_text(json.dumps({"paths": paths, "wanted": "layer_1"}))

    def read(place: Path) -> None:
        from sae_lm.sae.fetch import _choose
        from sae_lm.sae.locations import find_saes, some_of

        try:
            content = json.loads((place / "paths.json").read_bytes())
            paths, wanted = content["paths"], content["wanted"]
            assert isinstance(wanted, str) and all(isinstance(path, str) for path in paths) and isinstance(paths, list)
        except (ValueError, KeyError, TypeError, AssertionError, RecursionError):
            return  # no list of paths, which huggingface_hub refuses
        find_saes(paths)
        some_of(paths, wanted)
        _choose("a/b", "a/b", paths, wanted)

    return Target("list of files", folder, ["paths.json"], read)
