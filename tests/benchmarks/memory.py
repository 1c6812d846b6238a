"""What is held of codes, of text units and of a store's files, where a loud row, many rows or many shards are met.
What is tokenized by each of many ranks, and run through the model for a few rows without sinks.

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
SHARD_ROWS, SHARD_WIDTH = 65_536, 2048
RANKS, RANKED_TOKENS, FEW = 2, 20_000, 3000
PARTS = ("codes", "codes-loud", "units", "files", "moments", "ranks", "sinks")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--rank-of", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    part = arguments.only
    if arguments.rank_of:
        rank(arguments.rank_of)
    elif part is None:
        for name in PARTS:
            subprocess.run([sys.executable, __file__, "--only", name], check=True)
    elif part == "units":
        units()
    elif part.startswith("codes"):
        codes(loud=part == "codes-loud")
    else:
        with tempfile.TemporaryDirectory() as folder:
            {"files": files, "moments": moments, "ranks": ranks, "sinks": sinks}[part](Path(folder))


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


def moments(folder: Path) -> None:
    """Of three quarters of a shard, which training's rows are: no sums of it are stored."""
    from hand_made import HOOK
    from made_stores import hollow_store

    store = hollow_store(folder / "store", HOOK, 1, SHARD_ROWS, SHARD_WIDTH)
    size, before = SHARD_ROWS * SHARD_WIDTH * 2, resident()
    store.moments(HOOK, SHARD_ROWS * 3 // 4)
    print(f"moments of 3/4 of a shard of {size / 1e6:.0f} MB: grown by {(peak() - before) / size:.2f} times the shard, "
          "mapped pages among it", flush=True)  # fmt: skip


def ranks(folder: Path) -> None:
    """How much text each of some ranks tokenizes for one store."""
    run = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={RANKS}", "--standalone"]
    subprocess.run([*run, __file__, "--rank-of", str(folder / "store")], check=True, stdout=subprocess.DEVNULL)
    said = sorted(path.read_text() for path in folder.glob("rank*"))
    print(f"{RANKS} ranks cache {RANKED_TOKENS:,} tokens; " + "; ".join(said), flush=True)


def rank(out: Path) -> None:
    import transformers

    import sae_lm

    characters, real = [0], transformers.PreTrainedTokenizerBase.__call__

    def counted(self, text, *given, **named):
        characters.append(len(text) if isinstance(text, str) else sum(map(len, text)))
        return real(self, text, *given, **named)

    transformers.PreTrainedTokenizerBase.__call__ = counted
    sae_lm.cache(sae_lm.CacheSettings(hooks="1", tokens=RANKED_TOKENS, shard_tokens=2048, out=out))
    number = os.environ["RANK"]
    (out.parent / f"rank{number}").write_text(f"rank {number} tokenizes {sum(characters):,} characters")


def sinks(folder: Path) -> None:
    """What is run through the model for a few rows, where a shard would hold many more."""
    import sae_lm
    from sae_lm.data.writer import ShardMaker

    positions, real = [0], ShardMaker.activations

    def counted(self, batch, longest):
        positions[-1] += len(batch) * longest
        return real(self, batch, longest)

    ShardMaker.activations = counted
    for name, drop in (("all", None), ("without", 3.0)):
        positions.append(0)
        sae_lm.cache(sae_lm.CacheSettings(hooks="1", tokens=FEW, drop_sinks=drop, out=folder / name))
    print(f"{FEW:,} rows in a shard that may hold more: {positions[1]:,} positions are run; without sinks {positions[2]:,}, "
          "a sample to know sinks by among them", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
