"""What `sae-lm compare` costs: seconds of each part and peak memory, for more tokens and for more latents.

    python tests/benchmarks/comparing.py --d-in 512 --latents 4096 8192 16384 --tokens 16384 32768 65536
    python tests/benchmarks/comparing.py --d-in 2304 --latents 65536 --tokens 16384 --seeds 1

A language model of one block gives activations of the width: random weights, and the embedded model's embeddings, turned
into more dimensions, so that there are concepts to find. Two arms of SAEs are trained on them for two batches: the work
is that of a real comparison, its findings mean nothing. Each size is a process of its own, so that its peak is its own. Tokens vary at the fewest latents,
latents at the fewest tokens.
"""

import argparse
import contextlib
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

import sae_lm

ARMS, K, BATCH = "none,max_cos:0.25", 32, 2048
CONTEXT = 128
PARTS = {
    "sae_lm.comparison.evaluate": ("quality", "geometry", "encode_sparse", "split_counts"),
    "sae_lm.comparison.language_model": ("cross_entropies",),
    "sae_lm.comparison.measure": (
        "all_concept_figures",
        "compare_seeds",
        "genealogies",
        "explorer_entries",
        "build_evaluation_set",
    ),
}
"""Module -> functions whose seconds are told."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--d-in", type=int, default=512)
    parser.add_argument("--latents", type=int, nargs="+", default=[4096, 8192, 16384])
    parser.add_argument("--tokens", type=int, nargs="+", default=[16384, 32768, 65536])
    parser.add_argument("--per-type", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where store and SAEs are kept; default: nowhere")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        print(json.dumps(compared(**json.loads(arguments.job))))
        return
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, d_in {arguments.d_in}, {arguments.seeds} x 2 SAEs"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.folder or Path(name)
        store(folder, arguments.d_in, max(arguments.tokens))
        few, narrow = min(arguments.tokens), min(arguments.latents)
        sizes = [(tokens, narrow) for tokens in sorted(arguments.tokens)]
        sizes += [(few, latents) for latents in sorted(arguments.latents)[1:]]
        for tokens, latents in sizes:
            job = {"folder": str(folder), "tokens": tokens, "latents": latents}
            told(tokens, latents, in_process(job | {"per_type": arguments.per_type, "seeds": arguments.seeds}))


def in_process(job: dict[str, Any]) -> dict[str, Any]:
    ran = subprocess.run(
        [sys.executable, __file__, "--job", json.dumps(job)], capture_output=True, text=True, check=False
    )
    if ran.returncode:
        sys.exit(ran.stderr)
    return json.loads(ran.stdout.splitlines()[-1])


def told(tokens: int, latents: int, found: dict[str, Any]) -> None:
    parts = ", ".join(f"{name.strip('_')} {seconds:.1f}" for name, seconds in found["parts"].items())
    print(
        f"{tokens:,} tokens, {latents:,} latents: {found['seconds']:.1f} s ({parts}); "
        f"peak memory {found['peak']:.2f} GB, {found['before']:.2f} before; {found['concepts']} concepts, {found['rows']:,} rows",
        flush=True,
    )


def store(folder: Path, width: int, tokens: int) -> None:
    """Half of it is held out."""
    embedded = Path(sae_lm.__file__).parent / "embedded" / "model"
    model = folder / f"model-{width}"
    if not model.exists():
        from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

        tokenizer = AutoTokenizer.from_pretrained(embedded)
        rows = AutoModelForCausalLM.from_pretrained(embedded).get_input_embeddings().weight.detach().float()
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=CONTEXT,
            n_embd=width,
            n_layer=1,
            n_head=8,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        made = GPT2LMHeadModel(config)
        with torch.no_grad():
            made.transformer.wte.weight[: len(rows)] = rows @ torch.randn(rows.shape[1], width) / rows.shape[1] ** 0.5
        made.save_pretrained(model)
        tokenizer.save_pretrained(model)
    settings = sae_lm.CacheSettings(
        model=str(model),
        text="embedded",
        hooks="blocks.0.hook_out",
        tokens=2 * tokens + CONTEXT,
        context_size=CONTEXT,
        out=folder / f"acts-{width}",
    )
    sae_lm.cache(settings)
    (folder / "latest.json").write_text(json.dumps({"store": str(settings.out), "model": str(model)}))


def compared(folder: str, tokens: int, latents: int, per_type: int, seeds: int) -> dict[str, Any]:
    """Trains what is missing in another process, whose memory does not count, and compares."""
    from sae_lm.commands.compare import compare
    from sae_lm.settings import CompareSettings

    place = json.loads((Path(folder) / "latest.json").read_text())
    runs, out = Path(folder) / f"runs-{latents}", Path(folder) / "report"
    flags = {"store": place["store"], "d-sae": latents, "k": K, "arms": ARMS, "seeds": seeds, "tokens": 2 * BATCH}
    flags |= {"batch-size": BATCH, "held-out": 0.5, "arms-at-once": 1, "out": runs}
    command = [sys.executable, "-m", "sae_lm", "train", *(f"--{key}={value}" for key, value in flags.items())]
    subprocess.run(command, check=True, capture_output=True)
    spent: dict[str, float] = defaultdict(float)
    for module, names in PARTS.items():
        for name in names:
            timed(module, name, spent)
    before, began = peak(), time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        report = compare(
            CompareSettings(
                runs=runs,
                out=out,
                model=place["model"],
                tokens=tokens,
                per_type=per_type,
                ce_contexts=24,
                probe_gate=0.5,
                min_words=4,
            )
        )
    used = [concept for concept in report["concepts"] if concept["skipped"] is None]
    return {
        "seconds": time.perf_counter() - began,
        "parts": dict(spent),
        "before": before,
        "peak": peak(),
        "concepts": len(used),
        "rows": sum(concept["rows"] for concept in used),
    }


def timed(module: str, name: str, spent: dict[str, float]) -> None:
    """The function of this name as the module calls it, its seconds counted."""
    place = sys.modules[module]
    function = getattr(place, name)

    def call(*values: Any, **named: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*values, **named)
        finally:
            spent[name] += time.perf_counter() - began

    setattr(place, name, call)


def peak() -> float:
    """GB of this process at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
