"""folder of runs -> the SAEs in it that can be compared, their store and language model; what is missing is told."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sae_lm.comparison.matching import family, read_arm
from sae_lm.data.store import Store, open_store
from sae_lm.errors import SaeError
from sae_lm.runtime.differences import differences
from sae_lm.sae.folder import CONFIG, WEIGHTS
from sae_lm.sae.formats.saelens import check
from sae_lm.sae.load import load
from sae_lm.sae.model import SAE
from sae_lm.settings import CompareSettings
from sae_lm.training.run_folder import PER_ARM, read_run, read_saes, sae_folder

EQUAL = {
    "store_id": "store",
    "hook": "hook",
    "held_out_from_row": "first held-out row",
    "d_sae": "number of latents",
}
"""Facts of training that SAEs have to share to be compared, and what they are called."""
NEEDED = (*EQUAL, "held_out_from_context", "k")
"""Facts without which an SAE cannot be compared."""
Key = tuple[str, int]
"""Arm and seed."""


class Run(NamedTuple):
    arm: str
    seed: int
    directory: Path
    training: Mapping[str, Any]
    architecture: str
    """as it was trained: a batchtopk or matryoshka SAE is used as a jumprelu"""

    def load(self, device: str) -> SAE:
        return load(self.directory, device)


class Runs(NamedTuple):
    """What can be compared."""

    arms: list[str]
    """the baseline's first"""
    seeds: list[int]
    """those that every arm has"""
    of: dict[Key, Run]
    partial: list[str]
    """sentences: what is missing, and what that means"""
    training: dict[str, Any]
    """of the baseline's first run"""

    def check(self) -> None:
        """Read every SAE's files but for the numbers themselves. Raises SaeError for one that is damaged."""
        for run in self.of.values():
            check(run.directory)


KEPT_BYTES = 1 << 31
"""SAEs of up to this size together are loaded once."""


class Loaded(Mapping[Key, SAE]):
    """The SAEs of runs by arm and seed; where they do not fit in memory, each is loaded again whenever it is asked for."""

    def __init__(self, runs: Mapping[Key, Run], device: str) -> None:
        self.runs, self.device = runs, device
        size = sum((run.directory / WEIGHTS).stat().st_size for run in runs.values())
        self.kept: dict[Key, SAE] | None = {} if size <= KEPT_BYTES else None

    def __getitem__(self, key: Key) -> SAE:
        if self.kept is None:
            return self.runs[key].load(self.device)
        if key not in self.kept:
            self.kept[key] = self.runs[key].load(self.device)
        return self.kept[key]

    def __iter__(self) -> Iterator[Key]:
        return iter(self.runs)

    def __len__(self) -> int:
        return len(self.runs)


def read_runs(folder: Path, baseline: str) -> Runs:
    """The SAEs that ``sae-lm train`` wrote to a folder.

    SAEs without its metadata are left out, and so are seeds that some arm lacks: ``partial`` says which. Raises
    SaeError for a folder without runs, a missing baseline, arms without a common seed, runs of different stores,
    hooks or widths.
    """
    if not folder.is_dir():
        raise SaeError(f"runs {folder} does not exist; write it with sae-lm train --out {folder}")
    if (folder / CONFIG).exists():
        raise SaeError(
            f"runs {folder} is a single SAE, expected the folder that holds those of all arms; give {folder.parent}"
        )
    expected = read_run(folder)
    there, partial = _scan(folder)
    known = list(dict.fromkeys([*expected["arms"], *(arm for arm, _ in there)]))
    ours = [arm for arm in known if arm == baseline or family(arm) == baseline]
    if not ours:
        raise SaeError(
            f"runs {folder} have no arm {baseline!r} to compare with, they have {', '.join(known)}; give --baseline"
        )
    if not any(arm in ours for arm, _ in there):
        raise SaeError(
            f"runs {folder} hold no SAE of the baseline {baseline!r} yet; run sae-lm train again with --arms {baseline}"
        )
    trained = sorted(dict.fromkeys(arm for arm, _ in there), key=lambda arm: (arm not in ours, known.index(arm)))
    partial += [f"{arm}: no SAE is there; the arm is left out." for arm in known if arm not in trained]
    seeds = sorted({seed for _, seed in there} | set(range(expected["seeds"])))
    lacking = {seed: [arm for arm in trained if (arm, seed) not in there] for seed in seeds}
    common = [seed for seed in seeds if not lacking[seed]]
    for seed, arms in lacking.items():
        if arms:
            missing = ", ".join(sae_folder(read_arm(arm), seed) for arm in arms)
            partial.append(f"Seed {seed} is left out: {missing} missing; run sae-lm train again with these arms.")
    if not common:
        raise SaeError(
            f"runs {folder} have no seed that all of their arms have, they have "
            f"{', '.join(run.directory.name for run in list(there.values())[:6])}{', ...' * (len(there) > 6)}; run sae-lm train again with the same "
            "--seeds for every arm"
        )
    runs = {(arm, seed): there[arm, seed] for arm in trained for seed in common}
    _check_equal(folder, list(runs.values()))
    return Runs(trained, common, runs, partial, dict(runs[trained[0], common[0]].training))


def read_narrower(folder: Path, runs: Runs, baseline: str) -> Runs:
    """SAEs of fewer latents, to trace those of ``runs`` to. Raises SaeError where there is nothing to trace."""
    narrower = read_runs(folder, baseline)
    few, many = narrower.training["d_sae"], runs.training["d_sae"]
    if few >= many:
        raise SaeError(
            f"narrower runs {folder} have {few} latents, expected fewer than the {many} of those compared; "
            "give --narrower the folder of SAEs with fewer"
        )
    alike = {key: runs.training.get(key) for key in (*EQUAL, PER_ARM) if key != "d_sae"}
    for key, theirs, ours in differences(narrower.training, alike):
        raise SaeError(
            f"narrower runs {folder} differ from those compared in their {EQUAL.get(key, key)} ({theirs}, "
            f"expected {ours}); train them with the same settings but --d-sae"
        )
    if not set(narrower.arms) & set(runs.arms):
        raise SaeError(
            f"narrower runs {folder} have the arms {', '.join(narrower.arms)}, and none of {', '.join(runs.arms)}; "
            "train them with the same --arms"
        )
    return narrower


def _scan(folder: Path) -> tuple[dict[Key, Run], list[str]]:
    """Every SAE directory that is ours, and a sentence for each that is not."""
    found, partial = {}, []
    for directory, arm, seed, training, architecture in read_saes(folder):
        if arm is None or seed is None or training is None:
            partial.append(
                f"{directory.name} is left out: an SAE of another program, whose arm, seed and training are not known."
            )
            continue
        if missing := [key for key in NEEDED if key not in training]:
            partial.append(f"{directory.name} is left out: its metadata lacks {', '.join(missing)}; train it again.")
            continue
        run = Run(read_arm(arm).name, seed, directory, training, architecture)
        if (run.arm, seed) in found:
            raise SaeError(
                f"{directory} and {found[run.arm, seed].directory} are both {arm} with seed {seed}; delete one of them"
            )
        found[run.arm, seed] = run
    if not found:
        said = f" that can be compared ({' '.join(partial)})" if partial else " yet"
        raise SaeError(f"runs {folder} hold no SAE{said}; run sae-lm train --out {folder} again")
    return found, partial


def _check_equal(folder: Path, runs: list[Run]) -> None:
    settings = [key for run in runs for key in run.training if key != PER_ARM]
    for key in dict.fromkeys([*EQUAL, *settings]):
        if not any(differences(run.training, {key: runs[0].training.get(key)}) for run in runs):
            continue
        names: dict[str, list[str]] = {}
        for run in runs:
            names.setdefault(str(run.training.get(key)), []).append(run.directory.name)
        by_value = "; ".join(
            f"{value[:12] if key == 'store_id' else value}: {', '.join(some[:3])}" + ", ..." * (len(some) > 3)
            for value, some in names.items()
        )
        raise SaeError(
            f"runs {folder} differ in their {EQUAL.get(key, key)} ({by_value}); only SAEs of one store, hook and width "
            "that were trained alike can be compared, move the others to a folder of their own"
        )


def find_store(settings: CompareSettings, store_id: str) -> Store:
    """The store the runs were trained on; it may have been moved. Raises SaeError."""
    path = str(settings.store or read_run(settings.runs)["store"])
    if not path.startswith("hf://") and not Path(path).exists():
        raise SaeError(f"the runs' store {path} is not there; give its present place with --store")
    store = open_store(path)
    if store.manifest.id != store_id:
        raise SaeError(
            f"store {path} is not the one these runs were trained on (id {store.manifest.id[:12]}, "
            f"expected {store_id[:12]}); give the right one with --store"
        )
    return store
