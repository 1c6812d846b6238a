"""MCC, F1 and uniqueness of arms on SynthSAEBench-16k, SAELens' synthetic benchmark; needs sae-lens.

    PYTHONPATH=. python tests/benchmarks/synthetic_benchmark.py rows OUT --rows 600000
    PYTHONPATH=. python tests/benchmarks/synthetic_benchmark.py train OUT --arms none@arch=batchtopk,max_cos:0.25
    PYTHONPATH=. python tests/benchmarks/synthetic_benchmark.py judge OUT

``rows`` builds the world by its published configuration and seed, since the hub's copy may be out of reach, and writes
its rows as a store. ``train`` is `sae-lm train` on that store; what is finished or half done is kept, as ever. ``judge``
scores every SAE by SAELens' own functions on rows that SAELens' own sampler drew, and prints a table. Published are
4096 latents, batches of 1024 and 200 million rows; a smaller --features, --d-in and --roots is another world.

Beside SAELens' figures stand two of absorption, which it has none of. A parent's latent is the one nearest to it.
*hole*: share of the inputs with a child of the parent on which that latent is silent. *gap*: the share of the parent's
inputs without any child on which it fires, less that with one: what misses its parent everywhere has holes and no gap.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from synthetic_world import Drawn, Sampler, build, facts, tree_of

from sae_lm.commands.train import train
from sae_lm.data.manifest import Recipe, ShardRecord
from sae_lm.data.shards import OpenShard
from sae_lm.data.tokens import START, Block
from sae_lm.data.writer import statistics
from sae_lm.pages.terminal import columns
from sae_lm.runtime.files import write_json
from sae_lm.settings import TrainSettings

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from made_stores import commit_store, made_recipe

HOOK = "blocks.0.hook_out"
CONTEXT = 128
"""Rows that count as one context, and as a document of their own."""
PER_SHARD = 256
LEAST_SEEN = 20
"""Inputs with a child that a parent needs, and inputs without one."""


def write_store(sampler: Sampler, rows: int, folder: Path, origin: dict[str, Any]) -> None:
    """A store of rows of no text, all of one token; whole contexts."""
    contexts, width = rows // CONTEXT, sampler.vectors.shape[1]
    recipe = made_recipe(
        {HOOK: width},
        CONTEXT,
        contexts * CONTEXT,
        PER_SHARD,
        "float16",
        model={"id": "SynthSAEBench", "revision": None, "d_model": width, "d_vocab": 1, **origin},
        text={"id": "synthetic"},
        forward="synthetic",
        pack=False,
        keep_special=True,
    )
    shards = [
        _shard(sampler, index, range(first, min(first + PER_SHARD, contexts)), recipe, folder)
        for index, first in enumerate(range(0, contexts, PER_SHARD))
    ]
    write_json(folder / "vocabulary.json", ["x"])
    save_file(statistics(folder, recipe, len(shards)), folder / "stats.safetensors")
    commit_store(folder, recipe, shards, contexts, ("vocabulary.json", "stats.safetensors"))


def _shard(sampler: Sampler, index: int, contexts: range, recipe: Recipe, folder: Path) -> ShardRecord:
    none = np.zeros(CONTEXT, bool)
    blocks = [Block(np.zeros(CONTEXT, np.int32), np.full(CONTEXT, c, np.int32), none, CONTEXT, START) for c in contexts]
    wanted = np.ones((len(blocks), CONTEXT), bool)
    shard = OpenShard(index, contexts.start, blocks, wanted, recipe)
    rows = torch.cat(list(sampler.rows(len(blocks) * CONTEXT))).half().view(len(blocks), CONTEXT, -1)
    shard.add(range(len(blocks)), {HOOK: rows}, wanted)
    return shard.write(folder, 10**9)


def judge(folder: Path, model: Any, held: Drawn) -> dict[str, float]:
    """One SAE's figures."""
    from sae_lens import SAE
    from sae_lens.synthetic import eval_sae_on_synthetic_data

    sae = SAE.load_from_disk(str(folder), device="cpu")
    batch = len(held.batches[0])
    held.place[0] = 0
    found = eval_sae_on_synthetic_data(
        sae, model.feature_dict, held, num_samples=batch * len(held.batches), batch_size=batch
    )
    held.place[0] = 0
    figures = {
        "F1": found.classification.f1_score,
        "precision": found.classification.precision,
        "recall": found.classification.recall,
        "MCC": found.mcc,
        "uniqueness": found.uniqueness,
        "explained": found.explained_variance,
        "L0": found.sae_l0,
        "dead": found.dead_latents / len(sae.W_dec),
    }
    return figures | absorption(sae, model, held)


@torch.no_grad()
def absorption(sae: Any, model: Any, held: Drawn) -> dict[str, float]:
    """Holes and gap, means over parents that are seen often enough with a child and without; and the start's cosine."""
    tree, vectors = tree_of(model), model.feature_dict.feature_vectors.detach()
    parents = torch.from_numpy(np.unique(tree.parent[tree.parent >= 0]))
    place = torch.full((len(tree.parent),), -1)
    place[parents] = torch.arange(len(parents))
    children = torch.from_numpy(np.flatnonzero(tree.parent >= 0))
    belongs = place[torch.from_numpy(tree.parent)[children]]
    rows = torch.nn.functional.normalize(sae.W_dec.float(), dim=1)
    latent = (vectors[parents] @ rows.T).abs().argmax(1)
    counts = torch.zeros(4, len(parents))
    for sparse in held.batches:
        on = sparse.to_dense() > 0
        fires = sae.encode(model.feature_dict(sparse.to_dense()))[:, latent] > 0
        with_child = torch.zeros(len(on), len(parents)).index_add_(1, belongs, on[:, children].float()) > 0
        alone = on[:, parents] & ~with_child
        parts = (with_child, with_child & fires, alone, alone & fires)
        counts += torch.stack([part.float().sum(0) for part in parts])
    seen = (counts[0] >= LEAST_SEEN) & (counts[2] >= LEAST_SEEN)
    if not seen.any():
        return {"parents": 0}
    with_child, alone = counts[1, seen] / counts[0, seen], counts[3, seen] / counts[2, seen]
    return {
        "hole": float(1 - with_child.mean()),
        "gap": float((alone - with_child).mean()),
        "parents": int(seen.sum()),
    }


def table(judged: dict[str, list[dict[str, float]]]) -> str:
    """A line for each arm: means over seeds, and the largest distance from one where there are several."""
    shown = ("F1", "MCC", "uniqueness", "explained", "L0", "dead", "hole", "gap", "start_cos", "seeds")
    cells = [[name, *(_cell(name, seeds) for seeds in judged.values())] for name in shown]
    return "\n".join(columns(["", *judged], cells))


def _cell(name: str, seeds: Sequence[dict[str, float]]) -> str:
    if name == "seeds":
        return str(len(seeds))
    values = [seed[name] for seed in seeds if name in seed]
    if not values:
        return ""
    mean = sum(values) / len(values)
    reach = max(abs(value - mean) for value in values)
    return f"{mean:.3f}" + (f" ±{reach:.3f}" if len(values) > 1 else "")


def judge_all(out: Path, model: Any, rows: int) -> dict[str, list[dict[str, float]]]:
    held = Drawn.by_saelens(model, rows, 1024, seed=1)
    judged: dict[str, list[dict[str, float]]] = {}
    for folder in sorted(path.parent for path in (out / "saes").glob("*/cfg.json")):
        metadata = json.loads((folder / "cfg.json").read_text())["metadata"]
        figures = judge(folder, model, held) | {"start_cos": metadata["convergence"]["start_cos"]}
        judged.setdefault(folder.name.rpartition("-seed")[0], []).append(figures)
        print(folder.name, json.dumps({key: round(value, 4) for key, value in figures.items()}), flush=True)
        write_json(out / "judged.json", judged)
    return judged


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("rows", "train", "judge"))
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=600_000, help="to write, or to judge by")
    parser.add_argument("--features", type=int, default=16_384)
    parser.add_argument("--d-in", type=int, default=768)
    parser.add_argument("--roots", type=int, default=128)
    parser.add_argument("--d-sae", type=int, default=4096)
    parser.add_argument("--k", type=int, default=25)
    parser.add_argument("--tokens", type=int, default=600_000, help="rows that each SAE is trained on")
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--arms", default="none")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--arms-at-once", type=int, default=2)
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if asked.what == "train":
        train(TrainSettings(
            store=asked.out / "rows", out=asked.out / "saes", d_sae=asked.d_sae, k=asked.k, arms=asked.arms,
            seeds=asked.seeds, tokens=asked.tokens, batch_size=asked.batch_size, held_out=0.01,
            arms_at_once=asked.arms_at_once,
        ))  # fmt: skip
        return
    vectors = asked.out / "vectors.safetensors"
    model = build(asked.features, asked.d_in, asked.roots, vectors if asked.what == "judge" else None)
    if asked.what == "rows":
        asked.out.mkdir(parents=True, exist_ok=True)
        save_file({"vectors": model.feature_dict.feature_vectors.detach()}, vectors)
        print(json.dumps(facts(model)), flush=True)
        write_store(Sampler(model, 0), asked.rows, asked.out / "rows", {"features": asked.features})
    else:
        print(table(judge_all(asked.out, model, asked.rows)))


if __name__ == "__main__":
    main()
