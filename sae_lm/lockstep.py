"""arms of one seed -> trained side by side on the same batches; killed and continued, bit for bit the same.

Everything the next step depends on is in each arm's state and in the number of the step, since batches are a
function of seed and number. A checkpoint is a folder of the arms' states that appears whole or not at all;
the newest two are kept, and what a checkpoint's checksums do not vouch for is not continued from.
"""

import hashlib
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sae_lm.data.batches import shuffled_batches
from sae_lm.data.store import Store
from sae_lm.errors import SaeError, SaeLmError
from sae_lm.files import PART, read_json, replace_folder, sha256, write_json
from sae_lm.ledger import Ledger, summed
from sae_lm.processes import ALONE, Team
from sae_lm.progress import Progress
from sae_lm.sae.arm import ArmTraining
from sae_lm.sae.penalties import Arm
from sae_lm.signals import StopWish
from sae_lm.tracking import Track

STATE = "state.json"
AGREE_EVERY = 16
"""Steps between a team's looks at whether one of its members is to stop."""
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


class Data(NamedTuple):
    """Rows to train on."""

    store: Store
    hook: str
    batch_size: int
    stop: int
    """rows from this one on are held out"""
    scale: float
    team: Team = ALONE

    def batches(self, seed: int, first: int, number: int) -> Iterator[torch.Tensor]:
        made = shuffled_batches(
            self.store, [self.hook], self.batch_size, seed, number, 0, self.stop,
            first=first, rank=self.team.rank, world_size=self.team.size,
        )  # fmt: skip
        return (batch[self.hook] for batch in made)


def train_group(
    job: Job,
    runs: list[ArmTraining],
    data: Data,
    tracks: list[Track],
    out: Path,
    facts: dict[str, Any],
    *,
    steps: int,
    log_every: int,
    checkpoint_seconds: float,
    device: str,
    bar: Progress,
    wish: StopWish,
) -> dict[str, float]:
    """Train to the last step, from the newest checkpoint if there is one; returns seconds by part of the step.

    Of a team every member calls this, the first writes. tracks: where lines of the log go, one for each arm of the job.
    Raises SaeError where a loss is not finite, Stopped (after a checkpoint) where a signal came.
    """
    team, ledger = data.team, Ledger(device)
    first = restore(job, runs, out, facts)
    baselines = {run.arm: run for run in runs}
    written = time.monotonic()
    with ExitStack() as opened:
        writes = [opened.enter_context(track.begin(first)) for track in tracks]
        batches = data.batches(job.seed, first, steps)
        bar.update(first * data.batch_size * len(job.arms))
        ledger.begin(first)
        for step, batch in enumerate(batches, first):
            x = batch.to(device).float() / data.scale
            ledger.lap("reading")
            for run in runs:
                run.step(x, step)
            for run in runs:
                if run.pressure.needs_baseline:
                    run.pressure.observe(step, run.parts["fvu"] - baselines[run.arm.baseline].parts["fvu"])
            ledger.begin(step)
            if step % log_every == 0 or step + 1 == steps:
                figures = [_figures(run, step, job, data, out, log_every) for run in runs]
                for write, line in zip(writes, figures, strict=False):  # shadows have no track
                    write(line)
                bar.update(0, seed=job.seed, fvu=f"{float(runs[0].parts['fvu']):.3f}")
            bar.update(data.batch_size * len(job.arms))
            due = time.monotonic() - written >= checkpoint_seconds
            # members see a signal at different steps, and have to end at the same one
            stops = bool(wish) if team.size == 1 else step % AGREE_EVERY == 0 and team.agree(bool(wish))
            if step + 1 < steps and (stops or due) and team.rank == 0:
                for run in runs:
                    _figures(run, step, job, data, out, log_every)  # what is not finite is not kept
                checkpoint(job, runs, out, facts, step + 1)
                written = time.monotonic()
            if stops:
                raise wish.stop(
                    f"step {step + 1} of {steps}, seed {job.seed}, is kept in {out}; run the same command again to go on"
                )
            ledger.lap("log and checkpoints")
    return summed(one.seconds for one in (ledger, *(run.ledger for run in runs)))


def _figures(run: ArmTraining, step: int, job: Job, data: Data, out: Path, back: int) -> dict[str, Any]:
    """A line of the log. Raises SaeError where a figure is not finite, and says which batch began it, if one did."""
    try:
        return run.log(step) | run.pace()
    except SaeError as problem:
        said, first = str(problem), max(0, step - back)
        for number, batch in enumerate(data.batches(job.seed, first, step + 1), first):
            if not torch.isfinite(batch).all():
                said = (
                    f"arm {run.arm.name}, seed {run.seed}: batch {number} holds a NaN or an infinity, which no store has when "
                    f"it is written; run sae-lm verify {data.store.path} --repair"
                )
                break
        kept = [path.name for path in sorted(job.folder(out).glob("[0-9]*")) if path.suffix != PART]
        last = f"; the checkpoint of step {int(kept[-1])} is kept" if kept else ""
        raise SaeError(f"{said}{last}") from None


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
        differing = [
            f"{key} was {state['facts'].get(key)}, now {facts[key]}"
            for key in facts
            if state["facts"].get(key) != facts[key]
        ]
        if differing:
            raise SaeError(
                f"{job.folder(out)} was begun otherwise: {'; '.join(differing)}; give the same settings, another --out, or delete it"
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
