"""arms of one seed -> trained side by side on the same batches; killed and continued, bit for bit the same.

Everything the next step depends on is in each arm's state and in the number of the step, since batches are a
function of seed and number. A checkpoint is a folder of the arms' states that appears whole or not at all;
the newest two are kept, and what a checkpoint's checksums do not vouch for is not continued from.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sae_lm.data.store import Store
from sae_lm.errors import SaeError
from sae_lm.runtime.distributed import SINGLE, Team
from sae_lm.runtime.files import PART
from sae_lm.runtime.progress import Progress
from sae_lm.runtime.signals import StopRequest
from sae_lm.runtime.timing import StepTimer, summed
from sae_lm.training.state import Job, checkpoint, restore
from sae_lm.training.trackers import Track
from sae_lm.training.trainer import ArmTraining

AGREE_EVERY = 16
"""Steps between a team's looks at whether one of its members is to stop."""


class Data(NamedTuple):
    """Rows to train on."""

    store: Store
    hook: str
    batch_size: int
    stop: int
    """rows from this one on are held out"""
    scale: float
    team: Team = SINGLE

    def batches(self, seed: int, first: int, number: int) -> Iterator[torch.Tensor]:
        return self.store.batches(
            self.batch_size, seed, hook=self.hook, stop=self.stop, steps=number, first=first,
            rank=self.team.rank, world_size=self.team.size,
        )  # fmt: skip


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
    stop_request: StopRequest,
) -> dict[str, float]:
    """Train to the last step, from the newest checkpoint if there is one; returns seconds by part of the step.

    Of a team every member calls this, the first writes. tracks: where lines of the log go, one for each arm of the job.
    Raises SaeError where a loss is not finite, Stopped (after a checkpoint) where a signal came.
    """
    team, timer = data.team, StepTimer(device)
    first = restore(job, runs, out, facts)
    baselines = {run.arm: run for run in runs}
    written = time.monotonic()
    with ExitStack() as opened:
        writes = [opened.enter_context(track.begin(first)) for track in tracks]
        batches = data.batches(job.seed, first, steps)
        bar.update(first * data.batch_size * len(job.arms))
        timer.begin(first)
        for step, batch in enumerate(batches, first):
            x = batch.to(device).float() / data.scale
            timer.mark("reading")
            for run in runs:
                run.step(x, step)
            for run in runs:
                if run.penalty_term.needs_baseline:
                    run.penalty_term.observe(step, run.parts["fvu"] - baselines[run.arm.baseline].parts["fvu"])
            timer.begin(step)
            if step % log_every == 0 or step + 1 == steps:
                figures = [_figures(run, step, job, data, out, log_every) for run in runs]
                for write, line in zip(writes, figures, strict=False):  # shadows have no track
                    write(line)
                bar.update(0, seed=job.seed, fvu=f"{float(runs[0].parts['fvu']):.3f}")
            bar.update(data.batch_size * len(job.arms))
            due = time.monotonic() - written >= checkpoint_seconds
            # members see a signal at different steps, and have to end at the same one
            stops = bool(stop_request) if team.size == 1 else step % AGREE_EVERY == 0 and team.agree(bool(stop_request))
            if step + 1 < steps and (stops or due) and team.rank == 0:
                for run in runs:
                    _figures(run, step, job, data, out, log_every)  # what is not finite is not kept
                checkpoint(job, runs, out, facts, step + 1)
                written = time.monotonic()
            if stops:
                raise stop_request.stop(
                    f"step {step + 1} of {steps}, seed {job.seed}, is kept in {out}; run the same command again to go on"
                )
            timer.mark("log and checkpoints")
    return summed(one.seconds for one in (timer, *(run.timer for run in runs)))


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
