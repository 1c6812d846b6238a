"""Train the arms of one seed side by side on the same batches; killed and continued, it ends with the same bits.

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
from jaxtyping import Float

from sae_lm.data.store import Store
from sae_lm.errors import SaeError
from sae_lm.penalties.arms import Arm
from sae_lm.penalties.controllers import CostController
from sae_lm.runtime.device import copied_ahead, overlaps
from sae_lm.runtime.distributed import SINGLE, Team
from sae_lm.runtime.progress import Progress
from sae_lm.runtime.signals import StopRequest
from sae_lm.runtime.timing import StepTimer, sum_seconds
from sae_lm.training.recipe import TrainingRecipe
from sae_lm.training.registered import Registered
from sae_lm.training.state import ArmGroup, checkpoints, restore, write_checkpoint
from sae_lm.training.trackers import Track, Write
from sae_lm.training.trainer import ArmTraining

AGREE_EVERY = 16
"""Steps between a team's looks at whether one of its members is to stop."""


class TrainingRun(NamedTuple):
    """What all groups of one command have in common."""

    recipe: TrainingRecipe
    store: Store
    out: Path
    """folder of the runs"""
    device: str
    bar: Progress
    stop_request: StopRequest
    log_every: int = 50
    """steps between lines of the log"""
    checkpoint_seconds: float = 300.0
    team: Team = SINGLE
    registered: Registered | None = None
    """what these SAEs are trained under"""

    def batches(self, seed: int, first: int, stop: int) -> Iterator[torch.Tensor]:
        """This member's slices of batches ``first`` to ``stop`` of a seed, in the store's units."""
        recipe, team = self.recipe, self.team
        return self.store.batches(
            recipe.batch_size, seed, hook=recipe.hook, stop=recipe.held_out_from_row, steps=stop, first=first,
            rank=team.rank, world_size=team.size, pin=overlaps(self.device),
        )  # fmt: skip


def train_group(
    group: ArmGroup, trainers: list[ArmTraining], tracks: list[Track], run: TrainingRun
) -> dict[str, float]:
    """Train to the last step, from the newest checkpoint if there is one; returns seconds by part of the step.

    Of a team every member calls this, the first writes. trainers: of the group's arms and reference arms, in
    its order. tracks: where lines of the log go, one for each arm that is kept.
    Raises SaeError where a loss is not finite, Stopped (after a checkpoint) where a signal came.
    """
    recipe, team, timer = run.recipe, run.team, StepTimer(run.device)
    first = kept = restore(group, trainers, run.out, recipe, team)
    there = {recipe.as_trained(trainer.arm): trainer for trainer in trainers}
    steered = [trainer.arm for trainer in trainers if trainer.arm.fvu is not None]
    baselines = {arm: there[recipe.as_trained(arm.baseline)] for arm in steered}
    written = time.monotonic()
    with ExitStack() as opened:
        writes = [opened.enter_context(track.begin(first)) for track in tracks]
        run.bar.update(first * recipe.batch_size * len(group.arms))
        timer.begin()
        for step, batch in enumerate(copied_ahead(run.batches(group.seed, first, recipe.steps), run.device), first):
            x = batch.float() / recipe.scale
            timer.mark("reading")
            _step(trainers, baselines, x, step)
            timer.begin()
            if step % run.log_every == 0 or step + 1 == recipe.steps:
                _log(group, trainers, writes, run, step)
            run.bar.update(recipe.batch_size * len(group.arms))
            due = time.monotonic() - written >= run.checkpoint_seconds
            stops = _stops(run, step)
            if step + 1 < recipe.steps and (stops or due) and team.rank == 0:
                for trainer in trainers:
                    _figures(trainer, step, group, run)  # weights that are not finite are never kept
                write_checkpoint(group, trainers, run.out, recipe, step + 1, kept)
                kept, written = step + 1, time.monotonic()
            if stops and step + 1 < recipe.steps:  # else the SAEs are finished, which is more than a checkpoint
                raise run.stop_request.stop(
                    f"step {step + 1} of {recipe.steps}, seed {group.seed}, is kept in {run.out}; "
                    "run the same command again to go on"
                )
            timer.mark("log and checkpoints")
    return sum_seconds(each.seconds for each in (timer, *(trainer.timer for trainer in trainers)))


def _step(trainers: list[ArmTraining], baselines: dict[Arm, ArmTraining], x: torch.Tensor, step: int) -> None:
    """One step of every arm; a steered arm then sees what its penalty or balance costs beside its baseline.

    baselines: of each arm that is steered.
    """
    for trainer in trainers:
        trainer.step(x, step)
    for trainer in trainers:
        if trainer.arm in baselines:
            steer(trainer, baselines[trainer.arm].parts["fvu"], step)


def steer(trainer: ArmTraining, baseline_fvu: Float[torch.Tensor, ""], step: int) -> None:
    """After the step of an arm that has a cost, move its coefficient or balance by its baseline's FVU on the same batch."""
    cost = trainer.parts["fvu"] - baseline_fvu
    if trainer.arm.steers_balance:
        trainer.parts["balance"] = trainer.prefixes.observe(step, cost)
    else:
        trainer.parts["coefficient"] = trainer.penalty_term.observe(step, cost)
    controller = trainer.prefixes.controller or trainer.penalty_term.controller
    assert isinstance(controller, CostController)
    trainer.parts["cost"] = controller.average


def _stops(run: TrainingRun, step: int) -> bool:
    """Whether this is the last step. Members of a team see a signal at different steps, and have to end at the same one."""
    if run.team.size == 1:
        return bool(run.stop_request)
    return step % AGREE_EVERY == 0 and run.team.agree(bool(run.stop_request))


def _log(group: ArmGroup, trainers: list[ArmTraining], writes: list[Write], run: TrainingRun, step: int) -> None:
    """Write a line for each arm that has a track: reference arms have none. All are looked at."""
    lines = [_figures(trainer, step, group, run) for trainer in trainers]
    for write, line in zip(writes, lines, strict=False):
        write(line)
    run.bar.update(0, seed=group.seed, fvu=f"{float(trainers[0].parts['fvu']):.3f}")


def _figures(trainer: ArmTraining, step: int, group: ArmGroup, run: TrainingRun) -> dict[str, Any]:
    """A line of the log. Raises SaeError where a figure is not finite, and says which batch began it, if one did."""
    try:
        return trainer.log(step) | trainer.pace()
    except SaeError as problem:
        message, first = str(problem), max(0, step - run.log_every)
        for number, batch in enumerate(run.batches(group.seed, first, step + 1), first):
            if not torch.isfinite(batch).all():
                message = (
                    f"arm {trainer.arm.name}, seed {trainer.seed}: batch {number} holds a NaN or an infinity, which no store has "
                    f"when it is written; run sae-lm verify {run.store.path} --repair"
                )
                break
        kept = checkpoints(group, run.out)
        newest = f"; the checkpoint of step {int(kept[-1].name)} is kept" if kept else ""
        raise SaeError(f"{message}{newest}") from None
