"""What is held of codes, of text units and of a store's files, where a loud row, many rows or many shards are met.

    python tests/benchmarks/memory.py

Each part is a process of its own; "grown by" is how far its peak of resident memory rose above what stood before.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from itertools import count
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

ROWS, LATENTS, D_IN = 20_000, 4096, 64
LOUD = 60.0
"""Times the norm of the others."""
TEXT_ROWS, DOCUMENT, CONTEXT = 5_000_000, 700, 128
SHARDS, LOOKED = 2000, 97
"""Shards of the store; reads between two looks at what is mapped and open."""
PARTS = ("codes", "codes-loud", "units", "files")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=PARTS)
    arguments = parser.parse_args()
    if arguments.only is None:
        for part in PARTS:
            subprocess.run([sys.executable, __file__, "--only", part], check=True)
    elif arguments.only == "units":
        units()
    elif arguments.only == "files":
        with tempfile.TemporaryDirectory() as folder:
            files(Path(folder))
    else:
        codes(loud=arguments.only == "codes-loud")


def resident() -> int:
    """Bytes of this process now; its peak is counted from here on."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> int:
    """Bytes of this process at most."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def codes(loud: bool) -> None:
    """Encode rows, then score a concept and find every latent's child."""
    from sae_lm.metrics.absorption import ConceptAtSae, absorption
    from sae_lm.metrics.absorption_events import children
    from sae_lm.metrics.codes import encode_sparse
    from sae_lm.sae.model import SAE, SaeConfig

    draw = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(LATENTS, D_IN, generator=draw), dim=1)
    weights = {"W_enc": directions.T.contiguous(), "b_enc": torch.full((LATENTS,), -2.7), "W_dec": directions}
    sae = SAE(SaeConfig(architecture="standard", d_in=D_IN, d_sae=LATENTS), weights | {"b_dec": torch.zeros(D_IN)})
    x = torch.nn.functional.normalize(torch.randn(ROWS, D_IN, generator=draw), dim=1) * D_IN**0.5
    x[ROWS // 2] *= LOUD if loud else 1.0
    before = resident()
    made = encode_sparse(sae, x.split(1024))
    encoded, began = peak(), resident()
    absorption(ConceptAtSae(made, x, torch.arange(ROWS) % 999, directions, directions[0]), [0, 1])
    children(made, torch.arange(ROWS) % 999)
    held = sum(part.numel() * part.element_size() for part in (made.strength, made.latent, made.starts))
    fullest = int(made.starts.diff().max())
    print(
        f"codes of {ROWS:,} rows{f', one {LOUD:g} times as loud' if loud else ''}: L0 {len(made.strength) / ROWS:.1f}, fullest row "
        f"{fullest:,}; {held / 1e6:.1f} MB held (filled up to the fullest row: {12 * ROWS * fullest / 1e6:,.0f} MB); grown by "
        f"{(encoded - before) / 1e6:.0f} MB in encoding, {(peak() - began) / 1e6:.0f} MB in scoring",
        flush=True,
    )


def units() -> None:
    from sae_lm.concepts.text_units import text_units

    document, context = (torch.arange(TEXT_ROWS, dtype=torch.int32) // size for size in (DOCUMENT, CONTEXT))
    before = resident()
    found = text_units(document, context)
    print(
        f"{found.kind} of {TEXT_ROWS:,} rows: {found.of_row.element_size() + 1} bytes a row held, grown by "
        f"{(peak() - before) / TEXT_ROWS:.1f} bytes a row",
        flush=True,
    )


def files(folder: Path) -> None:
    """A store of many shards, made by hand; read whole, in batches and by row numbers."""
    from hand_made import HOOK, write_store

    import sae_lm.data.store as module

    store = write_store(folder / "store", [[0, 1, 2, 3]] * SHARDS, per_shard=1)
    mapped, opened, calls, real = [0], [0], count(), module.read_tensor

    def looked(*given):
        tensor = real(*given)
        if next(calls) % LOOKED:
            return tensor
        with open("/proc/self/maps") as maps:
            mapped.append(sum(str(folder) in line for line in maps))
        opened.append(len(os.listdir("/proc/self/fd")))
        return tensor

    before = len(os.listdir("/proc/self/fd"))
    module.read_tensor = looked
    store.rows(HOOK), store.tokens(), store.blocks(), store.moments(HOOK, len(store) - 1)
    store.gather(HOOK, torch.arange(0, len(store), 7))
    for _ in store.batches(100, hook=HOOK):
        pass
    print(
        f"a store of {len(store.manifest.shards):,} shards: {max(mapped)} mapped at a time, "
        f"{max(opened) - before} files open at a time",
        flush=True,
    )


if __name__ == "__main__":
    main()
