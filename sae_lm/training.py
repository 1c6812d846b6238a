"""store -> runs: arms x seeds, trained side by side on the same batches, from the store alone."""

import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from sae_lm.data.store import Store, open_store
from sae_lm.device import pick_device
from sae_lm.errors import SaeError, SettingsError
from sae_lm.files import read_json, write_json
from sae_lm.ledger import ledger_line, summed
from sae_lm.lockstep import Data, Job, train_group, unfinished
from sae_lm.processes import join_ranks
from sae_lm.progress import Progress
from sae_lm.sae.arm import ArmTraining
from sae_lm.sae.checkpoint import CONFIG, sae_directories, save
from sae_lm.sae.hyperparameters import Hyperparameters, default_lr
from sae_lm.sae.penalties import Arm, parse_arm, parse_arms
from sae_lm.settings import TrainSettings
from sae_lm.signals import stop_wishes
from sae_lm.tracking import Track, check_trackers
from sae_lm.verify import verify

RUN = "run.json"
FEWEST_BATCHES = 2000
"""By default, where the store is small. measured on the demo's store (2048 latents, k 16): FVU on held-out rows .381
after one epoch of 175 batches, .280 after 488, .234 after 976, .201 after 1953."""
IGNORED = (
    "out",
    "store",
    "device",
    "log_every",
    "arms",
    "seeds",
    "arms_at_once",
    "checkpoint_seconds",
    "ranks_per_sae",
    "trackers",
)
"""Settings that may differ between the runs of one folder: they do not change what an SAE is (another device
changes its rounding)."""
FREE = "k"
"""The setting that SAEs of one folder may have of their own: arms are compared at equal L0. Were another to differ, a
difference between arms would be its."""


def run_folder(arm: Arm, seed: int) -> str:
    """``max_cos_0.25-seed0``."""
    return f"{arm.name.replace(':', '_')}-seed{seed}"


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
    facts = _facts(settings, store, hook, context, row, arms)
    h = _hyperparameters(settings, facts)
    check_trackers(settings.trackers)
    with join_ranks() as ranks:
        team = ranks.team_of(settings.ranks_per_sae)
        if settings.batch_size % team.size:
            raise SettingsError(
                f"batch_size is {settings.batch_size}, which ranks_per_sae {team.size} does not divide; give a multiple"
            )
        teams, number = ranks.size // team.size, ranks.rank // team.size
        _check_alike(settings.out, facts)
        device = pick_device(settings.device, ranks.local_rank if ranks.size > 1 else None)
        pending = {seed: [a for a in arms if not _done(settings.out, a, seed, facts)] for seed in range(settings.seeds)}
        total = sum(map(len, pending.values()))
        jobs = _jobs(pending, settings.out, settings.arms_at_once or -(-total // teams) or 1)
        ranks.barrier()
        if ranks.rank == 0:
            _write_run(settings, facts, arms)
            if total < len(arms) * settings.seeds:
                there = len(arms) * settings.seeds - total
                print(f"{there} of {len(arms) * settings.seeds} SAEs are there already; reused", flush=True)
        mine = jobs[number::teams]
        rows = sum(len(job.arms) for job in mine) * h.steps * settings.batch_size
        data = Data(store, hook, settings.batch_size, row, facts["scale"], team)
        ledgers: list[dict[str, float]] = []
        start = store.moments(hook, row).mean / facts["scale"] if mine else torch.empty(0)
        with stop_wishes("this step") as wish, Progress("training", rows, "row", silent=ranks.rank > 0) as bar:
            for job in mine:
                arms_trained = (*job.arms, *job.shadows)
                runs = [ArmTraining(arm, job.seed, settings.d_sae, start, h, device, team) for arm in arms_trained]
                tracks = [_track(settings, facts, arm, job.seed) for arm in job.arms] if team.rank == 0 else []
                ledgers.append(train_group(job, runs, data, tracks, settings.out, facts, steps=h.steps,
                                       log_every=settings.log_every, checkpoint_seconds=settings.checkpoint_seconds,
                                       device=device, bar=bar, wish=wish))  # fmt: skip
                if team.rank > 0:
                    continue
                for run in runs[: len(job.arms)]:
                    sae = run.finish(data.scale, _metadata(run, store, hook, facts))
                    save(sae, settings.out / run_folder(run.arm, run.seed))
                shutil.rmtree(job.folder(settings.out), ignore_errors=True)
        everyones = ranks.gather(summed(ledgers))
    if ranks.rank == 0:
        shutil.rmtree(settings.out / "state", ignore_errors=True)
        if total:
            print(ledger_line(summed(everyones)), flush=True)
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


def _write_run(settings: TrainSettings, facts: dict[str, Any], arms: list[Arm]) -> None:
    settings.out.mkdir(parents=True, exist_ok=True)
    earlier = read_run(settings.out) if (settings.out / RUN).exists() else {"arms": [], "seeds": 0}
    write_json(
        settings.out / RUN,
        {
            "settings": settings.model_dump(mode="json"),
            "arms": list(dict.fromkeys([*earlier["arms"], *(arm.name for arm in arms)])),
            "seeds": max(earlier["seeds"], settings.seeds),
            "store": str(settings.store),
            "facts": facts,
            "versions": {name: version(name) for name in ("sae_lm", "torch")},
        },
    )


def read_run(folder: Path) -> dict[str, Any]:
    """The run.json of a folder of runs: every arm and the number of seeds trained there. Raises SaeError."""
    run = read_json(folder / RUN, SaeError, "a folder of runs (written by sae-lm train)")
    arms, seeds, store = run.get("arms"), run.get("seeds"), run.get("store")
    if not (
        isinstance(arms, list)
        and all(isinstance(a, str) for a in arms)
        and isinstance(seeds, int)
        and isinstance(store, str)
    ):
        raise SaeError(
            f"{folder / RUN} is not understood; delete this file and run sae-lm train again, it keeps the SAEs there"
        )
    return run


def _facts(settings: TrainSettings, store: Store, hook: str, context: int, row: int, arms: list[Arm]) -> dict[str, Any]:
    """Everything an SAE's weights depend on besides arm and seed, as it is recorded with it."""
    k = max(arm.k or settings.k for arm in arms)
    if k > settings.d_sae:
        raise SettingsError(f"k is {k}, more than the {settings.d_sae} latents of d_sae; give a smaller one")
    widths = settings.widths
    if widths is not None and (sorted(set(widths)) != list(widths) or widths[0] < 1 or widths[-1] != settings.d_sae):
        raise SettingsError(
            f"widths is {', '.join(map(str, widths))}; expected ascending widths from 1, the last d_sae ({settings.d_sae})"
        )
    if row >= len(store):
        raise SettingsError(
            f"held_out is {settings.held_out}, which keeps no context of {settings.store} back; give more"
        )
    if row < settings.batch_size:
        raise SettingsError(
            f"store {settings.store} has {row:,} rows for training, fewer than one batch of {settings.batch_size:,}; "
            "cache more tokens or give a smaller --batch-size"
        )
    rows = settings.tokens or max(row, FEWEST_BATCHES * settings.batch_size)
    if rows < settings.batch_size:
        raise SettingsError(f"tokens is {rows}, fewer than one batch of {settings.batch_size}; give more --tokens")
    facts = {key: value for key, value in settings.model_dump(mode="json").items() if key not in IGNORED}
    resolved = {
        "hook": hook,
        "tokens": rows // settings.batch_size * settings.batch_size,
        "lr": settings.lr or default_lr(settings.d_sae),
        "aux_k": settings.aux_k or max(1, store.hooks[hook] // 2),
        "dead_after": settings.dead_after or max(1, min(10_000_000, rows // 10)),
    }
    moments = store.moments(hook, row)  # of training rows: held-out ones are not looked at
    if moments.variance <= 0:
        raise SettingsError(
            f"store {settings.store}: all rows of {hook} are equal, there is nothing to learn; cache another hook"
        )
    return {
        **facts,
        **resolved,
        "store_id": store.manifest.id,
        "held_out_from_context": context,
        "held_out_from_row": row,
        "scale": moments.variance**0.5,
    }


def _hyperparameters(settings: TrainSettings, facts: dict[str, Any]) -> Hyperparameters:
    return Hyperparameters(
        arch=settings.arch,
        k=settings.k,
        steps=facts["tokens"] // settings.batch_size,
        lr=facts["lr"],
        warm_up=settings.warm_up,
        decay=settings.decay,
        penalty_every=settings.penalty_every,
        penalty_start=settings.penalty_start,
        penalty_on=settings.penalty_on,
        penalty_warm_up=settings.penalty_warm_up,
        aux_coefficient=settings.aux_coefficient,
        aux_k=facts["aux_k"],
        dead_after=facts["dead_after"],
        matmul=getattr(torch, settings.matmul),
        widths=settings.widths,
        sparsity_coefficient=settings.sparsity_coefficient,
        bandwidth=settings.bandwidth,
        resample_every=settings.resample_every,
    )


def _check_alike(out: Path, facts: dict[str, Any]) -> None:
    """Refuse a folder with an SAE of any arm that was trained otherwise. Raises SaeError."""
    shared = {key: value for key, value in facts.items() if key != FREE}
    for directory in sae_directories(out):
        about = read_json(directory / CONFIG, SaeError, "an SAE directory").get("metadata")
        there = about.get("training") if isinstance(about, dict) else None
        if isinstance(there, dict):
            _check_facts(directory, there, shared)


def _check_facts(directory: Path, there: dict[str, Any], facts: dict[str, Any]) -> None:
    differing = [f"{key} is {there.get(key)}, asked for {facts[key]}" for key in facts if there.get(key) != facts[key]]
    if differing:
        raise SaeError(f"{directory} was trained otherwise: {'; '.join(differing)}; give another --out or delete it")


def _done(out: Path, arm: Arm, seed: int, facts: dict[str, Any]) -> bool:
    """Whether this SAE is there, trained with the same settings on the same store."""
    directory = out / run_folder(arm, seed)
    if not directory.exists():
        return False
    if problems := verify(directory):
        raise SaeError(f"{directory} is damaged ({problems[0]}); delete it and train again")
    there = read_json(directory / CONFIG, SaeError, "an SAE directory")["metadata"].get("training") or {}
    _check_facts(directory, there, facts)
    return True


def _metadata(run: ArmTraining, store: Store, hook: str, facts: dict[str, Any]) -> dict[str, Any]:
    recipe = store.manifest.recipe
    return {
        "model_name": recipe.model["id"],
        "model_revision": recipe.model["revision"],
        "hook_name": hook,
        "context_size": recipe.context_size,
        "prepend_bos": recipe.bos is not None,
        "dataset_path": recipe.text["id"],
        "training_architecture": run.arch,
        "arm": run.arm.name,
        "penalty": run.arm.penalty,
        "coefficient": run.arm.coefficient,
        "seed": run.seed,
        "training": facts,
        "versions": {name: version(name) for name in ("sae_lm", "torch")},
    }
