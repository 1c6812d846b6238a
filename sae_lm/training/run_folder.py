"""The folder of runs on disk: its run.json, the names of its SAEs, and what is recorded with each."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

from sae_lm.data.store import Store
from sae_lm.errors import SaeError
from sae_lm.penalties.arms import Arm
from sae_lm.runtime.differences import differences
from sae_lm.runtime.files import read_json, write_json
from sae_lm.sae.formats.saelens import CONFIG, verify_files
from sae_lm.sae.load import sae_directories
from sae_lm.settings import TrainSettings
from sae_lm.training.recipe import PER_ARM
from sae_lm.training.trainer import ArmTraining

RUN = "run.json"


def run_folder(arm: Arm, seed: int) -> str:
    """``max_cos_0.25-seed0``."""
    return f"{arm.name.replace(':', '_')}-seed{seed}"


def write_run(settings: TrainSettings, facts: dict[str, Any], arms: list[Arm]) -> None:
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


def check_alike(out: Path, facts: dict[str, Any]) -> None:
    """Refuse a folder with an SAE of any arm that was trained otherwise. Raises SaeError."""
    shared = {key: value for key, value in facts.items() if key != PER_ARM}
    for directory in sae_directories(out):
        about = read_json(directory / CONFIG, SaeError, "an SAE directory").get("metadata")
        there = about.get("training") if isinstance(about, dict) else None
        if isinstance(there, dict):
            check_facts(directory, there, shared)


def check_facts(directory: Path, there: dict[str, Any], facts: dict[str, Any]) -> None:
    if differing := differences(there, facts):
        raise SaeError(
            f"{directory} was trained otherwise: {'; '.join(map(str, differing))}; give another --out or delete it"
        )


def is_done(out: Path, arm: Arm, seed: int, facts: dict[str, Any]) -> bool:
    """Whether this SAE is there, trained with the same settings on the same store."""
    directory = out / run_folder(arm, seed)
    if not directory.exists():
        return False
    if problems := verify_files(directory):
        raise SaeError(f"{directory} is damaged ({problems[0]}); delete it and train again")
    there = read_json(directory / CONFIG, SaeError, "an SAE directory")["metadata"].get("training") or {}
    check_facts(directory, there, facts)
    return True


def sae_metadata(run: ArmTraining, store: Store, hook: str, facts: dict[str, Any]) -> dict[str, Any]:
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
