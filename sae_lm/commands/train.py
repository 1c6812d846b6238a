"""sae-lm train: train SAEs from a stored set of activations, all arms of a seed side by side on the same batches."""

import shutil
from pathlib import Path
from typing import NamedTuple

import torch

from sae_lm.data.store import Store, open_store
from sae_lm.errors import SettingsError
from sae_lm.penalties.arms import Arm, parse_arm, parse_arms
from sae_lm.runtime.device import pick_device
from sae_lm.runtime.distributed import Ranks, Team, join_ranks
from sae_lm.runtime.progress import Progress
from sae_lm.runtime.signals import stop_on_signal
from sae_lm.runtime.timing import sum_seconds, timing_line
from sae_lm.sae.formats.saelens import save
from sae_lm.settings import TrainSettings
from sae_lm.training.convergence import convergence, state_of_training
from sae_lm.training.group import TrainingRun, train_group
from sae_lm.training.recipe import TrainingRecipe
from sae_lm.training.run_folder import (
    STATE_FOLDER,
    check_alike,
    is_done,
    log_file,
    read_convergence,
    sae_folder,
    sae_metadata,
    write_run,
)
from sae_lm.training.state import ArmGroup, read_unfinished
from sae_lm.training.trackers import Track, check_trackers, read_lines
from sae_lm.training.trainer import ArmTraining


def train(settings: TrainSettings) -> Path:
    """Train every arm with every seed and return the folder of the runs.

    SAEs of the same settings and store that are there already are kept; differing ones are refused, of other arms
    too (SaeError): arms of one folder are compared as pairs that differ in nothing else. Each SAE directory appears
    whole or not at all. A run that was killed goes on from its newest checkpoint and ends with the same bits. Under
    torchrun ranks, or teams of ``ranks_per_sae`` of them, share out arms and seeds. SIGINT and SIGTERM raise Stopped
    after the current step and a checkpoint.
    """
    arms = parse_arms(settings.arms)
    check_trackers(settings.trackers)
    with join_ranks() as ranks:
        local_rank = ranks.local_rank if ranks.size > 1 else None
        device = pick_device(settings.device, local_rank, float64_for="coefficients are steered in")
        store = open_store(settings.store)
        recipe = TrainingRecipe.from_settings(settings, store, arms)
        team = ranks.team_of(settings.ranks_per_sae)
        if settings.batch_size % team.size:
            raise SettingsError(
                f"batch_size is {settings.batch_size}, which ranks_per_sae {team.size} does not divide; give a multiple"
            )
        teams, number = ranks.size // team.size, ranks.rank // team.size
        check_alike(settings.out, recipe)
        groups, missing = _share_out(settings, recipe, arms, teams)
        ranks.barrier()
        if ranks.rank == 0:
            write_run(settings, recipe, arms)
            wanted = len(arms) * settings.seeds
            if missing < wanted:
                print(f"{wanted - missing} of {wanted} SAEs are there already; reused", flush=True)
        seconds = _train_groups(_Place(ranks, team, device), groups[number::teams], settings, recipe, store)
        everyones = ranks.gather(seconds)
    if ranks.rank == 0:
        shutil.rmtree(settings.out / STATE_FOLDER, ignore_errors=True)
        if missing:
            print(timing_line(sum_seconds(everyones)), flush=True)
        of_arm = {
            arm.name: [read_convergence(settings.out / sae_folder(arm, seed)) for seed in range(settings.seeds)]
            for arm in arms
        }
        if line := state_of_training(of_arm):
            print(line, flush=True)
    return settings.out


class _Place(NamedTuple):
    """Where this process works."""

    ranks: Ranks
    team: Team
    device: str


def _share_out(
    settings: TrainSettings, recipe: TrainingRecipe, arms: list[Arm], teams: int
) -> tuple[list[ArmGroup], int]:
    """Groups of the SAEs that are not there yet, and how many SAEs these are."""
    pending = {
        seed: [arm for arm in arms if not is_done(settings.out, arm, seed, recipe)] for seed in range(settings.seeds)
    }
    missing = sum(map(len, pending.values()))
    return _groups(pending, settings.out, settings.arms_at_once or -(-missing // teams) or 1), missing


def _groups(pending: dict[int, list[Arm]], out: Path, at_once: int) -> list[ArmGroup]:
    """Groups with a checkpoint as they were, then the other arms of each seed, ``at_once`` of them together."""
    groups = []
    for seed, arms in pending.items():
        rest = list(arms)
        for names, reference_names in read_unfinished(out, seed):
            begun = [parse_arm(name) for name in names]
            if any(arm in rest for arm in begun):
                groups.append(ArmGroup(seed, begun, [parse_arm(name) for name in reference_names]))
                rest = [arm for arm in rest if arm not in begun]
        for first in range(0, len(rest), at_once):
            together = rest[first : first + at_once]
            baselines = dict.fromkeys(arm.baseline for arm in together if arm.fvu is not None)
            groups.append(ArmGroup(seed, together, [arm for arm in baselines if arm not in together]))
    return groups


def _train_groups(
    place: _Place, groups: list[ArmGroup], settings: TrainSettings, recipe: TrainingRecipe, store: Store
) -> dict[str, float]:
    """Train this team's groups one after another and save their SAEs; returns seconds by part of the step."""
    rows = sum(len(group.arms) for group in groups) * recipe.tokens
    start = store.moments(recipe.hook, recipe.held_out_from_row).mean / recipe.scale if groups else torch.empty(0)
    seconds = []
    with (
        stop_on_signal("this step") as stop_request,
        Progress("training", rows, "row", silent=place.ranks.rank > 0) as bar,
    ):
        run = TrainingRun(
            recipe=recipe,
            store=store,
            out=settings.out,
            device=place.device,
            bar=bar,
            stop_request=stop_request,
            log_every=settings.log_every,
            checkpoint_seconds=settings.checkpoint_seconds,
            team=place.team,
        )
        for group in groups:
            seconds.append(_train_and_save(group, start, settings, run))
    return sum_seconds(seconds)


def _train_and_save(
    group: ArmGroup, start: torch.Tensor, settings: TrainSettings, run: TrainingRun
) -> dict[str, float]:
    """start: the initial b_dec of every arm. Returns seconds by part of the step."""
    recipe, writes = run.recipe, run.team.rank == 0
    every = (*group.arms, *group.reference_arms)
    trainers = [ArmTraining(arm, group.seed, recipe, start, run.device, run.team) for arm in every]
    tracks = [_track(settings, recipe, arm, group.seed) for arm in group.arms] if writes else []
    seconds = train_group(group, trainers, tracks, run)
    if writes:
        for trainer in trainers[: len(group.arms)]:
            metadata = sae_metadata(trainer.arm, group.seed, recipe, run.store.manifest)
            lines = read_lines(run.out / log_file(trainer.arm, group.seed))
            sae = trainer.finish(recipe.scale, metadata | {"convergence": convergence(lines, recipe)})
            save(sae, run.out / sae_folder(trainer.arm, group.seed))
        shutil.rmtree(group.folder(run.out), ignore_errors=True)
    return seconds


def _track(settings: TrainSettings, recipe: TrainingRecipe, arm: Arm, seed: int) -> Track:
    of_arm = {"arm": arm.name, "penalty": arm.penalty, "coefficient": arm.coefficient, "seed": seed}
    return Track(settings.out / log_file(arm, seed), settings.trackers, recipe.record() | of_arm)


def run(settings: TrainSettings) -> int:
    print(f"runs: {train(settings)}")
    return 0
