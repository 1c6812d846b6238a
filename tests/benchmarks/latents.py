"""What the pass over a store costs that `sae-lm show` makes, step by step, and its peak memory.

    python tests/benchmarks/latents.py [--rows 1000000] [--latents 8192] [--k 32] [--width 256]

The store is made for the purpose: random rows around random directions, of random tokens, in bfloat16. The SAE has these
directions, so that latents fire unevenly and alike for like tokens. Prints seconds for encoding, for one pass over the codes, and
for each further part of the page.
"""

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from sae_lm.data.manifest import FileRecord, ShardRecord, shard_file
from sae_lm.data.store import Store
from sae_lm.metrics.cofiring import cofiring
from sae_lm.metrics.concept_owners import concept_bars, concept_directions
from sae_lm.metrics.latent_labels import best_rules, near_misses, read_rules
from sae_lm.metrics.latent_statistics import latent_statistics
from sae_lm.metrics.stored_codes import store_codes
from sae_lm.runtime.files import write_json
from sae_lm.sae.model import SAE, SaeConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from made_stores import commit_store, made_recipe

HOOK, CONTEXT, SHARD_CONTEXTS, VOCABULARY = "blocks.2.hook_out", 128, 512, 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--latents", type=int, default=8192)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--width", type=int, default=256)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, generator = Path(name), torch.Generator().manual_seed(0)
        directions = torch.nn.functional.normalize(
            torch.randn(options.latents, options.width, generator=generator), dim=1
        )
        store = make_store(folder / "store", options.rows, directions, generator)
        measure(store, make_sae(directions, options.k), folder)


def make_sae(directions: torch.Tensor, k: int) -> SAE:
    d_sae, d_in = directions.shape
    weights = {
        "W_dec": directions,
        "W_enc": directions.T.contiguous(),
        "b_enc": torch.zeros(d_sae),
        "b_dec": torch.zeros(d_in),
    }
    return SAE(SaeConfig(architecture="topk", d_in=d_in, d_sae=d_sae, k=k), weights)


def make_store(folder: Path, rows: int, directions: torch.Tensor, generator: torch.Generator) -> Store:
    """A row is its token's direction, two more drawn with unequal chances, and noise."""
    d_sae, width = directions.shape
    shards, first = [], 0
    while first * CONTEXT < rows:
        n = SHARD_CONTEXTS * CONTEXT
        token = (torch.rand(n, generator=generator) ** 3 * VOCABULARY).int()
        more = (torch.rand(n, 2, generator=generator) ** 2 * d_sae).long()
        x = directions[token.long() % d_sae] * 4 + directions[more].sum(1) * 2
        x += torch.randn(n, width, generator=generator) * 0.05
        context = torch.arange(SHARD_CONTEXTS, dtype=torch.int32).repeat_interleave(CONTEXT) + first
        columns = {
            "token_id": token,
            "document": context // 8,
            "context": context,
            "blocks": token.clone().view(-1, CONTEXT),
        }
        columns["position"] = torch.arange(CONTEXT, dtype=torch.int32).repeat(SHARD_CONTEXTS)
        files = {}
        for kind, tensors in (("tokens", columns), (HOOK, {"rows": x.bfloat16()})):
            path = folder / shard_file(kind, len(shards))
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, path)
            files[shard_file(kind, len(shards))] = FileRecord(bytes=path.stat().st_size, sha256="")
        shards.append(ShardRecord(rows=n, contexts=SHARD_CONTEXTS, special_tokens=0, padding=0, sinks=0, last_document=0,
                                  next=(0, 0), files=files))  # fmt: skip
        first += SHARD_CONTEXTS
    write_json(folder / "vocabulary.json", [f" word{token}" for token in range(VOCABULARY)])
    recipe = made_recipe({HOOK: width}, CONTEXT, first * CONTEXT, SHARD_CONTEXTS, "bfloat16")
    return commit_store(folder, recipe, shards, 1)


def measure(store: Store, sae: SAE, folder: Path) -> None:
    tokens, d_sae = store.tokens(), sae.config.d_sae
    began, cpu_began = time.perf_counter(), time.process_time()
    token, context = tokens["token_id"].numpy(), tokens["context"].numpy()

    def timed(name: str, call: Callable[[], Any]) -> Any:
        start, cpu = time.perf_counter(), time.process_time()
        made = call()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"{name:34} {time.perf_counter() - start:7.1f} s, {time.process_time() - cpu:7.1f} s of processor, peak {peak:.2f} GB",
            flush=True,
        )
        return made

    codes = timed("encoding", lambda: store_codes(store, HOOK, sae, 0, len(store), folder / "codes"))
    rules = timed("labels of tokens and places", lambda: read_rules(store, 0))
    made = timed("one pass over the codes", lambda: latent_statistics(
        codes, d_sae, 0, token, context, VOCABULARY, rules.places, 10))  # fmt: skip
    labels = timed("best rules", lambda: best_rules(made, rules))
    timed("near misses", lambda: near_misses(codes, made, labels, rules, token, sae.W_dec, range(d_sae), 5))
    timed("co-firing", lambda: cofiring(codes, 6))
    has = np.concatenate([rules.table[token], rules.places], 1)
    read = np.flatnonzero(has.sum(0) >= 100)
    x = store.rows(HOOK, 0, min(len(store), 32_768)).float()
    lines = timed("lines of concepts", lambda: concept_directions(x, torch.from_numpy(has[: len(x), read])))
    timed(f"bars of {len(read)} concepts", lambda: concept_bars(codes, sae.W_dec, lines, has[:, read], token))
    total, cpu, size = (
        time.perf_counter() - began,
        time.process_time() - cpu_began,
        sum(file.stat().st_size for file in codes.folder.iterdir()) / 1e6,
    )
    print(
        f"together {total:.0f} s, {cpu:.0f} s of processor, for {len(store):,} rows, {d_sae:,} latents; codes {size:,.0f} MB",
        file=sys.stdout,
    )


if __name__ == "__main__":
    main()
