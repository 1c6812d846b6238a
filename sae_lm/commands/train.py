"""sae-lm train: a store to runs. Arms x seeds, trained side by side on the same batches, from the store alone."""

import shutil
from pathlib import Path
from typing import Any

import torch

from sae_lm.data.store import open_store
from sae_lm.errors import SettingsError
from sae_lm.penalties.arms import Arm, parse_arm, parse_arms
from sae_lm.runtime.device import pick_device
from sae_lm.runtime.distributed import join_ranks
from sae_lm.runtime.progress import Progress
from sae_lm.runtime.signals import stop_on_signal
from sae_lm.runtime.timing import summed, timing_line
from sae_lm.sae.formats.saelens import save
from sae_lm.settings import TrainSettings
from sae_lm.training.group import Data, train_group
from sae_lm.training.recipe import make_hyperparameters, recipe_facts
from sae_lm.training.run_folder import check_alike, is_done, run_folder, sae_metadata, write_run
from sae_lm.training.state import Job, unfinished
from sae_lm.training.trackers import Track, check_trackers
from sae_lm.training.trainer import ArmTraining


def train(settings: TrainSettings) -> Path:
    """Train every arm with every seed and return the folder of the runs.

    SAEs of the same settings and store that are there already are kept; differing ones are refused, of other arms
    too (SaeError): arms of one folder are compared as pairs that differ in nothing else. Each SAE directory appears
    whole or not at all. A run that was killed goes on from its newest checkpoint and ends with the same bits. Under
    torchrun ranks, or teams of ``ranks_per_sae`` of them, share out arms and seeds. SIGINT and SIGTERM raise Stopped
    after the current step and a checkpoint.
    """
    store = open_store(settings.store)
    hook = store.hook(settings.hook)
    arms = parse_arms(settings.arms)
    context, row = store.held_out_from(settings.held_out)
    facts = recipe_facts(settings, store, hook, context, row, arms)
    h = make_hyperparameters(settings, facts)
    check_trackers(settings.trackers)
    with join_ranks() as ranks:
        team = ranks.team_of(settings.ranks_per_sae)
        if settings.batch_size % team.size:
            raise SettingsError(
                f"batch_size is {settings.batch_size}, which ranks_per_sae {team.size} does not divide; give a multiple"
            )
        teams, number = ranks.size // team.size, ranks.rank // team.size
        check_alike(settings.out, facts)
        device = pick_device(settings.device, ranks.local_rank if ranks.size > 1 else None)
        pending = {
            seed: [a for a in arms if not is_done(settings.out, a, seed, facts)] for seed in range(settings.seeds)
        }
        total = sum(map(len, pending.values()))
        jobs = _jobs(pending, settings.out, settings.arms_at_once or -(-total // teams) or 1)
        ranks.barrier()
        if ranks.rank == 0:
            write_run(settings, facts, arms)
            if total < len(arms) * settings.seeds:
                there = len(arms) * settings.seeds - total
                print(f"{there} of {len(arms) * settings.seeds} SAEs are there already; reused", flush=True)
        mine = jobs[number::teams]
        rows = sum(len(job.arms) for job in mine) * h.steps * settings.batch_size
        data = Data(store, hook, settings.batch_size, row, facts["scale"], team)
        timers: list[dict[str, float]] = []
        start = store.moments(hook, row).mean / facts["scale"] if mine else torch.empty(0)
        with (
            stop_on_signal("this step") as stop_request,
            Progress("training", rows, "row", silent=ranks.rank > 0) as bar,
        ):
            for job in mine:
                arms_trained = (*job.arms, *job.shadows)
                runs = [ArmTraining(arm, job.seed, settings.d_sae, start, h, device, team) for arm in arms_trained]
                tracks = [_track(settings, facts, arm, job.seed) for arm in job.arms] if team.rank == 0 else []
                timers.append(train_group(job, runs, data, tracks, settings.out, facts, steps=h.steps,
                                       log_every=settings.log_every, checkpoint_seconds=settings.checkpoint_seconds,
                                       device=device, bar=bar, stop_request=stop_request))  # fmt: skip
                if team.rank > 0:
                    continue
                for run in runs[: len(job.arms)]:
                    sae = run.finish(data.scale, sae_metadata(run, store, hook, facts))
                    save(sae, settings.out / run_folder(run.arm, run.seed))
                shutil.rmtree(job.folder(settings.out), ignore_errors=True)
        everyones = ranks.gather(summed(timers))
    if ranks.rank == 0:
        shutil.rmtree(settings.out / "state", ignore_errors=True)
        if total:
            print(timing_line(summed(everyones)), flush=True)
    return settings.out


def _track(settings: TrainSettings, facts: dict[str, Any], arm: Arm, seed: int) -> Track:
    described = {**facts, "arm": arm.name, "penalty": arm.penalty, "coefficient": arm.coefficient, "seed": seed}
    return Track(settings.out / f"{run_folder(arm, seed)}.metrics.jsonl", settings.trackers, described)


def _jobs(pending: dict[int, list[Arm]], out: Path, at_once: int) -> list[Job]:
    """Groups with a checkpoint as they were, then the other arms of each seed, ``at_once`` of them together."""
    jobs = []
    for seed, arms in pending.items():
        rest = list(arms)
        for names, shadows in unfinished(out, seed):
            group = [parse_arm(name) for name in names]
            if any(arm in rest for arm in group):
                jobs.append(Job(seed, group, [parse_arm(name) for name in shadows]))
                rest = [arm for arm in rest if arm not in group]
        for first in range(0, len(rest), at_once):
            group = rest[first : first + at_once]
            wanted = dict.fromkeys(arm.baseline for arm in group if arm.fvu is not None)
            jobs.append(Job(seed, group, [arm for arm in wanted if arm not in group]))
    return jobs


def run(settings: TrainSettings) -> int:
    print(f"runs: {train(settings)}")
    return 0
