"""sae-lm train: train SAEs from a stored set of activations, all arms of a seed side by side on the same batches."""

import shutil
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from sae_lm.data.store import Store, open_store
from sae_lm.errors import SettingsError, Stopped
from sae_lm.interp.steering import LARGEST, largest_activations
from sae_lm.penalties.arms import Arm, parse_arms
from sae_lm.runtime.device import imitation, pick_device
from sae_lm.runtime.distributed import Ranks, Team, join_ranks
from sae_lm.runtime.memory import LESS_MEMORY, report_out_of_memory
from sae_lm.runtime.progress import Progress
from sae_lm.runtime.signals import stop_on_signal
from sae_lm.runtime.timing import sum_seconds, timing_line
from sae_lm.sae.formats.saelens import save
from sae_lm.sae.model import SAE
from sae_lm.settings import TrainSettings
from sae_lm.training.convergence import convergence, state_of_training
from sae_lm.training.group import TrainingRun, train_group
from sae_lm.training.heeded import check_heeded
from sae_lm.training.locks import only_trainer, only_writer_of_run, others_at_work, remove_locks
from sae_lm.training.recipe import TrainingRecipe, rows_per_step
from sae_lm.training.registered import Registered, registration
from sae_lm.training.run_folder import (
    all_seeds,
    check_alike,
    check_beside_others,
    is_done,
    log_file,
    missed_target,
    read_convergence,
    sae_folder,
    sae_metadata,
    steered_to,
    write_run,
)
from sae_lm.training.state import ArmGroup, begun_recipe, check_goes_on, read_unfinished, remove_finished
from sae_lm.training.trackers import Track, check_trackers, read_lines
from sae_lm.training.trainer import ArmTraining
from sae_lm.training.whitening import whitening_matrix


def train(settings: TrainSettings) -> Path:
    """Train every arm with every seed and return the folder of the runs.

    SAEs of the same settings and store that are there already are kept; differing ones are refused, of other arms
    too (SaeError): arms of one folder are compared as pairs that differ in nothing else. Each SAE directory appears
    whole or not at all. A run that was killed goes on from its newest checkpoint and ends with the same bits. Under
    torchrun ranks, or teams of ``ranks_per_sae`` of them, share out arms and seeds. Other processes may train other SAEs
    of the folder meanwhile; one that is being trained is refused. SIGINT and SIGTERM raise Stopped after the current
    step and a checkpoint.
    """
    arms = parse_arms(settings.arms)
    check_trackers(settings.trackers)
    with join_ranks() as ranks, ExitStack() as locks:
        local_rank = ranks.local_rank if ranks.size > 1 else None
        device = pick_device(settings.device, local_rank, float64_for="coefficients are steered in")
        store = open_store(settings.store)
        team = ranks.team_of(settings.ranks_per_sae)
        if (batch_size := rows_per_step(settings)) % team.size:
            raise SettingsError(
                f"batch_size is {batch_size}, which ranks_per_sae {team.size} does not divide; give a multiple"
            )
        parallel = _parallel(settings, len(arms), ranks, device)
        teams, number = ranks.size // team.size, ranks.rank // team.size
        plan = ranks.decided(lambda: _plan(settings, store, arms, device, teams * parallel, locks))
        with report_out_of_memory(device, LESS_MEMORY["train"]):
            mine = _shares(plan.groups, teams)[number]
            seconds = _train_groups(_Place(ranks, team, device, parallel), mine, plan, settings, store)
        everyones = ranks.gather(seconds)
        if ranks.rank == 0:
            locks.close()
            remove_finished(settings.out, others_at_work=not remove_locks(settings.out))
    if ranks.rank == 0:
        _say_how_it_went(settings, arms, plan, sum_seconds(everyones))
    return settings.out


class _Place(NamedTuple):
    """Where this process works."""

    ranks: Ranks
    team: Team
    device: str
    parallel: int
    """groups at once"""


class _Plan(NamedTuple):
    """What there is to do, as the first rank found it: others may see another state of the folder."""

    recipe: TrainingRecipe
    start: torch.Tensor
    """the initial b_dec of every arm [d_in], float64; empty where nothing is to be trained"""
    whitening: torch.Tensor | None
    """[d_in, d_in]; None where nothing is to be trained, or without it"""
    groups: list[ArmGroup]
    missing: int
    """SAEs that are to be trained"""
    registered: Registered | None
    """what they are trained under"""


def _plan(settings: TrainSettings, store: Store, arms: list[Arm], device: str, teams: int, locks: ExitStack) -> _Plan:
    """Look at what is there, lock what is to be trained, write run.json. Raises SaeError, SettingsError."""
    recipe, out = TrainingRecipe.from_settings(settings, store, arms, device), settings.out
    all_seeds(settings)  # refused before each is looked for
    begun, registered = begun_recipe(out), registration(settings)
    if begun is None:
        check_heeded(settings, arms, recipe)
        if registered is not None:
            from sae_lm.comparison.registered import check_claims

            check_claims(registered)
    recipe = recipe.as_begun(begun, settings)
    check_alike(out, recipe)
    groups, missing = _share_out(settings, recipe, arms, teams)
    names = [sae_folder(arm, group.seed) for group in groups for arm in group.arms]
    locks.enter_context(only_trainer(out, names))
    groups, missing = _share_out(settings, recipe, arms, teams)  # some may have been finished in between
    with only_writer_of_run(out):
        begun = begun_recipe(out, names)  # maybe by another process in between
        recipe = recipe.as_begun(begun, settings)
        if others_at_work(out, names):
            check_beside_others(out, recipe)
        check_goes_on(groups, out, recipe)
        write_run(settings, recipe, arms, registered)
    wanted = len(arms) * settings.seeds
    if missing < wanted:
        print(f"{wanted - missing} of {wanted} SAEs are there already; reused", flush=True)
    start, whitening = torch.empty(0), None
    if groups:
        instead = "give --matmul float32" if begun is None else f"SAEs of {out} have it, for float32 give another --out"
        if slow := imitation(recipe.matmul_dtype, device, instead):
            print(f"note: {slow}", file=sys.stderr, flush=True)
        mean = store.moments(recipe.hook, recipe.held_out_from_row).mean
        start = mean / recipe.scale
        if recipe.whiten:
            whitening = whitening_matrix(store, recipe.hook, recipe.held_out_from_row, mean)
    return _Plan(recipe, start, whitening, groups, missing, registered)


def _say_how_it_went(settings: TrainSettings, arms: list[Arm], plan: _Plan, seconds: dict[str, float]) -> None:
    if plan.missing:
        print(timing_line(seconds), flush=True)
    of_arm = {
        arm.name: [read_convergence(settings.out / sae_folder(arm, seed)) for seed in settings.seed_numbers]
        for arm in arms
    }
    for line in (state_of_training(of_arm), *(missed_target(arm, settings.out, settings.seed_numbers) for arm in arms)):
        if line:
            print(line, flush=True)


def _share_out(
    settings: TrainSettings, recipe: TrainingRecipe, arms: list[Arm], teams: int
) -> tuple[list[ArmGroup], int]:
    """Groups of the SAEs that are not there yet, and how many SAEs these are."""
    pending = {
        seed: [arm for arm in arms if not is_done(settings.out, arm, seed, recipe)] for seed in settings.seed_numbers
    }
    unfinished = {seed: read_unfinished(settings.out, seed) for seed in pending}
    most = max(map(len, pending.values())) or 1
    sizes = [settings.arms_at_once] if settings.arms_at_once else range(most, 0, -1)
    ways = [_groups(pending, unfinished, at_once, recipe) for at_once in sizes]
    # of ways that end as early the one with the most arms together, which share their batches
    groups = min(ways, key=lambda way: max(map(_work, _shares(way, teams))))
    return groups, sum(map(len, pending.values()))


def _work(groups: list[ArmGroup]) -> int:
    """SAEs that are trained, those that are not kept too."""
    return sum(len(group.names()) for group in groups)


def _shares(groups: list[ArmGroup], teams: int) -> list[list[ArmGroup]]:
    """Each group goes to the team that has least to do so far, as it would if teams took the next when they are free."""
    shares: list[list[ArmGroup]] = [[] for _ in range(teams)]
    for group in groups:
        min(shares, key=_work).append(group)
    return shares


def _groups(
    pending: dict[int, list[Arm]], unfinished: dict[int, list[list[str]]], at_once: int, recipe: TrainingRecipe
) -> list[ArmGroup]:
    """The arms of each seed, ``at_once`` of them together at most.

    unfinished: of each seed the names of arms that have a checkpoint together, from which they go on at one step.
    """
    groups = []
    for seed, rest in pending.items():
        alike = []
        for names in unfinished[seed]:
            alike.append([arm for arm in rest if arm.name in names])
            rest = [arm for arm in rest if arm.name not in names]
        for arms in (*alike, rest):
            for first in range(0, len(arms), at_once):
                together = arms[first : first + at_once]
                baselines = dict.fromkeys(recipe.as_trained(arm.baseline) for arm in together if arm.fvu is not None)
                there = {recipe.as_trained(arm) for arm in together}
                groups.append(ArmGroup(seed, together, [arm for arm in baselines if arm not in there]))
    return groups


def _train_groups(
    place: _Place, groups: list[ArmGroup], plan: _Plan, settings: TrainSettings, store: Store
) -> dict[str, float]:
    """Train this team's groups one after another and save their SAEs; returns seconds by part of the step."""
    rows, seconds = sum(len(group.arms) for group in groups) * plan.recipe.tokens, []
    with (
        place.team.watched(),
        stop_on_signal("this step") as stop_request,
        Progress("training", rows, "row", silent=place.ranks.rank > 0) as bar,
    ):
        run = TrainingRun(
            recipe=plan.recipe,
            store=store,
            out=settings.out,
            device=place.device,
            bar=bar,
            stop_request=stop_request,
            log_every=settings.log_every,
            checkpoint_seconds=settings.checkpoint_seconds,
            team=place.team,
            registered=plan.registered,
        )
        if place.parallel > 1:
            return sum_seconds(_train_at_once(place.parallel, groups, plan, settings, run))
        for done, group in enumerate(groups):
            if done and place.team.agree(bool(stop_request)):  # it came in the last step of the group before
                raise _stopped_between(done, groups, run)
            seconds.append(_train_and_save(group, plan, settings, run))
    return sum_seconds(seconds)


def _stopped_between(done: int, groups: list[ArmGroup], run: TrainingRun) -> Stopped:
    return run.stop_request.stop(
        f"{done} of {len(groups)} groups of SAEs are finished in {run.out}; run the same command again to go on"
    )


def _parallel(settings: TrainSettings, arms: int, ranks: Ranks, device: str) -> int:
    """How many groups at once: an accelerator is busy with one, and torchrun has shared them out already.

    Not more than the command's SAEs, those that are finished counted too: a run that goes on has the threads it had.
    """
    parallel = min(settings.parallel, arms * settings.seeds) if device == "cpu" and ranks.size == 1 else 1
    if parallel > 1 and "wandb" in settings.trackers:
        raise SettingsError(
            f"parallel is {settings.parallel}, and W&B takes one group at a time; give parallel 1, or another tracker"
        )
    return parallel


SECONDS_TO_END = 5.0
"""What threads are given to come to the end of a step when they are to stop at once."""


def _train_at_once(
    parallel: int, groups: list[ArmGroup], plan: _Plan, settings: TrainSettings, run: TrainingRun
) -> list[dict[str, float]]:
    """Several groups in threads of their own, among which torch's threads are shared out; each takes the next group.

    Parts of a step that keep one core busy then run beside those of another group. Where one fails, the others end at
    their next step with a checkpoint.
    """
    threads, waiting, guard = torch.get_num_threads(), list(reversed(groups)), threading.Lock()
    seconds: list[dict[str, float]] = []
    problems: list[BaseException] = []

    def work() -> None:
        try:
            while True:
                with guard:
                    if not waiting:
                        return
                    if run.stop_request:
                        raise _stopped_between(len(groups) - len(waiting), groups, run)
                    group = waiting.pop()
                seconds.append(_train_and_save(group, plan, settings, run))
        except BaseException as problem:
            run.stop_request.asked = True
            problems.append(problem)

    torch.set_num_threads(max(1, threads // parallel))
    workers = [threading.Thread(target=work, daemon=True) for _ in range(parallel)]  # daemons hold up no end
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            while worker.is_alive():
                worker.join(0.2)  # between waits a signal is seen, on Windows too
    except BaseException:
        run.stop_request.asked = True
        ends = time.monotonic() + SECONDS_TO_END
        for worker in workers:
            worker.join(max(0.0, ends - time.monotonic()))
        raise
    finally:
        torch.set_num_threads(threads)
    if problems:
        raise min(problems, key=lambda problem: isinstance(problem, Stopped))  # what failed, not what it stopped
    return seconds


def _train_and_save(group: ArmGroup, plan: _Plan, settings: TrainSettings, run: TrainingRun) -> dict[str, float]:
    """Returns seconds by part of the step."""
    recipe, writes = run.recipe, run.team.rank == 0
    every = (*group.arms, *group.reference_arms)
    trainers = [ArmTraining(arm, group.seed, recipe, plan.start, run.device, run.team, plan.whitening) for arm in every]
    tracks = [_track(settings, recipe, arm, group.seed) for arm in group.arms] if writes else []
    seconds = train_group(group, trainers, tracks, run)
    if writes:
        for trainer in trainers[: len(group.arms)]:
            metadata = sae_metadata(trainer.arm, group.seed, recipe, run.store.manifest, run.registered)
            lines = read_lines(run.out / log_file(trainer.arm, group.seed))
            found = {"convergence": convergence(lines, recipe), **steered_to(lines)}
            sae = trainer.finish(recipe.scale, metadata | found)
            sae = with_largest(sae.to(run.device), run.store, recipe.tokens)
            save(sae, run.out / sae_folder(trainer.arm, group.seed))
        shutil.rmtree(group.folder(run.out), ignore_errors=True)
    return seconds


LEAST_ROWS, MOST_ROWS, SHARE_OF_ROWS = 8192, 1 << 18, 50
"""Rows on which largest activations are looked for: a fiftieth of those trained on, within these. Encoding a row is a
sixth of training on it, so that it takes less than a hundredth of the training."""


def with_largest(sae: SAE, store: Store, tokens: int) -> SAE:
    """The SAE, whose metadata knows each latent's largest activation on the store's last rows: steering is scaled by it."""
    rows = max(LEAST_ROWS, min(MOST_ROWS, tokens // SHARE_OF_ROWS))
    largest = largest_activations(sae, store, start=max(0, len(store) - rows), silent=True)
    numbers = [float(f"{value:.4g}") for value in largest.tolist()]
    sae.config = replace(sae.config, metadata={**sae.config.metadata, LARGEST: numbers})
    return sae


OF_RECIPE = {name: f"penalty_{name}" for name in ("every", "on", "start", "warm_up")}
"""Options of an arm that the recipe has by another name."""


def _track(settings: TrainSettings, recipe: TrainingRecipe, arm: Arm, seed: int) -> Track:
    of_arm = {"arm": arm.name, "penalty": arm.penalty, "coefficient": arm.coefficient, "seed": seed}
    for option, value in arm._asdict().items():
        if option not in of_arm and value != Arm._field_defaults[option]:
            of_arm[OF_RECIPE.get(option, option)] = list(value) if isinstance(value, tuple) else value
    return Track(settings.out / log_file(arm, seed), settings.trackers, recipe.record() | of_arm)


def run(settings: TrainSettings) -> int:
    print(f"runs: {train(settings)}")
    return 0
