"""The files of one SAE, what its name and its user say about it, and what was decided when it was read."""

import json
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from sae_lm.errors import SaeError
from sae_lm.runtime.files import read_json, sha256
from sae_lm.sae.hook_names import bridge_hook
from sae_lm.sae.model import SAE, SaeConfig
from sae_lm.sae.tensors import read_tensors

LARGEST = 2**40
"""No number in a configuration may be larger: it would be a mistake, and memory is asked for by such numbers."""
LARGEST_FACTOR = 1e30
"""No threshold, norm or factor is as large: float32 would not hold what is made of it."""


@dataclass(kw_only=True)
class Source:
    """One SAE to be read. A format's reader takes one, notes what it decides, and returns the SAE."""

    name: str
    """as the user has named it; errors begin with it"""
    identity: str
    """what a reader may infer from: OWNER/REPOSITORY/FOLDER, or the absolute path, with slashes"""
    files: Mapping[str, Path]
    """name of each file, from the SAE's folder on -> where it lies on this disk"""
    repository: str | None = None
    revision: str | None = None
    """the commit of the repository"""
    hook: str | None = None
    k: int | None = None
    input_scale: float | None = None
    """these three as the user gives them, or None"""
    scale_used: bool = False
    """whether input_scale was of use"""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """what a directory of releases says of it beside its own files"""
    variant: str = ""
    """the class that the user names behind the format: ``dictionary_learning/BatchTopKSAE``"""
    notes: list[str] = field(default_factory=list)
    checksums: dict[str, str] = field(default_factory=dict)
    """sha256 of files for which it is known already"""

    def note(self, sentence: str) -> None:
        self.notes.append(sentence)

    def error(self, what: str) -> SaeError:
        return SaeError(f"{self.name}: {what}")

    def json(self, file: str) -> dict[str, Any]:
        """Raises SaeError where it is missing or no object."""
        return read_json(self._path(file), SaeError, "an SAE of the format asked for")

    def tensors(self, file: str) -> Mapping[str, Any]:
        return read_tensors(self._path(file))

    def _path(self, file: str) -> Path:
        if file not in self.files:
            raise self.error(f"has no {file}; the format is another one, or the file was not downloaded")
        return self.files[file]

    @property
    def only_file(self) -> str:
        """The name of the one torch file that is the SAE."""
        names = [name for name in self.files if name.endswith((".pt", ".pth", ".bin"))]
        if len(names) != 1:
            raise self.error(f"this format is one torch file (.pt, .pth), got {', '.join(self.files) or 'none'}")
        return names[0]

    def needs(self, tensors: Mapping[str, Any], names: list[str], optional: tuple[str, ...] = ()) -> None:
        """Raises SaeError where the tensors are not these."""
        missing = [name for name in names if name not in tensors]
        extra = [name for name in tensors if name not in names and name not in optional]
        if missing or extra:
            lacks = f"lacks {', '.join(missing)}" if missing else ""
            holds = f"holds {', '.join(map(str, extra[:8]))} as well" if extra else ""
            raise self.error(
                f"{' and '.join(filter(None, (lacks, holds)))}, expected {', '.join(names)}; give the format it has"
            )

    def whole(self, config: Mapping[str, Any], key: str, file: str) -> int:
        """A whole number from 1 on in a configuration. Raises SaeError."""
        value = config.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST:
            raise self.error(f"{key} is {shown(value)} in {file}, expected a whole number from 1 on")
        return value

    def active_latents(self, recorded: object, where: str) -> int:
        """k: as given, or as recorded. Raises SaeError where neither is there, or it is no whole number."""
        recorded = plain(recorded)
        if self.k is not None:
            self.note(f"k is {self.k} as given" + (f", {where} says {shown(recorded)}" if recorded is not None else ""))
            return self.k
        if recorded is None:
            raise self.error(f"{where} does not say how many latents fire per token; give k=")
        if isinstance(recorded, bool) or not isinstance(recorded, int) or not 1 <= recorded <= LARGEST:
            raise self.error(f"k is {shown(recorded)} in {where}, expected a whole number from 1 on")
        return recorded

    def place(self, recorded: str | None, where: str, model: str = "") -> tuple[str, str]:
        """(bridge's name of the hook, the name it was found under): as given, or as recorded. Raises SaeError."""
        if self.hook is not None:
            hook = bridge_hook(self.hook, model)
            if hook is None:
                raise self.error(
                    f"hook {self.hook!r} is not known; give one as blocks.8.hook_out, or the layer's number"
                )
            self.note(f"hook {hook} as given")
            return hook, recorded or self.hook
        if recorded is None:
            raise self.error(
                f"{where} does not say which activation the SAE is for; give hook='blocks.8.hook_out' or another"
            )
        hook = bridge_hook(recorded, model)
        if hook is None:
            raise self.error(
                f"{where} says {recorded!r}, which is no place known here; give hook='blocks.8.hook_out' or another"
            )
        self.note(f"hook {hook} from {where}" + (f", which says {recorded}" if recorded != hook else ""))
        return hook, recorded

    def numbers(self, tensors: Mapping[str, Any], names: list[str]) -> dict[str, Tensor]:
        """These tensors in float32. Raises SaeError for what is no tensor of fractions."""
        dtypes = set()
        for name in names:
            value = tensors.get(name)
            if not isinstance(value, Tensor) or not value.is_floating_point():
                kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
                raise self.error(f"{name} is {kind}, expected a tensor of floating-point numbers; the file is damaged")
            dtypes.add(value.dtype)
        if stored := sorted({str(dtype).removeprefix("torch.") for dtype in dtypes} - {"float32"}):
            self.note(f"stored as {', '.join(stored)}, used as float32")
        return {name: tensors[name].detach().float() for name in names}

    def matrix(self, tensor: Tensor, name: str) -> tuple[int, int]:
        """Its two sizes. Raises SaeError where it is no matrix."""
        if tensor.ndim != 2 or not tensor.numel():
            raise self.error(f"{name} has shape {tuple(tensor.shape)}, expected a matrix; the file is damaged")
        return tensor.shape[0], tensor.shape[1]

    def fits(self, weights: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raises SaeError for a tensor of another shape: before weights are folded, as shapes may then broadcast."""
        for name, shape in shapes.items():
            if name in weights and tuple(weights[name].shape) != shape:
                raise self.error(
                    f"{name} has shape {tuple(weights[name].shape)}, expected {shape}; the file is damaged"
                )

    def finish(self, format: str, config: SaeConfig, weights: Mapping[str, Tensor]) -> SAE:
        """The SAE, with its notes, files and checksums as provenance. Raises SaeError for wrong shapes and NaN.

        NaN and infinities in the metadata, which Python's json reads and writes and JSON has not, are None.
        """
        unknown: list[str] = []  # to which what is appended is None
        metadata = json.loads(json.dumps(dict(config.metadata)), parse_constant=unknown.append)
        if unknown:
            self.note(f"{', '.join(dict.fromkeys(unknown))} in the metadata is null here: JSON has no such number")
        place = f" of {self.repository} at {self.revision}" if self.repository else ""
        sums = {file: self.checksums.get(file) or sha256(path) for file, path in self.files.items()}
        notes = [
            f"read as {format}{f' ({self.variant})' if self.variant else ''}",
            *dict.fromkeys(self.notes),
            *(f"{file}{place}: sha256 {digest}" for file, digest in sums.items()),
        ]
        try:
            return SAE(
                replace(config, metadata=metadata), {name: value.contiguous() for name, value in weights.items()}, notes
            )
        except SaeError as problem:
            raise self.error(f"{problem}; train or download it again") from None


def folded_bias(W_enc: Tensor, b_enc: Tensor, b_dec: Tensor) -> Tensor:
    """b_enc for an encoder that does not subtract b_dec, of one that does: (x - b_dec) W + b = x W + (b - b_dec W)."""
    return b_enc - (b_dec.double() @ W_enc.double()).to(b_enc.dtype)


def truth(config: Mapping[str, Any], key: str, default: bool | None, path: Path) -> bool | None:
    """true or false of a configuration, the default for null too. Raises SaeError for all else: "false" would be true."""
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise SaeError(f"{path}: {key} is {shown(value)}, expected true or false; correct it there")
    return default if value is None else value


def plain(recorded: object) -> object:
    """The number that a tensor of one number holds; anything else as it is."""
    return recorded.item() if isinstance(recorded, Tensor) and recorded.numel() == 1 else recorded


def as_number(recorded: object) -> float | None:
    """What is recorded as a number, be it in a tensor of one; None where it is none, not finite, or larger than any may be."""
    value = plain(recorded)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < LARGEST_FACTOR:
        return None
    return float(value)


def shown(recorded: object) -> str:
    """What is recorded, as an error says it: on one line, and never at length."""
    value = plain(recorded)
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return " ".join(reprlib.repr(value).split())
