"""What trained SAEs are on rows that training held out: FVU, L0, s_n^dec and how far the decoder left its start.

    python tests/benchmarks/held_out.py runs/demo

No concepts, no language model: seconds an SAE, where `sae-lm compare` takes a minute. The rows are the end of the
store that the folder was trained on.
"""

import argparse
import json
from pathlib import Path

import torch

import sae_lm
from sae_lm.metrics.decoder_projection import nth_decoder_projection
from sae_lm.metrics.reconstruction import quality

BATCH = 2048
PROJECTED = 4096
"""Rows of which s_n^dec is taken."""


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="a folder of sae-lm train")
    parser.add_argument("--store", type=Path, help="the store, where it is no longer in its place")
    parser.add_argument("--n", type=int, help="n of s_n^dec; default: d_sae / 8")
    parser.add_argument("--rows", type=int, default=300_000, help="held-out rows at most")
    options = parser.parse_args()
    recorded = json.loads((options.runs / "run.json").read_text())
    store = sae_lm.open_store(options.store or recorded["store"])
    first, hook = (recorded["facts"][key] for key in ("held_out_from_row", "hook"))
    rows = store.rows(hook, start=first, stop=min(store.manifest.rows, first + options.rows))
    print(f"{'SAE':<48} {'FVU':>7} {'L0':>7} {'s_n':>7} {'start':>6}")
    for folder in sorted(path.parent for path in options.runs.glob("*/cfg.json")):
        measured = held_out(folder, rows, options.n)
        print(f"{folder.name:<48} " + " ".join(f"{value:>7.4g}" for value in measured), flush=True)


def held_out(folder: Path, rows: torch.Tensor, n: int | None) -> tuple[float, float, float, float]:
    """FVU, L0, s_n^dec (n default: d_sae / 8) and the decoder's mean cosine with its start."""
    metadata = json.loads((folder / "cfg.json").read_text())["metadata"]
    sae = sae_lm.load(folder)
    found, _, _ = quality(sae, (batch.float() for batch in rows.split(BATCH)))
    projection = nth_decoder_projection(sae, rows[:PROJECTED].float(), n or sae.config.d_sae // 8)
    return found.fvu, found.l0, projection, metadata.get("convergence", {}).get("start_cos", float("nan"))


if __name__ == "__main__":
    main()
