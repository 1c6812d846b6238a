"""What a folder of runs holds on disk, and how it is read and written.

``sae-lm train`` writes one folder for the SAEs that are to be compared::

    run.json                    what was asked for; written when training begins
    ARM-seedN/                  one SAE directory per arm and seed, as SAELens reads it: it appears whole when its
        cfg.json                training has ended (sae_lm.sae.formats.saelens)
        sae_weights.safetensors
    ARM-seedN.metrics.jsonl     its log, one JSON object per line, from the first step on (sae_lm.training.trackers)
    tensorboard/ARM-seedN/      the same for TensorBoard, where that was asked for
    state/                      checkpoints of what is not finished (sae_lm.training.state) and NAME.lock for what is being
        trained (sae_lm.training.locks); gone at the end

ARM is the arm's name (sae_lm.penalties.arms) with ``_`` for ``:``. Names that end in ``.part`` are being written.

Keys of ``run.json``; a later run into the same folder writes it anew::

    settings    the newest command's settings, every field of ``TrainSettings``
    arms        names of all arms that were ever asked for, in that order
    first_seed  the least seed that was asked for; 0 where it is missing
    seeds       one more than the largest
    store       address of the store, as it was given
    facts       the training recipe, the fields of ``TrainingRecipe`` (sae_lm.training.recipe)
    registered  file, sha256, text of what was fixed beforehand, labels the SHA-256 of its concepts' file
                (sae_lm.training.registered); null where nothing was
    versions    of sae_lm and torch

Keys of ``metadata`` in an SAE's ``cfg.json``, beside those that SAELens wants: ``arm``, ``penalty``,
``coefficient``, ``seed``; ``held``, only of controls, what stayed at its random start: ``decoder``, ``encoder``, to
``frozen`` or the least cosine with the start; ``registered``, the SHA-256 of the file that the SAE was trained
under; ``training``, the training recipe as in ``facts``;
``training_architecture``, what the SAE was trained as (a batchtopk or matryoshka SAE is used as a jumprelu);
``convergence``, the last ``start_cos`` and ``encoder_start_cos`` of its log, and ``fvu_slope``
(sae_lm.training.convergence); ``steered_to``, only of arms that were steered, the ``coefficient`` or ``balance`` they
ended at, where ``coefficient`` is what they began at, and the ``cost`` in FVU or the ``coherence``; ``largest_activations``, one number for
each latent (sae_lm.interp.steering); ``versions``; and of the store ``model_name``,
``model_revision``, ``hook_name``, ``context_size``, ``prepend_bos``, ``dataset_path``.

SAEs of one folder have equal recipes but for `PER_ARM`. Keys that a reader does not know are passed over, keys that
an SAE lacks are None: a folder may hold SAEs of other versions and of other programs.

Keys of a line of the log: ``arm``, ``seed``, ``step``; the batch's ``loss``, ``fvu``, ``l0``, and where they are part
of it ``aux``, ``penalty``, ``sparsity`` (the coefficient), ``threshold``; of an arm that is steered, the ``coefficient``
or ``balance``, and the ``cost`` or ``coherence`` of late steps that it is steered to; ``dead`` and ``dense``, numbers of
latents; ``nearest_cos`` and its quantiles
``nearest_cos_10``, ``_50``, ``_90`` over living latents; ``start_cos`` and ``encoder_start_cos``, mean cosines of their
rows with their random start; ``lr``; ``rows_per_second``, ``penalty_share``.
"""

from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from sae_lm.errors import SaeError, SettingsError
from sae_lm.runtime.differences import in_words
from sae_lm.runtime.files import read_json, write_json
from sae_lm.sae.folder import CONFIG, sae_directories
from sae_lm.settings import TrainSettings

if TYPE_CHECKING:
    from sae_lm.data.manifest import Manifest
    from sae_lm.penalties.arms import Arm
    from sae_lm.training.recipe import TrainingRecipe
    from sae_lm.training.registered import Registered

RUN, STATE_FOLDER = "run.json", "state"
MOST_MISS = 0.5
"""Share of a cost in FVU by which an arm that is steered to it may miss it and not be told of. On SmolLM2 held-out costs
were .0018 to .0031 for .0025 (configs/README.md)."""
MOST_OFF = 0.03
"""Cosine by which an arm may miss the coherence it is steered to: about what a factor e in the coefficient moves."""
MOST_SEEDS = 10**5
"""Between the least and the largest; more would be a mistake."""
PER_ARM = "k"
"""The setting that SAEs of one folder may have of their own: arms are compared at equal L0. Were another to differ, a
difference between arms would be its."""


def sae_folder(arm: "Arm | str", seed: int) -> str:
    """Name of an SAE's directory: ``max_cos_0.25-seed0``. arm: or its name."""
    name = arm if isinstance(arm, str) else arm.name
    return f"{name.replace(':', '_')}-seed{seed}"


def log_file(arm: "Arm", seed: int) -> str:
    """Name of an SAE's log: ``max_cos_0.25-seed0.metrics.jsonl``."""
    return f"{sae_folder(arm, seed)}.metrics.jsonl"


def write_run(
    settings: TrainSettings, recipe: "TrainingRecipe", arms: "list[Arm]", registered: "Registered | None" = None
) -> None:
    """Write run.json, with the arms and seeds of earlier commands. Raises as `all_seeds` does."""
    settings.out.mkdir(parents=True, exist_ok=True)
    earlier = _earlier(settings.out)
    seeds = all_seeds(settings)
    write_json(
        settings.out / RUN,
        {
            "settings": settings.model_dump(mode="json"),
            "arms": list(dict.fromkeys([*earlier["arms"], *(arm.name for arm in arms)])),
            "first_seed": seeds.start,
            "seeds": seeds.stop,
            "store": str(settings.store),
            "facts": recipe.record(),
            "registered": registered.record() if registered else None,
            "versions": {name: version(name) for name in ("sae_lm", "torch")},
        },
    )


def _earlier(out: Path) -> dict[str, Any]:
    return read_run(out) if (out / RUN).exists() else {"arms": []}


def all_seeds(settings: TrainSettings) -> range:
    """From the least seed that was ever asked for in this folder to the largest.

    Raises SettingsError where they lie too far apart, SaeError for a run.json that is not understood.
    """
    earlier, asked = _earlier(settings.out), settings.seed_numbers
    first, end = asked.start, asked.stop
    if earlier["arms"]:
        first, end = min(first, earlier.get("first_seed", 0)), max(end, earlier["seeds"])
    if end - first > MOST_SEEDS:
        raise SettingsError(
            f"first_seed is {asked.start} and seeds {settings.seeds}, with which {settings.out} has seeds {first} to "
            f"{end - 1}; expected at most {MOST_SEEDS} from the least to the largest; give fewer --seeds, a nearer "
            "--first-seed or another --out"
        )
    return range(first, end)


def read_run(folder: Path) -> dict[str, Any]:
    """The run.json of a folder of runs: every arm and the number of seeds trained there. Raises SaeError."""
    run = read_json(folder / RUN, SaeError, "a folder of runs (written by sae-lm train)")
    arms, seeds, store = run.get("arms"), run.get("seeds"), run.get("store")
    first = run.get("first_seed", 0)
    counts = isinstance(first, int) and isinstance(seeds, int) and 0 <= first <= seeds <= first + MOST_SEEDS
    if not (isinstance(arms, list) and all(isinstance(a, str) for a in arms) and counts and isinstance(store, str)):
        raise SaeError(
            f"{folder / RUN} is not understood; delete this file and run sae-lm train again, it keeps the SAEs there"
        )
    return run


class SaeRecord(NamedTuple):
    """What an SAE directory's cfg.json says of its training; None for what another program did not write."""

    directory: Path
    arm: str | None
    seed: int | None
    training: dict[str, Any] | None
    """the training recipe, of whatever version"""
    architecture: str
    """as it was trained"""


def read_sae(directory: Path) -> SaeRecord:
    """Raises SaeError for a directory without a readable cfg.json."""
    config = read_json(directory / CONFIG, SaeError, "an SAE directory")
    metadata = config.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    arm, seed, training = (metadata.get(key) for key in ("arm", "seed", "training"))
    return SaeRecord(
        directory,
        arm if isinstance(arm, str) else None,
        seed if isinstance(seed, int) else None,
        training if isinstance(training, dict) else None,
        str(metadata.get("training_architecture", config.get("architecture"))),
    )


def steered_to(lines: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """``steered_to`` of an SAE's metadata, by the last line of its log; empty for an arm that is not steered."""
    keys = ("coefficient", "balance", "cost", "coherence")
    found = {key: lines[-1][key] for key in keys if lines and key in lines[-1]}
    return {"steered_to": found} if found else {}


def missed_target(arm: "Arm", out: Path, seeds: Iterable[int]) -> str | None:
    """A sentence on an arm that was steered to a cost in FVU or a coherence and ended far from it; None for any other."""
    key, target = ("cost", arm.fvu) if arm.fvu is not None else ("coherence", arm.coherence)
    if target is None:
        return None
    of_seeds = [_read_numbers(out / sae_folder(arm, seed), "steered_to") for seed in seeds]
    reached = [of_seed[key] for of_seed in of_seeds if key in of_seed]
    most = MOST_OFF if key == "coherence" else MOST_MISS * target
    if not reached or abs(fmean(reached) - target) <= most:
        return None
    steered = "balance" if arm.steers_balance else "coefficient"
    missed = f"was to cost {target:g} FVU and costs {fmean(reached):.4f}"
    if key == "coherence":
        missed = f"was to have a mean cosine to the nearest of {target:g} and has {fmean(reached):.3f}"
    return f"{arm.name} {missed}: its {steered} does not bring that about in a run of this length"


def read_convergence(directory: Path) -> dict[str, float]:
    """How far an SAE's training came, as its metadata says; empty for an SAE of another program or version."""
    return _read_numbers(directory, "convergence")


def _read_numbers(directory: Path, key: str) -> dict[str, float]:
    """The numbers that an SAE's metadata has under a key."""
    metadata = read_json(directory / CONFIG, SaeError, "an SAE directory").get("metadata")
    return numbers_of(metadata.get(key) if isinstance(metadata, dict) else None)


def numbers_of(recorded: object) -> dict[str, float]:
    """Those entries of an object of JSON that are numbers; empty for what is no object."""
    found = recorded if isinstance(recorded, dict) else {}
    return {key: value for key, value in found.items() if isinstance(value, (int, float)) and -1e300 < value < 1e300}


def read_saes(folder: Path) -> list[SaeRecord]:
    """Every SAE directory of a folder, by name. Raises SaeError for one without a readable cfg.json."""
    return [read_sae(directory) for directory in sae_directories(folder)]


def check_alike(out: Path, recipe: "TrainingRecipe") -> None:
    """Refuse a folder with an SAE of any arm that was trained otherwise. Raises SaeError."""
    for sae in read_saes(out):
        if sae.training is not None:
            _check_recipe(sae, recipe, but=PER_ARM)


def check_beside_others(out: Path, recipe: "TrainingRecipe") -> None:
    """Refuse to train beside another process whose SAEs will be trained otherwise, as run.json says. Raises SaeError."""
    facts = read_json(out / RUN, SaeError, "a folder of runs").get("facts") if (out / RUN).exists() else None
    if isinstance(facts, dict) and (differing := recipe.differences(facts, but=PER_ARM)):
        raise SaeError(
            f"another process is training in {out} otherwise: {in_words(differing)}; "
            "wait for its end, or give another --out"
        )


def is_done(out: Path, arm: "Arm", seed: int, recipe: "TrainingRecipe") -> bool:
    """Whether this SAE is there, whole, and trained by the same recipe. Raises SaeError where it is there otherwise."""
    from sae_lm.sae.formats.saelens import verify_files  # it needs torch, which reading a folder does not

    directory = out / sae_folder(arm, seed)
    if not directory.exists():
        return False
    if problems := verify_files(directory):
        raise SaeError(f"{directory} is damaged ({problems[0]}); delete it and train again")
    # the k of the run is nothing to an arm that names its own
    _check_recipe(read_sae(directory), recipe, but=PER_ARM if arm.k is not None else None)
    return True


def _check_recipe(sae: SaeRecord, recipe: "TrainingRecipe", but: str | None = None) -> None:
    if differing := recipe.differences(sae.training or {}, but=but):
        raise SaeError(f"{sae.directory} was trained otherwise: {in_words(differing)}; give another --out or delete it")


def sae_metadata(
    arm: "Arm", seed: int, recipe: "TrainingRecipe", manifest: "Manifest", registered: "Registered | None" = None
) -> dict[str, Any]:
    """``metadata`` of an SAE's cfg.json, which was trained on the store with this manifest."""
    stored = manifest.recipe
    held = {name: how for name in ("decoder", "encoder") if (how := getattr(arm, name)) is not None}
    return {
        "model_name": stored.model.get("id"),
        "model_revision": stored.model.get("revision"),
        "hook_name": recipe.hook,
        "context_size": stored.context_size,
        "prepend_bos": stored.bos is not None,
        "dataset_path": stored.text.get("id"),
        "training_architecture": arm.arch or recipe.arch,
        "arm": arm.name,
        "penalty": arm.penalty,
        "coefficient": arm.coefficient,
        "seed": seed,
        **({"held": held} if held else {}),
        **({"registered": registered.sha256} if registered else {}),
        "training": recipe.record(),
        "versions": {name: version(name) for name in ("sae_lm", "torch")},
    }
