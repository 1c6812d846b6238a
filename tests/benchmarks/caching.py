"""Tokens per second of caching, beside the bare forward pass that it cannot beat.

    python tests/benchmarks/caching.py [--saelens-python PYTHON] [--model embedded|gpt2-small] [--rounds N]

Three ways over the same text and model, in turns within one run, so that a busy machine is busy for all:
  bare     Hugging Face's model on tokens that are in memory already, ended after the block, activation thrown away
  ours     ``sae_lm.cache`` from text to committed store: tokenizing, checks, statistics, checksums and writing included
  saelens  SAELens' CacheActivationsRunner (with --saelens-python, the interpreter of an environment that has it)
Model loading is outside all three. Prints medians over rounds, ratios of pairs, and one JSON line.
"""

import argparse
import json
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from sae_lm.commands import cache as caching
from sae_lm.data.partial_store import read_partial_store
from sae_lm.data.text import open_text
from sae_lm.data.tokens import START
from sae_lm.embedded import MODEL_DIR
from sae_lm.embedded.text import embedded_dataset
from sae_lm.lm.forward import BLOCKS, open_forward
from sae_lm.lm.source import find_model, load_tokenizer
from sae_lm.runtime.distributed import Ranks
from sae_lm.settings import CacheSettings

HERE = Path(__file__).parent


def main() -> None:
    options = read_options()
    torch.manual_seed(0)
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, layer = make_model(options.model, folder / "model")
        text = folder / "text.jsonl"
        text.write_text("".join(json.dumps({"text": part}) + "\n" for part in embedded_dataset("all")["text"]))
        for context in options.contexts:
            results.append(compare(options, folder, model, layer, text, context))
    cores, threads = len(__import__("os").sched_getaffinity(0)), torch.get_num_threads()
    print(f"\n{platform.processor() or platform.machine()}, {cores} cores, {threads} threads, Python {platform.python_version()}, "
          + ", ".join(f"{package} {version(package)}" for package in ("torch", "transformers", "sae_lm")))  # fmt: skip
    print(json.dumps(results))


def compare(options, folder: Path, model: Path, layer: int, text: Path, context: int) -> dict:
    batch = max(1, options.batch_tokens // context)
    settings = CacheSettings(
        model=str(model), text=str(text), hooks=str(layer), tokens=options.tokens, context_size=context,
        batch_size=batch, out=folder / "store",
    )  # fmt: skip
    source = find_model(settings.model)
    tokenizer, opened = load_tokenizer(source), open_text(settings.text)
    ways = {}
    with open_forward(source, settings.hooks, kind="auto", device="cpu", dtype=torch.float32) as forward:
        recipe = caching.describe_recipe(settings, forward, source, opened, tokenizer)
        maker = caching.ShardMaker(forward, recipe, tokenizer, opened, batch, "cpu")
        blocks = list(islice(maker.stream(START), -(-options.tokens // context)))
        batches = [
            torch.from_numpy(np.stack([b.ids for b in blocks[i : i + batch]])).long()
            for i in range(0, len(blocks), batch)
        ]
        ways["bare"] = bare_forward(model, layer, batches)
        ways["ours"] = lambda: write_store(settings, maker)
        if options.saelens_python:
            ways["saelens"] = SaeLens(
                options.saelens_python, folder, model, layer, text, context, batch, options.tokens
            )
        seconds = {way: [] for way in ways}
        for turn in range(options.rounds + 1):
            for way, run in ways.items():
                took = run()
                if turn:  # the first round warms up
                    seconds[way].append(took)
    tokens = len(blocks) * context
    rates = {way: tokens / statistics.median(times) for way, times in seconds.items()}
    pairs = [bare / ours for bare, ours in zip(seconds["bare"], seconds["ours"], strict=True)]
    print(
        f"{options.model}, block {layer}, context {context}, {batch} contexts a batch, {tokens:,} tokens, {options.rounds} rounds"
    )
    for way, rate in rates.items():
        print(f"  {way:8} {rate:9,.0f} tokens/s  ({min(seconds[way]):.2f} to {max(seconds[way]):.2f} s)")
    print(
        f"  ours / bare, pair by pair: median {statistics.median(pairs):.3f}, {min(pairs):.3f} to {max(pairs):.3f}",
        flush=True,
    )
    return {"model": options.model, "context": context, "batch": batch, "tokens": tokens, "seconds": seconds,
            "ours_over_bare": statistics.median(pairs)}  # fmt: skip


def make_model(name: str, folder: Path) -> tuple[Path, int]:
    """A model's folder and the block to cut after: the embedded model, or GPT-2 small's shape with random weights."""
    if name == "embedded":
        shutil.copytree(MODEL_DIR, folder)
        config = json.loads(
            (folder / "config.json").read_text()
        )  # rotary positions: longer contexts cost what they cost
        (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 2048}))
        return folder, 2
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=0)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(MODEL_DIR).save_pretrained(folder)
    return folder, 6


def bare_forward(folder: Path, layer: int, batches: list[torch.Tensor]):
    from transformers import AutoModelForCausalLM

    class Enough(Exception):
        pass

    def end(*_) -> None:
        raise Enough

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    model.base_model.get_submodule(BLOCKS[type(model).__name__])[layer].register_forward_hook(end)

    def run() -> float:
        began = time.perf_counter()
        with torch.inference_mode():
            for ids in batches:
                try:
                    model(ids, use_cache=False)
                except Enough:
                    continue
        return time.perf_counter() - began

    return run


def write_store(settings: CacheSettings, maker: caching.ShardMaker) -> float:
    shutil.rmtree(settings.out, ignore_errors=True)
    began = time.perf_counter()
    state = read_partial_store(settings.out, maker.recipe)
    assert state is not None
    state.begin(settings.batch_size, {})
    sys.stderr = open("/dev/null", "w")  # noqa: SIM115
    caching._fill(maker, state, Ranks(0, 1, 0))
    sys.stderr = sys.__stderr__
    caching._commit(state.reread(), ["" for _ in range(maker.recipe.model["d_vocab"])])
    return time.perf_counter() - began


class SaeLens:
    """SAELens' runner in its own process, one run per call."""

    def __init__(
        self, python: str, folder: Path, model: Path, layer: int, text: Path, context: int, batch: int, tokens: int
    ) -> None:
        job = {"model": str(model), "hook": f"{'transformer.h' if layer == 6 else 'model.layers'}.{layer}", "text": str(text),
               "context": context, "batch": batch, "tokens": tokens, "out": str(folder / "arrow")}  # fmt: skip
        self.process = subprocess.Popen(
            [python, str(HERE / "saelens_caching.py"), json.dumps(job)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip

    def __call__(self) -> float:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        while not (line := self.process.stdout.readline()).startswith("seconds "):
            assert line, "SAELens' process ended"
        return float(line.split()[1])


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=["embedded", "gpt2-small"], default="embedded")
    parser.add_argument("--contexts", type=lambda text: [int(part) for part in text.split(",")], default=[128, 1024])
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--saelens-python", help="python of an environment with sae-lens")
    return parser.parse_args()


if __name__ == "__main__":
    main()
