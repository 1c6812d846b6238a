"""Read a folder of trained SAEs: which of them can be compared, the store they share, and what is missing."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sae_lm.comparison.matching import is_rung
from sae_lm.data.store import Store, open_store
from sae_lm.errors import SaeError, SettingsError
from sae_lm.penalties.arms import Arm, parse_arm
from sae_lm.runtime.differences import differences
from sae_lm.sae.folder import CONFIG
from sae_lm.sae.formats.saelens import check
from sae_lm.sae.load import load
from sae_lm.sae.model import SAE
from sae_lm.settings import CompareSettings
from sae_lm.training.recipe import with_defaults
from sae_lm.training.run_folder import PER_ARM, read_run, read_saes, sae_folder

MUST_MATCH = {
    "store_id": "store",
    "hook": "hook",
    "held_out_from_row": "first held-out row",
    "d_sae": "number of latents",
}
"""Settings of training that SAEs have to share to be compared, and what they are called."""
REQUIRED = (*MUST_MATCH, "held_out_from_context", "k")
"""Settings of training without which an SAE cannot be compared."""
OF_WIDTH = ("d_sae", "widths", "scale", "matmul")
"""Settings of training in which SAEs and narrower ones may differ: what follows from the width, and rounding."""
Key = tuple[Arm, int]
"""Arm and seed."""


class Run(NamedTuple):
    arm: Arm
    seed: int
    directory: Path
    training: Mapping[str, Any]
    architecture: str
    """as it was trained: a batchtopk or matryoshka SAE is used as a jumprelu"""

    hook: str | None = None
    """in place of what an SAE of another program says"""

    def load(self, device: str) -> SAE:
        return load(self.directory, device, hook=self.hook)


class Runs(NamedTuple):
    """What can be compared."""

    baseline: Arm
    """as the settings name it: an arm, or without its k a family of arms"""
    arms: list[Arm]
    """the baseline's first"""
    seeds: list[int]
    """those that every arm has"""
    by_key: dict[Key, Run]
    partial: list[str]
    """sentences: what is missing, and what that means"""
    training: dict[str, Any]
    """of the baseline's first run"""

    @property
    def least_d_sae(self) -> int:
        """Latents of the narrowest SAE."""
        return min(run.training["d_sae"] for run in self.by_key.values())

    def check(self) -> None:
        """Read every SAE's files but for the numbers themselves. Raises SaeError for one that is damaged."""
        for run in self.by_key.values():
            if run.arm.label is None:  # those of other programs were loaded to be known
                check(run.directory)


KEPT_BYTES = 1 << 31
"""SAEs of up to this size together are loaded once."""


def files_of(sae: Path) -> list[Path]:
    """An SAE's files, sorted: of a directory, or the one file."""
    return sorted(file for file in sae.rglob("*") if file.is_file()) if sae.is_dir() else [sae]


def size_of(sae: Path) -> int:
    """Bytes of an SAE's files."""
    return sum(file.stat().st_size for file in files_of(sae))


class Loaded(Mapping[Key, SAE]):
    """The SAEs of runs by arm and seed; where they do not fit in memory, each is loaded again whenever it is asked for."""

    def __init__(self, runs: Mapping[Key, Run], device: str) -> None:
        self.runs, self.device = runs, device
        size = sum(size_of(run.directory) for run in runs.values())
        self.kept: dict[Key, SAE] | None = {} if size <= KEPT_BYTES else None

    def __getitem__(self, key: Key) -> SAE:
        if self.kept is None:
            return self.runs[key].load(self.device)
        if key not in self.kept:
            self.kept[key] = self.runs[key].load(self.device)
        return self.kept[key]

    def load(self) -> None:
        """Those that fit, now: processes that are forked later share them."""
        if self.kept is not None:
            self.kept |= {key: run.load(self.device) for key, run in self.runs.items() if key not in self.kept}

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
    trained, partial = _read_saes(folder)
    known = list(dict.fromkeys([*map(_read_arm, expected["arms"]), *(arm for arm, _ in trained)]))
    wanted, rungs = _find_baseline(folder, baseline, known)
    if not any(arm in rungs for arm, _ in trained):
        raise SaeError(
            f"runs {folder} hold no SAE of the baseline {baseline!r} yet; run sae-lm train again with --arms {baseline}"
        )
    arms = sorted(dict.fromkeys(arm for arm, _ in trained), key=lambda arm: (arm not in rungs, known.index(arm)))
    partial += [f"{arm.name}: no SAE is there; the arm is left out." for arm in known if arm not in arms]
    seeds = sorted({seed for _, seed in trained} | set(range(expected.get("first_seed", 0), expected["seeds"])))
    lacking = {seed: [arm for arm in arms if (arm, seed) not in trained] for seed in seeds}
    common = [seed for seed in seeds if not lacking[seed]]
    partial += _left_out(lacking)
    if not common:
        raise SaeError(
            f"runs {folder} have no seed that all of their arms have, they have "
            f"{', '.join(run.directory.name for run in list(trained.values())[:6])}{', ...' * (len(trained) > 6)}; "
            "run sae-lm train again with the same --seeds for every arm"
        )
    runs = {(arm, seed): trained[arm, seed] for arm in arms for seed in common}
    _check_equal(folder, list(runs.values()))
    return Runs(wanted, arms, common, runs, partial, dict(runs[arms[0], common[0]].training))


def _left_out(lacking: Mapping[int, list[Arm]]) -> Iterator[str]:
    """A sentence for all seeds that lack the same arms."""
    by_arms: dict[tuple[Arm, ...], list[int]] = {}
    for seed, without in lacking.items():
        by_arms.setdefault(tuple(without), []).append(seed)
    for without, seeds in by_arms.items():
        one = len(seeds) == 1
        missing = ", ".join(sae_folder(arm, seeds[0]) if one else arm.name for arm in without)
        if missing:
            said = f"Seed {seeds[0]} is" if one else f"Seeds {_spans(seeds)} are"
            yield f"{said} left out: {missing} missing; run sae-lm train again with these arms."


def _spans(seeds: list[int]) -> str:
    """Ascending numbers, runs of them as ``3-999``."""
    known = set(seeds)
    starts = [seed for seed in seeds if seed - 1 not in known]
    ends = [seed for seed in seeds if seed + 1 not in known]
    return ", ".join(str(start) if start == end else f"{start}-{end}" for start, end in zip(starts, ends, strict=True))


def _find_baseline(folder: Path, baseline: str, known: list[Arm]) -> tuple[Arm, list[Arm]]:
    """The arm that the settings name, and which of the known arms are rungs of it. Raises SaeError if none is."""
    try:
        wanted = parse_arm(baseline)
        rungs = [arm for arm in known if is_rung(arm, wanted)]
    except SettingsError:
        wanted, rungs = None, []
    if wanted is None or not rungs:
        raise SaeError(
            f"runs {folder} have no arm {baseline!r} to compare with, they have {_names(known)}; give --baseline"
        )
    return wanted, rungs


def read_narrower(folder: Path, runs: Runs) -> Runs:
    """SAEs of fewer latents, to trace those of ``runs`` to. Raises SaeError where there is nothing to trace."""
    narrower = read_runs(folder, runs.baseline.name)
    few, many = narrower.training["d_sae"], runs.training["d_sae"]
    if few >= many:
        raise SaeError(
            f"narrower runs {folder} have {few} latents, expected fewer than the {many} of those compared; "
            "give --narrower the folder of SAEs with fewer"
        )
    every = [*MUST_MATCH, *runs.training, *narrower.training]
    alike = {key: runs.training.get(key) for key in dict.fromkeys(every) if key not in OF_WIDTH}
    for key, theirs, ours in differences(narrower.training, alike):
        raise SaeError(
            f"narrower runs {folder} differ from those compared in their {MUST_MATCH.get(key, key)} ({theirs}, "
            f"expected {ours}); train them with the same settings but --d-sae"
        )
    if not set(narrower.arms) & set(runs.arms):
        raise SaeError(
            f"narrower runs {folder} have the arms {_names(narrower.arms)}, and none of {_names(runs.arms)}; "
            "train them with the same --arms"
        )
    return narrower


def _names(arms: Iterable[Arm]) -> str:
    return ", ".join(arm.name for arm in arms)


def _read_arm(name: str) -> Arm:
    """Parse the recorded name of a trained arm. Raises SaeError where it is not one."""
    try:
        return parse_arm(name)
    except SettingsError:
        raise SaeError(
            f"{name!r} is not an arm of sae-lm train; expected one as none, max_cos:0.25, none@k=16"
        ) from None


def _read_saes(folder: Path) -> tuple[dict[Key, Run], list[str]]:
    """Every SAE directory that sae-lm train wrote, and a sentence for each that it did not."""
    runs: dict[Key, Run] = {}
    partial = []
    for directory, name, seed, training, architecture in read_saes(folder):
        if name is None or seed is None or training is None:
            partial.append(
                f"{directory.name} is left out: an SAE of another program, whose arm, seed and training are not known."
            )
            continue
        if missing := [key for key in REQUIRED if key not in training]:
            partial.append(f"{directory.name} is left out: its metadata lacks {', '.join(missing)}; train it again.")
            continue
        arm = _read_arm(name)
        if (arm, seed) in runs:
            raise SaeError(
                f"{directory} and {runs[arm, seed].directory} are both {name} with seed {seed}; delete one of them"
            )
        runs[arm, seed] = Run(arm, seed, directory, with_defaults(training), architecture)
    if not runs:
        said = f" that can be compared ({' '.join(partial)})" if partial else " yet"
        raise SaeError(f"runs {folder} hold no SAE{said}; run sae-lm train --out {folder} again")
    return runs, partial


def _check_equal(folder: Path, runs: list[Run]) -> None:
    settings = [key for run in runs for key in run.training if key != PER_ARM]
    for key in dict.fromkeys([*MUST_MATCH, *settings]):
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
            f"runs {folder} differ in their {MUST_MATCH.get(key, key)} ({by_value}); only SAEs of one store, hook and width "
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
