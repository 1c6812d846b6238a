"""A file that fixes an experiment before its first SAE is trained: settings, and claims that the comparison answers.

It is a TOML file as ``--config`` takes it, with one ``[[claim]]`` or more beside ``[train]`` and ``[compare]``::

    [[claim]]
    sentence = "At equal L0, silent:1 has fewer holes at equal false alarms than no penalty."
    metric = "equal_hole_rate"
    arm = "silent:1"
    expect = "lower"

    [[claim]]
    sentence = "At +.005 FVU it has fewer than matryoshka."
    metric = "equal_hole_rate"
    arm = "silent:1"
    against = "none@arch=matryoshka"
    fvu = 0.005
    expect = "lower"

Every ``train`` into the folder is held to its settings. The file's text goes into ``run.json``, its SHA-256 into
each SAE's metadata, so that neither can be changed afterwards without being seen. Of labels that ``[compare]`` names
the SHA-256 goes into ``run.json`` too: their content is held, wherever they lie, against a mistake. No SAE has it.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sae_lm.errors import SaeError, SettingsError
from sae_lm.fields import choice
from sae_lm.penalties.arms import parse_arm, parse_arms
from sae_lm.runtime.differences import differences, in_words
from sae_lm.runtime.files import read_json, sha256
from sae_lm.runtime.toml import parse_toml
from sae_lm.sae.folder import CONFIG, sae_directories
from sae_lm.settings import CompareSettings, TrainSettings
from sae_lm.training.recipe import WHERE_IT_RUNS, with_defaults

WHERE_IT_COMPARES = frozenset(
    ("runs", "out", "store", "model", "device", "device_map", "parallel", "narrower", "composition", "controls")
)
"""The same of compare: places, and what is measured besides."""


class Claim(BaseModel):
    """One sentence that the comparison is to decide."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    sentence: str = Field(min_length=1)
    metric: str
    """key of an outcome in report.json"""
    arm: str
    expect: Literal["lower", "higher", "equivalent"]
    against: str | None = None
    """another arm, read at the same cost as this one; None: the baseline, at equal L0"""
    fvu: float | None = Field(default=None, gt=0, lt=1)
    """cost above the baseline's, at which both curves are read"""

    @model_validator(mode="after")
    def _both_or_none(self) -> "Claim":
        if (self.against is None) != (self.fvu is None):
            raise ValueError("expected `against` and `fvu` together, or neither (the baseline, at equal L0)")
        for name in (self.arm, self.against):
            if name is not None:
                parse_arm(name)
        return self


class Registered(NamedTuple):
    file: str
    """name of the file"""
    text: str
    labels: str | None = None
    """SHA-256 of the file of labels that [compare] names, as it was then; None where it names none or was not asked"""

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def sections(self) -> dict[str, Any]:
        return parse_toml(self.text, f"registered {self.file}")

    @property
    def training(self) -> TrainSettings:
        """How it is to be trained; places are free. Raises SettingsError."""
        return TrainSettings.model_validate({**self.sections.get("train", {}), "store": "store", "out": "out"})

    @property
    def comparison(self) -> CompareSettings:
        """How it is to be compared; places are free. Raises SettingsError."""
        return CompareSettings.model_validate({**self.sections.get("compare", {}), "runs": "runs", "out": "out"})

    @property
    def claims(self) -> list[Claim]:
        """Raises SettingsError for one that cannot be decided."""
        entries = self.sections.get("claim")
        if not isinstance(entries, list) or not entries:
            raise SettingsError(f"registered {self.file} claims nothing; expected a [[claim]] or more")
        return [self._claim(number, entry) for number, entry in enumerate(entries, 1)]

    def _claim(self, number: int, entry: Any) -> Claim:
        try:
            return Claim.model_validate(entry)
        except ValidationError as invalid:
            error = invalid.errors()[0]
            key = ".".join(map(str, error["loc"])) or "claim"
            said = error["msg"].removeprefix("Value error, ")
            if error["type"] == "extra_forbidden":
                said = f"unknown key, expected {choice(key, Claim.model_fields)}"
        except SettingsError as problem:
            key, said = "arm", str(problem)
        raise SettingsError(f"registered {self.file}: claim {number}: {key}: {said}") from None

    def record(self) -> dict[str, str | None]:
        """As run.json has it under ``registered``."""
        return {"file": self.file, "sha256": self.sha256, "text": self.text, "labels": self.labels}


def registration(settings: TrainSettings) -> Registered | None:
    """What this folder of runs is held to: the file of these settings, else what an earlier command registered.

    Raises SettingsError where the settings are not the file's, where the file is not what was registered, and where
    SAEs were there before it. None where nothing is registered.
    """
    earlier = read_registered(settings.out)
    wanted = earlier if settings.registered is None else _register(settings.registered, settings.out, earlier)
    if wanted is None:
        return None
    _check_claims(wanted, settings)
    asked = TrainSettings.model_validate(
        {
            **_not_yet_known(settings.out),
            **wanted.sections.get("train", {}),
            "store": settings.store,
            "out": settings.out,
        }
    )
    held = TrainSettings.model_fields.keys() - WHERE_IT_RUNS - {"registered"}
    if asked.matmul == "auto":
        held -= {"matmul"}  # the first SAE settles it
    mine, theirs = (made.model_dump(mode="json", include=set(held)) for made in (settings, asked))
    if differing := differences(theirs, mine):
        raise SettingsError(
            f"registered {wanted.file} fixes the settings: {in_words(differing)}; "
            "leave them as registered, or give another --out"
        )
    return wanted


def _not_yet_known(out: Path) -> dict[str, Any]:
    """Settings that the version which began this folder did not have, as it trained: what a file leaves open is these."""
    if not (out / "run.json").exists():
        return {}
    facts = read_json(out / "run.json", SaeError, "a folder of runs (written by sae-lm train)").get("facts")
    if not isinstance(facts, dict):
        return {}
    return {name: value for name, value in with_defaults(facts).items() if name not in facts}


def read_registered(out: Path) -> Registered | None:
    """What run.json says is registered; None where nothing is. Raises SaeError where its parts do not agree."""
    if not (out / "run.json").exists():
        return None
    entry = read_json(out / "run.json", SaeError, "a folder of runs (written by sae-lm train)").get("registered")
    if entry is None:
        return None
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("file", "sha256", "text")):
        raise SaeError(f"{out / 'run.json'}: what is registered is not understood; expected file, sha256 and text")
    labels = entry.get("labels")
    registered = Registered(entry["file"], entry["text"], labels if isinstance(labels, str) else None)
    if registered.sha256 != entry["sha256"]:
        raise SaeError(
            f"{out / 'run.json'}: the registered text was changed, its SHA-256 is {registered.sha256[:12]}, "
            f"expected {entry['sha256'][:12]}; restore it from {registered.file}"
        )
    return registered


def not_registered(out: Path, registered: Registered) -> list[str]:
    """Names of SAEs there that were trained under no registered file, or under another."""
    return [
        directory.name
        for directory in sae_directories(out)
        if _metadata(directory).get("registered") != registered.sha256
    ]


def _metadata(directory: Path) -> dict[str, Any]:
    metadata = read_json(directory / CONFIG, SaeError, "an SAE directory").get("metadata")
    return metadata if isinstance(metadata, dict) else {}


def _read(path: Path) -> Registered:
    try:
        registered = Registered(path.name, path.read_bytes().decode("utf-8"))  # line ends too, as sha256sum reads it
    except (OSError, UnicodeDecodeError) as problem:
        why = problem.strerror if isinstance(problem, OSError) else "not UTF-8"
        raise SettingsError(f"--registered {path}: cannot be read ({why}); give a TOML file with claims") from None
    for section in ("train", "compare"):
        if not isinstance(registered.sections.get(section, {}), dict):
            raise SettingsError(f"registered {path.name}: {section} is a value, expected a section [{section}]")
    _ = registered.comparison  # before anything is trained under it
    return registered


def _register(path: Path, out: Path, earlier: Registered | None) -> Registered:
    """A file and its labels as they are now; once an SAE is begun what was registered before, and no other."""
    wanted = _read(path)
    trained = [directory.name for directory in sae_directories(out)] if out.is_dir() else []
    begun = sorted(file.name.removesuffix(".metrics.jsonl") for file in out.glob("*.metrics.jsonl"))
    if not (first := next(iter([*trained, *begun]), None)):
        return wanted._replace(labels=_checksum_of_labels(wanted))
    if earlier is not None and earlier.text == wanted.text:
        return earlier
    if earlier is None:
        raise SettingsError(
            f"registered {wanted.file} comes after {first} was begun in {out}; it has to be there before the first SAE, "
            "give another --out"
        )
    raise SettingsError(
        f"registered {wanted.file} was changed since {first} was begun in {out} (SHA-256 {wanted.sha256[:12]}, "
        f"registered {earlier.sha256[:12]}); restore the file, or give another --out"
    )


def _checksum_of_labels(registered: Registered) -> str | None:
    labels = registered.comparison.labels
    try:
        return None if labels is None else sha256(labels)
    except OSError as problem:
        raise SettingsError(
            f"registered {registered.file}: labels {labels} cannot be read ({problem.strerror}); expected the CSV file "
            "that the comparison is to use"
        ) from None


def _check_claims(registered: Registered, settings: TrainSettings) -> None:
    arms = {arm.name for arm in parse_arms(settings.arms)}
    for number, claim in enumerate(registered.claims, 1):
        for name in (claim.arm, claim.against):
            if name is not None and parse_arm(name).name not in arms:
                raise SettingsError(
                    f"registered {registered.file}: claim {number}: {json.dumps(name)} is none of the arms to be trained; "
                    f"expected {choice(name, dict.fromkeys(sorted(arms)))}"
                )
