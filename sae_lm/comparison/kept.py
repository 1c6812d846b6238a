"""Keep what was measured until the report is written, so that a comparison that was killed goes on where it was.

Measuring is the long part: minutes for each large SAE. Every part is a file of its own in the folder ``measured``
beside the report. Its name is a checksum of all that its figures depend on: what was measured, the SAEs' files, store,
settings and versions. So a part of anything else is never taken for it, whoever left it there. The file's first line is a
checksum of the rest, and a damaged part is measured anew. When the report is there, the folder goes.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sae_lm.comparison.matching import ladder_of
from sae_lm.comparison.runs import Runs, files_of
from sae_lm.data.store import Store
from sae_lm.runtime.files import sha256, write_whole
from sae_lm.settings import CompareSettings
from sae_lm.training.run_folder import versions

FOLDER = "measured"
WORDED_LATER = {"out", "runs", "store", "narrower", "controls", "equivalence", "fvu_cost"}
"""Settings on which no part depends, or whose content counts instead."""


class Kept(NamedTuple):
    """Parts that were measured."""

    folder: Path
    of: str
    """checksum of store, settings, versions and the baseline's SAEs: what all parts depend on"""
    saes: dict[Path, str]
    """checksums of SAEs' files, as far as they were asked for"""

    def part(self, what: str, saes: Sequence[Path], measure: Callable[[], Any]) -> Any:
        """What was measured of these SAEs, or else what ``measure`` gives, which is kept.

        It is made of tensors and of what JSON has; tuples come back as lists, keys as text, tensors on the CPU.
        """
        of_saes = [self.checksum(sae) for sae in saes]
        path = self.folder / f"{_checksum(json.dumps([self.of, what, of_saes]))[:32]}.json"
        known, value = _read(path)
        if known:
            return value
        text = json.dumps(measure(), default=_packed)
        write_whole(path, lambda temporary: temporary.write_text(f"{_checksum(text)}\n{text}\n", encoding="utf-8"))
        return json.loads(text, object_hook=_unpacked)

    def parts(self) -> int:
        """How many there are, of these SAEs and settings or not."""
        return len(list(self.folder.glob("*.json"))) if self.folder.is_dir() else 0

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def checksum(self, sae: Path) -> str:
        if sae not in self.saes:
            self.saes[sae] = _checksum(json.dumps([[file.name, sha256(file)] for file in files_of(sae)]))
        return self.saes[sae]


def kept_parts(settings: CompareSettings, store: Store, runs: Runs) -> Kept:
    """Those of earlier comparisons into the same folder, if any."""
    kept = Kept(settings.out / FOLDER, "", {})
    ladder = ladder_of(runs.baseline, runs.arms, runs.baseline)
    of = {
        "settings": settings.model_dump(mode="json", exclude=WORDED_LATER),
        "labels": settings.labels and sha256(settings.labels),
        "store": store.manifest.id,
        "versions": versions(),
        # all SAEs are brought to the baseline's number of main latents and their false alarms
        "baseline": [kept.checksum(run.directory) for (arm, _), run in runs.by_key.items() if arm in ladder],
        "first seed": runs.seeds[0],
    }
    return kept._replace(of=_checksum(json.dumps(of)))


def _read(path: Path) -> tuple[bool, Any]:
    """Whether the part is there and whole, and it."""
    try:
        expected, _, text = path.read_text(encoding="utf-8").partition("\n")
    except (OSError, UnicodeDecodeError):
        return False, None
    text = text.removesuffix("\n")
    if _checksum(text) != expected:
        return False, None
    return True, json.loads(text, object_hook=_unpacked)


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _packed(tensor: Any) -> dict[str, Any]:
    return {"dtype": str(tensor.dtype).removeprefix("torch."), "tensor": tensor.tolist()}


def _unpacked(value: dict[str, Any]) -> Any:
    if value.keys() == {"dtype", "tensor"}:
        return torch.tensor(value["tensor"], dtype=getattr(torch, value["dtype"]))
    return value
