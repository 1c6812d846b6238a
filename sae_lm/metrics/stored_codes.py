"""An SAE's codes of a store's rows, encoded once and kept on disk as sparse rows.

A folder holds one file for each so many rows (`PART_ROWS`), numbered from 0, each written whole or not at all::

    codes.json              what the codes are of: SAE, store, hook, rows
    00000.safetensors       count [rows]  how many latents fire on each row
                            latent [n], value [n]  which, and how strongly; row after row, latents rising
                            its metadata has the sha256 of these: a damaged file is encoded again

The folder's name is a checksum of what stands in ``codes.json``, so that codes of another SAE, store or span of rows
are never mistaken for these. A second run reads them; one that was killed goes on where the last whole file ends.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sae_lm.data.store import Store
from sae_lm.metrics.codes import active, firing_codes
from sae_lm.runtime.files import check_folder, write_json, write_whole
from sae_lm.runtime.locks import only_writer
from sae_lm.runtime.progress import Progress
from sae_lm.sae.model import SAE

FORMAT = 1
PART_ROWS = 65_536
"""Rows of one file."""
BATCH_ROWS, BATCH_VALUES = 1024, 2**23
"""Rows encoded at once, at most; fewer where so many rows times latents would be more numbers than this."""


class CodesPart(NamedTuple):
    """The codes of some consecutive rows."""

    first: int
    """row number in the store of the first"""
    indptr: np.ndarray
    """[rows + 1] int64: entries of row i are indptr[i] to indptr[i + 1]"""
    latent: np.ndarray
    """[entries] int32, rising within a row"""
    value: np.ndarray
    """[entries] float32 activations, all above 0"""

    def __len__(self) -> int:
        return len(self.indptr) - 1

    @property
    def entry_row(self) -> np.ndarray:
        """[entries] int32: which of these rows, from 0, each entry is of."""
        return np.repeat(np.arange(len(self), dtype=np.int32), np.diff(self.indptr))

    def matrix(self, d_sae: int, values: np.ndarray | None = None) -> scipy.sparse.csr_array:
        """[rows, d_sae] with the activations, or other values."""
        data = self.value if values is None else values
        return scipy.sparse.csr_array((data, self.latent, self.indptr), shape=(len(self), d_sae))

    def take(self, rows: np.ndarray) -> "CodesPart":
        """The codes of some rows, by their places here, rising; ``first`` means nothing then."""
        counts = np.diff(self.indptr)[rows]
        indptr = np.concatenate([[0], np.cumsum(counts)])
        entries = np.repeat(self.indptr[rows] - indptr[:-1], counts) + np.arange(indptr[-1])
        return CodesPart(0, indptr, self.latent[entries], self.value[entries])


class StoredCodes:
    """An SAE's codes of rows ``start`` to ``stop`` of a store; read part by part."""

    def __init__(self, folder: Path, d_sae: int, start: int, stop: int) -> None:
        self.folder, self.d_sae, self.start, self.stop = folder, d_sae, start, stop
        self.firsts = list(range(start, stop, PART_ROWS))

    def __len__(self) -> int:
        return self.stop - self.start

    def part(self, number: int) -> CodesPart:
        first = self.firsts[number]
        part = _read(self.folder / _file(number), first, min(self.stop, first + PART_ROWS) - first)
        assert part is not None, f"{self.folder} lacks part {number}: it was removed while it was read"
        return part

    def parts(self) -> Iterator[CodesPart]:
        return (self.part(number) for number in range(len(self.firsts)))

    def gather(self, rows: np.ndarray) -> CodesPart:
        """The codes of some rows, by rising row numbers of the store; each file is read once."""
        edges = np.searchsorted(rows, [*self.firsts, self.stop])
        taken = [
            self.part(number).take(rows[low:high] - self.firsts[number])
            for number, (low, high) in enumerate(pairwise(edges))
            if low < high
        ]
        counts = np.concatenate([np.zeros(1, np.int64), *(np.diff(part.indptr) for part in taken)])
        latents = np.concatenate([np.zeros(0, np.int32), *(part.latent for part in taken)])
        values = np.concatenate([np.zeros(0, np.float32), *(part.value for part in taken)])
        return CodesPart(0, np.cumsum(counts), latents, values)


def weights_digest(sae: SAE) -> str:
    """sha256 of what an SAE computes: its configuration, what it says of where it came from aside, and the bytes of its tensors."""
    facts = {field.name: getattr(sae.config, field.name) for field in dataclasses.fields(sae.config)}
    del facts["metadata"], facts["value_biases"]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(sae.named_parameters()):
        digest.update(f"{name} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def store_codes(store: Store, hook: str, sae: SAE, start: int, stop: int, folder: Path) -> StoredCodes:
    """Encode rows start to stop in a folder of their own below ``folder``, as far as they are not there.

    Where another process encodes the same, each waits for the part that the other is at, and reads it.

    Raises SaeLmError for a folder that cannot be written, StoreError for a damaged store.
    """
    facts: dict[str, Any] = {
        "format": FORMAT,
        "sae": weights_digest(sae),
        "store": store.manifest.id,
        "hook": hook,
        "rows": [start, stop],
        "part_rows": PART_ROWS,
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    codes = StoredCodes(folder / key, sae.config.d_sae, start, stop)
    check_folder(codes.folder)
    with only_writer(codes.folder):
        if not (codes.folder / "codes.json").is_file():
            write_json(codes.folder / "codes.json", facts)
    with Progress("encoding", stop - start, "tok") as bar:
        for number, first in enumerate(codes.firsts):
            last = min(stop, first + PART_ROWS)
            path = codes.folder / _file(number)
            if _read(path, first, last - first) is None:
                with only_writer(codes.folder):  # another process may be at the same part: then it is read
                    if _read(path, first, last - first) is None:
                        write_part(path, _encode(store, hook, sae, first, last))
            bar.update(last - first)
    return codes


def write_part(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """count [rows] int32, latent and value [entries], with their checksum; the file appears whole."""
    metadata = {"sha256": _digest(arrays)}
    write_whole(path, lambda temporary: save_file(arrays, temporary, metadata=metadata))


def _file(number: int) -> str:
    return f"{number:05d}.safetensors"


@torch.no_grad()
def _encode(store: Store, hook: str, sae: SAE, first: int, last: int) -> dict[str, np.ndarray]:
    size = max(1, min(BATCH_ROWS, BATCH_VALUES // sae.config.d_sae))
    x = store.rows(hook, first, last)
    parts = []
    for batch in x.split(size):
        value, latent = active(sae, batch.to(sae.W_enc))
        latent, order = latent.sort(1)
        parts.append(firing_codes(value.gather(1, order), latent, sae.config.d_sae))
    kind = np.uint16 if sae.config.d_sae <= 2**16 else np.int32
    return {
        "count": torch.cat([part.starts.diff() for part in parts]).numpy().astype(np.int32),
        "latent": torch.cat([part.latent for part in parts]).numpy().astype(kind),
        "value": torch.cat([part.strength for part in parts]).numpy(),
    }


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    """sha256 of the arrays' names, kinds, shapes and numbers."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _read(path: Path, first: int, rows: int) -> CodesPart | None:
    """One file; None where it is not there or not whole."""
    try:
        with safe_open(path, "np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            recorded = (file.metadata() or {}).get("sha256")
    except (OSError, SafetensorError, ValueError):  # ValueError: of a name or a kind of number that numpy has not
        return None
    if set(arrays) != {"count", "latent", "value"} or recorded != _digest(arrays) or len(arrays["count"]) != rows:
        return None
    indptr = np.concatenate([[0], np.cumsum(arrays["count"], dtype=np.int64)])
    if not indptr[-1] == len(arrays["latent"]) == len(arrays["value"]):
        return None
    return CodesPart(first, indptr, arrays["latent"].astype(np.int32), arrays["value"])
