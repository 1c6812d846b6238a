"""Keep what was measured until the report is written, so that a comparison that was killed goes on where it was.

Measuring is the long part: minutes for each large SAE. Every part is a file of its own in the folder ``measured``
beside the report. Its name is a checksum of all that its figures depend on: what was measured, the SAEs, store,
settings, device, and the code itself. So a part of anything else is never taken for it, whoever left it there. The
file's first line is a checksum of the rest, and a damaged part is measured anew. When the report is there, parts go.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sae_lm.comparison.matching import ladder_of
from sae_lm.comparison.runs import Run, Runs, files_of
from sae_lm.data.store import Store
from sae_lm.runtime.files import PART, check_folder, sha256, write_whole
from sae_lm.runtime.forks import share_out
from sae_lm.runtime.locks import held_if_free
from sae_lm.settings import CompareSettings

FOLDER = "measured"
OURS = re.compile(rf"[0-9a-f]{{32}}\.json({re.escape(PART)})?")
"""Names of parts, whole or not. Nothing else in the folder is touched."""
NOT_IN_PARTS = {"out", "runs", "store", "narrower", "controls", "equivalence", "fvu_cost", "device", "parallel"}
"""Settings on which no part depends, or whose content counts instead."""
LIBRARIES = ("torch", "transformers", "transformer-lens", "scipy")


class Part(NamedTuple):
    """What `Kept.part` takes."""

    what: str
    runs: Sequence[Run]
    measure: Callable[[], Any]


class Kept(NamedTuple):
    """Parts that were measured."""

    folder: Path | None
    """None: another process keeps its parts there, and this one none"""
    of: str
    """checksum of what all parts depend on: store, settings, device, code, the baseline's SAEs, and the least width"""
    saes: dict[Path, str]
    """checksums of SAEs, as far as they were asked for"""
    processes: int = 1
    """that measure at once"""

    def about(self, further: Any) -> "Kept":
        """Of parts that depend on this as well, made of what JSON has."""
        return self._replace(of=_checksum(json.dumps([self.of, further])))

    def part(self, what: str, runs: Sequence[Run], measure: Callable[[], Any]) -> Any:
        """What was measured of these SAEs, or else what ``measure`` gives, which is kept.

        It is made of tensors and of what JSON has; tuples come back as lists, keys as text, tensors on the CPU.
        """
        path = self._path(what, runs)
        if path is None:
            return _parsed(_written(measure()))
        text = _read(path)
        if text is None:
            text = _written(measure())
            whole = f"{_checksum(text)}\n{text}\n"
            write_whole(path, lambda temporary: temporary.write_text(whole, encoding="utf-8"))
        return _parsed(text)

    def each(self, parts: Sequence[Part], progress: Callable[[int], None]) -> Iterator[Any]:
        """What `part` gives of one after the other, measured `ahead`. progress: gets how many are there."""
        self.ahead(parts, progress)
        for number, part in enumerate(parts, 1):
            yield self.part(*part)
            progress(number)

    def ahead(self, parts: Sequence[Part], progress: Callable[[int], None]) -> None:
        """Measure those of the parts that are not there in several processes at once, so that `part` finds them.

        What fails there `part` measures again. progress: gets how many of the parts are there.
        """
        lacking = [part for part in parts if (path := self._path(part.what, part.runs)) and _read(path) is None]
        there = len(parts) - len(lacking)
        tasks = [partial(self.part, *part) for part in lacking]
        share_out(tasks, self.processes, lambda done: progress(there + done))

    def _path(self, what: str, runs: Sequence[Run]) -> Path | None:
        """Of the part; None where none are kept."""
        if self.folder is None:
            return None
        of_saes = [self.checksum(run) for run in runs]
        return self.folder / f"{_checksum(json.dumps([self.of, what, of_saes]))[:32]}.json"

    def parts(self) -> list[Path]:
        """All that are there, of these SAEs and settings or not."""
        return [path for path in self.folder.iterdir() if OURS.fullmatch(path.name)] if self.folder else []

    def remove(self) -> None:
        for path in self.parts():
            path.unlink(missing_ok=True)

    def checksum(self, run: Run) -> str:
        """Of an SAE's files; of one of another program, whose settings may stand anywhere, of what is loaded."""
        if run.directory not in self.saes:
            files = [[file.name, sha256(file)] for file in files_of(run.directory)] if run.arm.label is None else []
            self.saes[run.directory] = _checksum(json.dumps(files)) if files else _of_weights(run)
        return self.saes[run.directory]


@contextmanager
def kept_parts(settings: CompareSettings, store: Store, runs: Runs, device: str) -> Iterator[Kept]:
    """Parts of earlier comparisons into the same folder, if any. Two at once do not share them: one keeps none."""
    folder = settings.out / FOLDER
    check_folder(folder)
    # an accelerator is busy with one process, and does not outlive a fork
    alone = torch.device(device).type != "cpu" or settings.device_map is not None
    kept = Kept(folder, "", {}, 1 if alone else settings.parallel)
    ladder = ladder_of(runs.baseline, runs.arms, runs.baseline)
    of = {
        "settings": settings.model_dump(mode="json", exclude=NOT_IN_PARTS),
        "labels": settings.labels and sha256(settings.labels),
        "store": [
            store.manifest.id,
            *(runs.training[key] for key in ("hook", "held_out_from_row", "held_out_from_context")),
        ],
        "device": torch.device(device).type,
        "code": _of_code(),
        # all SAEs are brought to the baseline's number of main latents and their false alarms
        "baseline": [kept.checksum(run) for (arm, _), run in runs.by_key.items() if arm in ladder],
        "first seed": runs.seeds[0],
        "least d_sae": runs.least_d_sae,  # where all are projected on their decoder rows
    }
    try:
        with held_if_free(folder) as held:
            yield kept._replace(of=_checksum(json.dumps(of)), folder=folder if held else None)
    finally:
        with suppress(OSError):
            folder.rmdir()  # where nothing is in it


def _of_code() -> list[Any]:
    root = Path(__file__).parents[1]
    code = [_checksum(path.read_text(encoding="utf-8")) for path in sorted(root.rglob("*.py"))]
    return [_checksum("".join(code)), *(version(name) for name in LIBRARIES)]


def _of_weights(run: Run) -> str:
    sae = run.load("cpu")
    digest = hashlib.sha256(repr(sae.config).encode())
    for name, weight in sae.named_parameters():
        digest.update(name.encode() + weight.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path) -> str | None:
    """The part, if it is there and whole."""
    try:
        expected, _, text = path.read_text(encoding="utf-8").partition("\n")
    except (OSError, UnicodeDecodeError):
        return None
    text = text.removesuffix("\n")
    return text if _checksum(text) == expected else None


def _written(value: Any) -> str:
    return json.dumps(value, default=_packed)


def _parsed(text: str) -> Any:
    return json.loads(text, object_hook=_unpacked)


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _packed(tensor: Any) -> dict[str, Any]:
    return {"dtype": str(tensor.dtype).removeprefix("torch."), "tensor": tensor.tolist()}


def _unpacked(value: dict[str, Any]) -> Any:
    if value.keys() == {"dtype", "tensor"}:
        return torch.tensor(value["tensor"], dtype=getattr(torch, value["dtype"]))
    return value
