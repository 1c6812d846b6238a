"""What reading batches costs beside a training step, and the memory it takes over a store larger than it.

    python tests/benchmarks/reading.py [--gigabytes 12] [--rounds 5] [--steps 20]

The store is a stand-in: files of the right size and format whose rows are holes, so 12 GB need no disk.
Reading a hole still copies pages of zeros through the system's cache, at the speed of a file that is in it.
Prints the time of a training step (d 512 -> 8192, k 32, batch 2048) on one batch in memory and on batches
from the store, in turns, the ratio of pairs, the cost of a batch alone, and resident memory while reading.
"""

import argparse
import statistics
import sys
import tempfile
import time
from itertools import chain, count
from pathlib import Path

import torch

from sae_lm.data.batches import WINDOW_BYTES
from sae_lm.data.store import Store
from sae_lm.penalties.arms import Arm
from sae_lm.training.recipe import default_matmul
from sae_lm.training.trainer import ArmTraining

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from made_stores import hollow_store
from recipes import training_recipe

WIDTH, LATENTS, K, BATCH, SHARD_ROWS = 512, 8192, 32, 2048, 65_536
HOOK = "blocks.3.hook_out"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        shards = max(1, int(options.gigabytes * 1e9) // (SHARD_ROWS * WIDTH * 2))
        store = hollow_store(Path(name), HOOK, shards, SHARD_ROWS, WIDTH)
        memory(store)
        beside_a_step(store, options.rounds, options.steps)


def resident() -> float:
    """Resident memory of this process now, in GB."""
    pages = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(pages.split()[1]) / 1e6


def memory(store: Store) -> None:
    size = sum(record.bytes for record in store.manifest.all_files().values()) / 1e9
    before, seen, began = resident(), [], time.perf_counter()
    for batch in store.batches(BATCH, seed=0):
        assert batch.shape == (BATCH, WIDTH)
        seen.append(resident())
    seconds, number = time.perf_counter() - began, len(seen)
    thirds = [max(seen[i * len(seen) // 3 : (i + 1) * len(seen) // 3]) for i in range(3)]
    print(
        f"reading {size:.1f} GB once, {number:,} batches of {BATCH} x {WIDTH} in bfloat16: {seconds / number * 1e3:.2f} ms a batch"
    )
    print(f"resident memory: {before:.2f} GB before, at most {', '.join(f'{t:.2f}' for t in thirds)} GB in each third "
          f"(two windows of {WINDOW_BYTES / 1e9:.2f} GB)", flush=True)  # fmt: skip


def beside_a_step(store: Store, rounds: int, steps: int) -> None:
    recipe = training_recipe(100_000, d_sae=LATENTS, k=K, lr=1e-4, warm_up=0.0, decay=0.1, aux_coefficient=0.0,
                             matmul=default_matmul("cpu"))  # fmt: skip
    arm = ArmTraining(Arm("none", 0.0), 0, recipe, torch.zeros(WIDTH), "cpu")
    noise = torch.randn(BATCH, WIDTH)
    held = torch.randn(BATCH, WIDTH).bfloat16()
    batches = chain.from_iterable(store.batches(BATCH, seed=seed) for seed in count(1))  # again and again
    next(batches)
    times: dict[str, list[float]] = {"in memory": [], "from the store": []}
    for _ in range(rounds + 1):
        for way, found in times.items():
            began = time.perf_counter()
            for step in range(steps):
                batch = held if way == "in memory" else next(batches)
                arm.step(batch.float() + noise, step)  # holes are zeros: noise gives the step something to do
            found.append((time.perf_counter() - began) / steps)
    ratios = [b / a for a, b in zip(times["in memory"][1:], times["from the store"][1:], strict=True)]
    for way, found in times.items():
        print(f"step on a batch {way:15} median {statistics.median(found[1:]) * 1e3:7.1f} ms")
    print(f"ratio of pairs: median {statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}")


if __name__ == "__main__":
    main()
