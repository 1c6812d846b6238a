"""store -> runs: arms x seeds, trained side by side on the same batches, from the store alone."""

import json
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from sae_lm.data.batches import shuffled_batches
from sae_lm.data.store import Store, open_store
from sae_lm.device import pick_device
from sae_lm.errors import SaeError, SettingsError
from sae_lm.files import read_json, write_json
from sae_lm.progress import Progress
from sae_lm.sae.arm import ArmTraining, Hyperparameters, default_lr
from sae_lm.sae.checkpoint import CONFIG, save
from sae_lm.sae.penalties import Arm, parse_arm
from sae_lm.settings import TrainSettings
from sae_lm.verify import verify

RUN = "run.json"
IGNORED = ("out", "store", "device", "log_every", "arms", "seeds")
"""Settings that may differ between the runs of one folder: they do not change what an SAE is (another device
changes its rounding)."""


def run_folder(arm: Arm, seed: int) -> str:
    """``max_cos_0.25-seed0``."""
    return f"{arm.name.replace(':', '_')}-seed{seed}"


def train(settings: TrainSettings) -> Path:
    """Train every arm with every seed and return the folder of the runs.

    SAEs of the same settings and store that are there already are kept; differing ones are refused
    (SaeError). Each SAE directory appears whole or not at all.
    """
    store = open_store(settings.store)
    hook = store.hook(settings.hook)
    arms = [parse_arm(text) for text in settings.arms]
    if len({arm.name for arm in arms}) < len(arms):
        raise SettingsError(f"arms: {', '.join(settings.arms)} names one arm twice; name each arm once")
    context, row = store.held_out_from(settings.held_out)
    facts = _facts(settings, store, hook, context, row)
    settings.out.mkdir(parents=True, exist_ok=True)
    pending = {
        seed: [arm for arm in arms if not _done(settings.out, arm, seed, facts)] for seed in range(settings.seeds)
    }
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
    total = sum(map(len, pending.values()))
    if total < len(arms) * settings.seeds:
        print(
            f"{len(arms) * settings.seeds - total} of {len(arms) * settings.seeds} SAEs are there already; reused",
            flush=True,
        )
    h = _hyperparameters(settings, facts)
    with Progress("training", total * h.steps * settings.batch_size, "row") as bar:
        for seed, remaining in pending.items():
            if remaining:
                _train_group(settings, store, hook, remaining, seed, h, facts, bar)
    return settings.out


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


def _facts(settings: TrainSettings, store: Store, hook: str, context: int, row: int) -> dict[str, Any]:
    """Everything an SAE's weights depend on besides arm and seed, as it is recorded with it."""
    if settings.k > settings.d_sae:
        raise SettingsError(f"k is {settings.k}, more than the {settings.d_sae} latents of d_sae; give a smaller --k")
    if row >= len(store):
        raise SettingsError(
            f"held_out is {settings.held_out}, which keeps no context of {settings.store} back; give more"
        )
    if row < settings.batch_size:
        raise SettingsError(
            f"store {settings.store} has {row:,} rows for training, fewer than one batch of {settings.batch_size:,}; "
            "cache more tokens or give a smaller --batch-size"
        )
    rows = settings.tokens or row
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
        k=settings.k,
        steps=facts["tokens"] // settings.batch_size,
        lr=facts["lr"],
        warm_up=settings.warm_up,
        decay=settings.decay,
        penalty_every=settings.penalty_every,
        penalty_start=settings.penalty_start,
        penalty_on=settings.penalty_on,
        aux_coefficient=settings.aux_coefficient,
        aux_k=facts["aux_k"],
        dead_after=facts["dead_after"],
        matmul=getattr(torch, settings.matmul),
    )


def _done(out: Path, arm: Arm, seed: int, facts: dict[str, Any]) -> bool:
    """Whether this SAE is there, trained with the same settings on the same store."""
    directory = out / run_folder(arm, seed)
    if not directory.exists():
        return False
    if problems := verify(directory):
        raise SaeError(f"{directory} is damaged ({problems[0]}); delete it and train again")
    there = read_json(directory / CONFIG, SaeError, "an SAE directory")["metadata"].get("training") or {}
    differing = [f"{key} is {there.get(key)}, asked for {facts[key]}" for key in facts if there.get(key) != facts[key]]
    if differing:
        raise SaeError(f"{directory} was trained otherwise: {'; '.join(differing)}; give another --out or delete it")
    return True


def _train_group(
    settings: TrainSettings,
    store: Store,
    hook: str,
    arms: list[Arm],
    seed: int,
    h: Hyperparameters,
    facts: dict[str, Any],
    bar: Progress,
) -> None:
    """All arms of one seed, step by step on the same batches."""
    device = pick_device(settings.device)
    scale = facts["scale"]
    start = store.moments(hook, facts["held_out_from_row"]).mean / scale
    runs = [ArmTraining(arm, seed, settings.d_sae, start, h, device) for arm in arms]
    batches = shuffled_batches(store, [hook], settings.batch_size, seed, h.steps, 0, facts["held_out_from_row"])
    with ExitStack() as files:
        logs = [files.enter_context((settings.out / f"{run_folder(run.arm, seed)}.jsonl").open("w")) for run in runs]
        for step, batch in enumerate(batches):
            x = batch[hook].to(device).float() / scale
            for run, log in zip(runs, logs, strict=True):
                run.step(x, step)
                if step % settings.log_every == 0 or step + 1 == h.steps:
                    log.write(json.dumps(run.log(step)) + "\n")
                    log.flush()
                bar.update(len(batch), seed=seed, fvu=f"{float(runs[0].parts['fvu']):.3f}")
    for run in runs:
        save(run.finish(scale, _metadata(run, store, hook, facts)), settings.out / run_folder(run.arm, seed))


def _metadata(run: ArmTraining, store: Store, hook: str, facts: dict[str, Any]) -> dict[str, Any]:
    recipe = store.manifest.recipe
    return {
        "model_name": recipe.model["id"],
        "model_revision": recipe.model["revision"],
        "hook_name": hook,
        "context_size": recipe.context_size,
        "prepend_bos": recipe.bos is not None,
        "dataset_path": recipe.text["id"],
        "arm": run.arm.name,
        "penalty": run.arm.penalty,
        "coefficient": run.arm.coefficient,
        "seed": run.seed,
        "training": facts,
        "versions": {name: version(name) for name in ("sae_lm", "torch")},
    }
