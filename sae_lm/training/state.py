"""Checkpoints of a group of arms: written whole, two kept, damaged ones passed over, continued from bit for bit.

An arm's state depends on no other arm's, but for a steered one's baseline. So a later command goes on with those arms of
a checkpoint that it asks for, in whatever groups, and what it does not ask for stays.

A group's folder ``state/seedN-DIGEST`` holds a folder ``000000123`` for the checkpoint before step 123::

    000.safetensors     state of each arm, in the group's order (ArmTraining.state)
    state.json          seed; arms and shadows, names of the group's arms and reference arms; step; facts, the training
                        recipe; files, the checksum of each of the above
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae_lm.errors import SaeError, SaeLmError
from sae_lm.penalties.arms import Arm
from sae_lm.runtime.differences import in_words
from sae_lm.runtime.distributed import SINGLE, Team
from sae_lm.runtime.files import PART, present, read_json, sha256, whole_folder, write_json
from sae_lm.sae.folder import sae_directories
from sae_lm.training.locks import others_at_work, remove_locks
from sae_lm.training.recipe import TrainingRecipe
from sae_lm.training.run_folder import PER_ARM, RUN, STATE_FOLDER, read_sae, sae_folder
from sae_lm.training.trainer import ArmTraining

STATE = "state.json"


class ArmGroup(NamedTuple):
    """Arms of one seed that are trained at one pace."""

    seed: int
    arms: list[Arm]
    reference_arms: list[Arm]
    """baselines that steered arms look at; they are trained along and not kept"""

    def names(self) -> list[str]:
        return [arm.name for arm in (*self.arms, *self.reference_arms)]

    @property
    def but(self) -> str | None:
        """What the run may have otherwise than their checkpoint: its k is nothing to arms that all name their own."""
        return PER_ARM if all(arm.k is not None for arm in (*self.arms, *self.reference_arms)) else None

    def folder(self, out: Path) -> Path:
        """Where its checkpoints are."""
        kept, along = ([arm.name for arm in arms] for arms in (self.arms, self.reference_arms))
        digest = hashlib.sha256(json.dumps([kept, along]).encode()).hexdigest()[:12]
        return out / STATE_FOLDER / f"seed{self.seed}-{digest}"


def checkpoints(group: ArmGroup, out: Path) -> list[Path]:
    """Folders of the checkpoints that a group can go on from, the newest last: its own, and those of more arms."""
    found = []
    for folder in present(out / STATE_FOLDER, f"seed{group.seed}-*"):
        kept, along = _names(folder) or ([], [])
        holds = all(arm.name in kept for arm in group.arms)
        holds = holds and all(arm.name in (*kept, *along) for arm in group.reference_arms)
        if holds or folder == group.folder(out):
            found += _whole(folder)
    return sorted(found, key=lambda path: path.name)


def _whole(folder: Path) -> list[Path]:
    """Of a group's folder those that are not half-written, the newest last."""
    return [path for path in present(folder, "[0-9]*") if path.suffix != PART]


def write_checkpoint(
    group: ArmGroup, trainers: list[ArmTraining], out: Path, recipe: TrainingRecipe, step: int, before: int = 0
) -> None:
    """Write the states of all arms before ``step``. The one of step ``before``, which was written or gone on from before, is
    kept too, in case this one is damaged; all others, passed over or left by a kill, are deleted."""
    folder = group.folder(out) / f"{step:09d}"
    names = {"arms": [arm.name for arm in group.arms], "shadows": [arm.name for arm in group.reference_arms]}
    notes = {"seed": group.seed, **names, "step": step, "facts": recipe.record()}
    with whole_folder(folder) as temporary:
        files = {}
        for index, trainer in enumerate(trainers):
            name = _state_file(index)
            # a number may stand in the state under two names, and safetensors keeps no memory twice
            state = {key: value.contiguous() if value.ndim else value.clone() for key, value in trainer.state().items()}
            tensors = {key: value.cpu() for key, value in state.items()}
            save_file(tensors, temporary / name)
            files[name] = sha256(temporary / name)
        write_json(temporary / STATE, {**notes, "files": files})
    for path in present(folder.parent, "[0-9]*"):
        if path.name not in (folder.name, f"{before:09d}"):
            shutil.rmtree(path)


def _state_file(index: int) -> str:
    """Of an arm, by its place in the group."""
    return f"{index:03d}.safetensors"


def restore(
    group: ArmGroup, trainers: list[ArmTraining], out: Path, recipe: TrainingRecipe, team: Team = SINGLE
) -> int:
    """Put the arms into the newest whole checkpoint that has them and return the step that comes next; 0 without one.

    Of a team the first member chooses it: on a shared disk another may see another one as the newest.
    Raises SaeError where the checkpoint is of another recipe, or of a version that keeps other things.
    """
    read: dict[str, _Checkpoint] = {}
    name = team.decided(lambda: _newest_whole(group, out, read))
    if name is None:
        return 0
    folder = out / STATE_FOLDER / name
    try:
        step, stored_recipe, states = read.get(name) or _read_checkpoint(folder, group)
    except DAMAGE as problem:
        raise SaeError(
            f"{folder} is whole to the first process of the team and cannot be read by another ({problem}); "
            "give --out a folder that all see alike"
        ) from None
    _check_begun_alike(folder.parent, recipe, stored_recipe, but=group.but)
    try:
        for trainer, state in zip(trainers, states, strict=True):
            trainer.restore(state)
    except (KeyError, ValueError, TypeError, RuntimeError) as problem:
        raise SaeError(
            f"checkpoint {folder} does not hold what this version continues from ({problem}); go on with the "
            f"version that wrote it, or delete {folder.parent}"
        ) from None
    if team.rank == 0:
        print(f"seed {group.seed}: continuing at step {step:,}", flush=True)
    return step


def _check_begun_alike(
    group_folder: Path, recipe: TrainingRecipe, stored: Mapping[str, Any], but: str | None = None
) -> None:
    if differing := recipe.differences(stored, but=but):
        raise SaeError(
            f"{group_folder} was begun otherwise: {in_words(differing)}; "
            "give the same settings, another --out, or delete it"
        )


def check_goes_on(groups: Iterable[ArmGroup], out: Path, recipe: TrainingRecipe) -> None:
    """Refuse, before anything is trained, a folder with a checkpoint of another recipe: it could not be gone on with beside
    what is trained. Those of other arms may have another `PER_ARM`. Raises SaeError."""
    for folder in present(out / STATE_FOLDER, "seed*-*"):
        if (facts := _newest_recipe(folder)) is not None:
            _check_begun_alike(folder, recipe, facts, but=PER_ARM)
    for group in groups:
        for folder in reversed(checkpoints(group, out)):
            if (facts := _recipe_of(folder)) is not None:
                _check_begun_alike(folder.parent, recipe, facts, but=group.but)
                break


def begun_recipe(out: Path, ours: Iterable[str] = ()) -> dict[str, Any] | None:
    """The recipe of what is begun in a folder: SAEs that are finished, or have a checkpoint, or that another process
    trains, whose recipe run.json has. None where nothing is. ours: names of SAEs whose locks this process holds."""
    begun = chain(
        (read_sae(directory).training for directory in sae_directories(out)),
        (_newest_recipe(folder) for folder in present(out / STATE_FOLDER, "seed*-*")),
    )
    recipe = next((each for each in begun if isinstance(each, dict)), None)
    if recipe is None and (out / RUN).exists() and others_at_work(out, ours):
        recipe = read_json(out / RUN, SaeError, "a folder of runs").get("facts")
    return recipe if isinstance(recipe, dict) else None


def _newest_recipe(group_folder: Path) -> dict[str, Any] | None:
    """Of the newest checkpoint whose recipe can be read."""
    recipes = map(_recipe_of, reversed(_whole(group_folder)))
    return next((recipe for recipe in recipes if recipe is not None), None)


def _recipe_of(checkpoint: Path) -> dict[str, Any] | None:
    """None where it cannot be read: `restore` says so, and takes another."""
    try:
        facts = read_json(checkpoint / STATE, SaeError, "a checkpoint").get("facts")
    except SaeError:
        return None
    return facts if isinstance(facts, dict) else None


_Checkpoint = tuple[int, dict[str, Any], list[dict[str, Tensor]]]
DAMAGE = (SaeLmError, OSError, KeyError, SafetensorError)
"""What reading a damaged checkpoint raises."""


def _newest_whole(group: ArmGroup, out: Path, read: dict[str, _Checkpoint]) -> str | None:
    """Folder in ``state/`` of the newest checkpoint that its checksums vouch for; what it holds is put into ``read``."""
    for folder in reversed(checkpoints(group, out)):
        name = folder.relative_to(out / STATE_FOLDER).as_posix()
        try:
            read[name] = _read_checkpoint(folder, group)
        except DAMAGE as problem:
            print(f"a damaged checkpoint is passed over: {problem}", flush=True)
            continue
        return name
    return None


def _read_checkpoint(folder: Path, group: ArmGroup) -> _Checkpoint:
    """The next step, the training recipe and the states of a group's arms, whichever others it holds.

    Raises SaeError, KeyError and so on for a damaged one.
    """
    state = read_json(folder / STATE, SaeError, "a checkpoint")
    step, facts, files, *names = (state.get(key) for key in ("step", "facts", "files", "arms", "shadows"))
    if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step < 10**15:
        raise SaeError(f"{folder / STATE} is not understood: its step is {step!r}")
    held = [name for some in names if isinstance(some, list) for name in some]
    if not isinstance(facts, dict) or not isinstance(files, dict) or any(name not in held for name in group.names()):
        raise SaeError(f"{folder / STATE} is not understood")
    wanted = [_state_file(held.index(name)) for name in group.names()]
    for name in wanted:
        if sha256(folder / name) != files[name]:
            raise SaeError(f"{folder / name} does not match its checksum")
    return step, facts, [load_file(folder / name) for name in wanted]


def read_unfinished(out: Path, seed: int) -> list[list[str]]:
    """Names of the arms of each group of a seed that has a checkpoint, the group that has come furthest first."""
    newest = [whole[-1] for folder in present(out / STATE_FOLDER, f"seed{seed}-*") if (whole := _whole(folder))]
    newest.sort(key=lambda path: path.name, reverse=True)
    return [names[0] for path in newest if (names := _names(path.parent)) is not None]


def _names(folder: Path) -> tuple[list[str], list[str]] | None:
    """Names of the arms and of the reference arms of a group's folder, from whichever checkpoint can be read."""
    for file in present(folder, f"[0-9]*/{STATE}"):
        if file.parent.suffix == PART:
            continue
        try:
            state = read_json(file, SaeError, "a checkpoint")
        except SaeError:
            continue  # `restore` says so, and takes another
        arms, references = state.get("arms"), state.get("shadows")
        if isinstance(arms, list) and isinstance(references, list):
            return arms, references
    return None


def remove_finished(out: Path, others_at_work: bool) -> None:
    """Remove the checkpoints of groups whose SAEs are all there, and what a kill left of others before their first.

    Checkpoints of SAEs that nobody asked for this time stay, also those that another version wrote of arms that this one does
    not know, and so do folders that are none. others_at_work: whether another process trains here.
    """
    for folder in present(out / STATE_FOLDER, "seed*-*"):
        seed = folder.name.removeprefix("seed").partition("-")[0]
        if not seed.isdecimal():
            continue
        names = _names(folder)
        if names is not None:
            done = all((out / sae_folder(str(name), int(seed))).exists() for name in names[0])
        else:
            done = not others_at_work and not _whole(folder)
        if done:
            shutil.rmtree(folder, ignore_errors=True)
    for file in present(out / STATE_FOLDER, "*.wandb"):  # which run a tracker goes on with
        if (out / file.stem).exists():
            file.unlink(missing_ok=True)
    remove_locks(out)
