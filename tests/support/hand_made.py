"""A store and an SAE made by hand, whose latents' answers are known; tests of the page of latents read them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from made_stores import commit_store, made_recipe
from safetensors.torch import save_file

from sae_lm.data.shards import OpenShard, rows_wanted
from sae_lm.data.store import Store
from sae_lm.data.tokens import START, Block
from sae_lm.runtime.files import write_json
from sae_lm.sae.formats.saelens import save
from sae_lm.sae.model import SAE, SaeConfig

HOSTILE = "<script>document.title='ran'</script>"
WORDS = ["<bos>", " cat", " dog", "\n", HOSTILE, "\u202e\x07", "&amp;"]
HOOK = "blocks.1.hook_out"


def write_store(
    folder: Path,
    contexts: list[list[int]],
    per_shard: int = 2,
    scale: float = 0.25,
    hook: str = HOOK,
    separator: int | None = None,
) -> Store:
    """A store of given ids whose row for token t in context c is (1 + scale c) times the unit vector t."""
    size = len(contexts[0])
    shards = []
    recipe = made_recipe(
        {hook: len(WORDS)},
        size,
        sum(len(context) for context in contexts),
        per_shard,
        "float32",
        model={"id": "owner/tiny", "revision": None, "d_model": len(WORDS), "d_vocab": len(WORDS)},
        text={"id": "by hand"},
        bos=0,
        separator=separator,
        pack=separator is None,  # what ends in its context is padded
    )
    for index, first in enumerate(range(0, len(contexts), per_shard)):
        part = np.array(contexts[first : first + per_shard], np.int32)
        documents = np.repeat(np.arange(first, first + len(part), dtype=np.int32)[:, None] // 2, size, 1)
        blocks = [
            Block(i, d, (i == 0) | (i == (separator or 0)), size, START) for i, d in zip(part, documents, strict=True)
        ]
        kept = rows_wanted(blocks, recipe)
        strength = torch.tensor([1 + scale * (first + c) for c in np.nonzero(kept)[0]], dtype=torch.float32)
        values = torch.zeros(*part.shape, len(WORDS))
        values[torch.from_numpy(kept)] = torch.eye(len(WORDS))[torch.from_numpy(part[kept]).long()] * strength[:, None]
        shard = OpenShard(index, first, blocks, kept, recipe)
        shard.add(range(len(blocks)), {hook: values}, kept)
        shards.append(shard.write(folder, 10**9))
    write_json(folder / "vocabulary.json", WORDS)
    save_file({"x": torch.zeros(1)}, folder / "stats.safetensors")
    documents = 1 + (len(contexts) - 1) // 2
    return commit_store(folder, recipe, shards, documents, ("vocabulary.json", "stats.safetensors"))


def write_sae(folder: Path, **metadata: Any) -> SAE:
    """Latent t fires on token t as strongly as its row is long, and on nothing else."""
    width = len(WORDS)
    weights = {"W_enc": torch.eye(width), "b_enc": torch.zeros(width), "W_dec": torch.eye(width)}
    config = SaeConfig(
        architecture="topk",
        d_in=width,
        d_sae=width,
        k=2,
        metadata={"hook_name": "blocks.1.hook_resid_post", "model_name": "tiny", **metadata},
    )
    sae = SAE(config, {**weights, "b_dec": torch.zeros(width)})
    save(sae, folder)
    return sae


CONTEXTS = [[0, 1, 2, 4, 3, 1], [0, 2, 2, 2, 6, 2], [0, 1, 3, 2, 5, 1], [0, 2, 4, 1, 2, 3], [0, 3, 3, 1, 2, 4]]


def random_sae(d_in: int, d_sae: int, k: int, seed: int, **metadata: Any) -> SAE:
    generator = torch.Generator().manual_seed(seed)
    weights = {
        "W_enc": torch.randn(d_in, d_sae, generator=generator),
        "b_enc": torch.zeros(d_sae),
        "W_dec": torch.randn(d_sae, d_in, generator=generator),
        "b_dec": torch.zeros(d_in),
    }
    config = SaeConfig(
        architecture="topk",
        d_in=d_in,
        d_sae=d_sae,
        k=k,
        metadata={"hook_name": HOOK, "model_name": "tiny", **metadata},
    )
    return SAE(config, weights)


def random_contexts(count: int, size: int, seed: int) -> list[list[int]]:
    """Contexts of BOS and random words, here and there a BOS in the middle, which has no row."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, len(WORDS), (count, size), generator=generator)
    ids[:, 0] = 0
    ids[3 % count, size // 2] = 0
    return ids.tolist()
