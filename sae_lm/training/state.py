"""Checkpoints of a group of arms: written whole, two kept, damaged ones passed over, continued from bit for bit.

A group's folder ``state/seedN-DIGEST`` holds a folder ``000000123`` for the checkpoint before step 123::

    000.safetensors     state of each arm, in the group's order (ArmTraining.state)
    state.json          seed; arms and shadows, names of the group's arms and reference arms; step; facts, the training
                        recipe; files, the checksum of each of the above
"""

import hashlib
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae_lm.errors import SaeError, SaeLmError
from sae_lm.penalties.arms import Arm
from sae_lm.runtime.files import PART, read_json, sha256, whole_folder, write_json
from sae_lm.training.recipe import TrainingRecipe
from sae_lm.training.run_folder import STATE_FOLDER
from sae_lm.training.trainer import ArmTraining

STATE = "state.json"
KEPT_CHECKPOINTS = 2
"""Checkpoints of a group that are kept: if the newest is damaged, the other serves."""


class ArmGroup(NamedTuple):
    """Arms of one seed that are trained at one pace."""

    seed: int
    arms: list[Arm]
    reference_arms: list[Arm]
    """baselines that steered arms look at; they are trained along and not kept"""

    def names(self) -> list[str]:
        return [arm.name for arm in (*self.arms, *self.reference_arms)]

    def folder(self, out: Path) -> Path:
        """Where its checkpoints are."""
        digest = hashlib.sha256(" ".join(self.names()).encode()).hexdigest()[:12]
        return out / STATE_FOLDER / f"seed{self.seed}-{digest}"


def checkpoints(group: ArmGroup, out: Path) -> list[Path]:
    """Folders of a group's checkpoints, the newest last."""
    return [path for path in sorted(group.folder(out).glob("[0-9]*")) if path.suffix != PART]


def write_checkpoint(
    group: ArmGroup, trainers: list[ArmTraining], out: Path, recipe: TrainingRecipe, step: int
) -> None:
    """Write the states of all arms before ``step``; older checkpoints but one are deleted afterwards."""
    folder = group.folder(out) / f"{step:09d}"
    names = {"arms": [arm.name for arm in group.arms], "shadows": [arm.name for arm in group.reference_arms]}
    notes = {"seed": group.seed, **names, "step": step, "facts": recipe.record()}
    with whole_folder(folder) as temporary:
        files = {}
        for index, trainer in enumerate(trainers):
            name = f"{index:03d}.safetensors"
            # a number may stand in the state under two names, and safetensors keeps no memory twice
            state = trainer.state()
            tensors = {key: value.contiguous() if value.ndim else value.clone() for key, value in state.items()}
            save_file(tensors, temporary / name)
            files[name] = sha256(temporary / name)
        write_json(temporary / STATE, {**notes, "files": files})
    for old in sorted(group.folder(out).glob("[0-9]*"))[:-KEPT_CHECKPOINTS]:
        shutil.rmtree(old)


def restore(group: ArmGroup, trainers: list[ArmTraining], out: Path, recipe: TrainingRecipe) -> int:
    """Put the arms into the newest whole checkpoint of their group and return the step that comes next; 0 without one.

    Raises SaeError where the checkpoint is of another recipe, or of a version that keeps other things.
    """
    for folder in reversed(checkpoints(group, out)):
        try:
            step, stored_recipe, states = _read_checkpoint(folder)
        except (SaeLmError, OSError, KeyError, SafetensorError) as problem:
            print(f"a damaged checkpoint is passed over: {problem}", flush=True)
            continue
        if differing := recipe.differences(stored_recipe):
            raise SaeError(
                f"{group.folder(out)} was begun otherwise: {'; '.join(map(str, differing))}; "
                "give the same settings, another --out, or delete it"
            )
        try:
            for trainer, state in zip(trainers, states, strict=True):
                trainer.restore(state)
        except (KeyError, ValueError) as problem:
            raise SaeError(
                f"checkpoint {folder} does not hold what this version continues from ({problem}); go on with the "
                f"version that wrote it, or delete {group.folder(out)}"
            ) from None
        print(f"seed {group.seed}: continuing at step {step:,}", flush=True)
        return step
    return 0


def _read_checkpoint(folder: Path) -> tuple[int, dict[str, Any], list[dict[str, Tensor]]]:
    """The next step, the training recipe and the arms' states. Raises SaeError, KeyError and so on for a damaged one."""
    state = read_json(folder / STATE, SaeError, "a checkpoint")
    step, facts, files = (state.get(key) for key in ("step", "facts", "files"))
    whole = isinstance(step, int) and not isinstance(step, bool) and 0 <= step < 10**15 and isinstance(facts, dict)
    if (
        not whole
        or not isinstance(files, dict)
        or not all(re.fullmatch(r"\d{3,}\.safetensors", name) for name in files)
    ):
        raise SaeError(f"{folder / STATE} is not understood")
    for name, checksum in files.items():
        if sha256(folder / name) != checksum:
            raise SaeError(f"{folder / name} does not match its checksum")
    return step, facts, [load_file(folder / name) for name in sorted(files)]


def read_unfinished(out: Path, seed: int) -> list[tuple[list[str], list[str]]]:
    """Names of the arms and of the reference arms of each group of a seed that has a checkpoint."""
    groups = []
    for file in sorted((out / STATE_FOLDER).glob(f"seed{seed}-*/[0-9]*/{STATE}")):
        state = read_json(file, SaeError, "a checkpoint")
        names = (state.get("arms"), state.get("shadows"))
        if file.parent.suffix != PART and all(isinstance(arms, list) for arms in names) and names not in groups:
            groups.append(names)
    return groups
