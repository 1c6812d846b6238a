"""Checkpoints of a group of arms: written whole, two kept, damaged ones passed over, resumed bit for bit."""

import hashlib
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sae_lm.errors import SaeError, SaeLmError
from sae_lm.penalties.arms import Arm
from sae_lm.runtime.differences import differences
from sae_lm.runtime.files import PART, read_json, replace_folder, sha256, write_json
from sae_lm.training.trainer import ArmTraining

STATE = "state.json"


KEPT = 2
"""Checkpoints of a group that are kept: if the newest is damaged, the other serves."""


class Job(NamedTuple):
    """One group: arms of one seed, at one pace."""

    seed: int
    arms: list[Arm]
    shadows: list[Arm]
    """baselines that steered arms look at; they are trained along and not kept"""

    def names(self) -> list[str]:
        return [arm.name for arm in (*self.arms, *self.shadows)]

    def folder(self, out: Path) -> Path:
        """Where its checkpoints are."""
        return out / "state" / f"seed{self.seed}-{hashlib.sha256(' '.join(self.names()).encode()).hexdigest()[:12]}"


def checkpoint(job: Job, runs: list[ArmTraining], out: Path, facts: dict[str, Any], step: int) -> None:
    """Write the states of all arms before ``step``; older checkpoints but one are deleted afterwards."""
    folder = job.folder(out) / f"{step:09d}"
    part = folder.with_name(folder.name + PART)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    files = {}
    for index, run in enumerate(runs):
        name = f"{index:03d}.safetensors"
        # a number may stand in the state under two names, and safetensors keeps no memory twice
        tensors = {key: value.contiguous() if value.ndim else value.clone() for key, value in run.state().items()}
        save_file(tensors, part / name)
        files[name] = sha256(part / name)
    names = {"arms": [arm.name for arm in job.arms], "shadows": [arm.name for arm in job.shadows]}
    write_json(part / STATE, {"seed": job.seed, **names, "step": step, "facts": facts, "files": files})
    replace_folder(part, folder)
    for old in sorted(job.folder(out).glob("[0-9]*"))[:-KEPT]:
        shutil.rmtree(old)


def restore(job: Job, runs: list[ArmTraining], out: Path, facts: dict[str, Any]) -> int:
    """Put the arms into the newest whole checkpoint of their group and return the step that comes next; 0 without one."""
    for folder in sorted(job.folder(out).glob("[0-9]*"), reverse=True):
        if folder.suffix == PART:
            continue
        try:
            state = read_json(folder / STATE, SaeError, "a checkpoint")
            for name, checksum in state["files"].items():
                if sha256(folder / name) != checksum:
                    raise SaeError(f"{folder / name} does not match its checksum")
            tensors = [load_file(folder / name) for name in sorted(state["files"])]
        except (SaeLmError, OSError, KeyError, SafetensorError) as problem:
            print(f"a damaged checkpoint is passed over: {problem}", flush=True)
            continue
        if differing := differences(state["facts"], facts):
            raise SaeError(
                f"{job.folder(out)} was begun otherwise: {'; '.join(map(str, differing))}; "
                "give the same settings, another --out, or delete it"
            )
        for run, tensor in zip(runs, tensors, strict=True):
            run.restore(tensor)
        print(f"seed {job.seed}: continuing at step {state['step']:,}", flush=True)
        return state["step"]
    return 0


def unfinished(out: Path, seed: int) -> list[tuple[list[str], list[str]]]:
    """The arms and shadows, by name, of each group of a seed that has a checkpoint."""
    found = []
    for file in sorted((out / "state").glob(f"seed{seed}-*/[0-9]*/{STATE}")):
        state = read_json(file, SaeError, "a checkpoint")
        names = (state.get("arms"), state.get("shadows"))
        if file.parent.suffix != PART and all(isinstance(part, list) for part in names) and names not in found:
            found.append(names)
    return found
