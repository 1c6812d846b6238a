"""Seconds per training step beside peers', in pairs within one run, and the error after the same rows.

    python tests/benchmarks/training.py --saelens-python PYTHON --peers-python PYTHON
    python tests/benchmarks/training.py --only topk,batchtopk,max_cos:0.25 --d-sae 65536

The first environment holds sae-lens (which needs transformer-lens < 4), the second dictionary-learning and
eai-sparsify; without them ours are measured alone. Every trainer is a process that lives through the whole run. In each
round each does a few steps while the others wait; a round's ratio is taken within it, and medians over rounds are
printed. MiB are resident memory, imports and the rows (102 batches) included, and what was added since the first
steps. Rows are sums of power-law distributed random directions, so that there is something to learn.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from sae_lm.training.recipe import default_matmul

OURS = {
    "topk": ("none", None),
    "topk with a float32 product": ("none", "float32"),
    "batchtopk": ("none@arch=batchtopk", None),
    "matryoshka": ("none@arch=matryoshka", None),
    "relu": ("none@arch=relu", None),
    "jumprelu": ("none@arch=jumprelu", None),
    **{
        arm: (arm, None)
        for arm in ("abs_cos:1", "sq_cos:1", "max_cos:0.25", "coactive:0.1", "coactive:0.1@anchored", "freq_cos:0.1")
    },
}
"""Name -> arm, dtype of the product that selects (None: as `sae-lm train` chooses it for the device)."""
PEERS = {
    "SAELens, float32": ("saelens", "float32"),
    "SAELens, bfloat16 autocast": ("saelens", "bfloat16"),
    "dictionary_learning": ("dictionary_learning", "float32"),
    "sparsify, Adam": ("sparsify", "float32"),
}
FEWEST = 10
"""Steps of ours per round: a penalty's gradient is taken once in ten."""


def made_rows(d_in: int, number: int) -> torch.Tensor:
    """[number, d_in] float32 of variance 1: 30 of 4 d_in^1.2 random directions each, the frequent ones more often."""
    generator = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(int(4 * d_in**1.2), d_in, generator=generator), dim=1)
    often = torch.arange(1, len(features) + 1).pow(-0.8)
    rows = torch.empty(number, d_in)
    for part in rows.split(8192):
        chosen = torch.multinomial(often, len(part) * 30, replacement=True, generator=generator).view(len(part), 30)
        strength = torch.rand(chosen.shape, generator=generator) + 0.5
        part.copy_(torch.nn.functional.embedding_bag(chosen, features, per_sample_weights=strength, mode="sum"))
    return rows / (rows - rows.mean(0)).square().sum(1).mean().sqrt()


class Trainer:
    """A process that trains when told to."""

    def __init__(self, python: str, job: dict[str, Any]) -> None:
        script = Path(__file__).with_name("training_steps.py")
        self.process = subprocess.Popen(
            [python, str(script), json.dumps(job)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, line: str) -> list[float]:
        assert self.process.stdin and self.process.stdout
        print(line, file=self.process.stdin, flush=True)
        for answer in self.process.stdout:
            if answer.startswith(("seconds ", "fvu ", "MiB ")):
                return [float(number) for number in answer.split()[1:]]
        raise SystemExit(f"a trainer ended early: {self.process.args}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--saelens-python")
    parser.add_argument("--peers-python")
    parser.add_argument("--only", help="of ours, comma separated")
    parser.add_argument("--d-in", type=int, default=512)
    parser.add_argument("--d-sae", type=int, default=8192)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=FEWEST, help="of ours in each round")
    parser.add_argument("--peer-steps", type=int, default=2, help="of each peer in each round")
    parser.add_argument("--to-the-end", type=int, default=0, help="steps of all, for the error; 0: not measured")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    matmul_here = default_matmul(arguments.device)
    names = [name.strip() for name in arguments.only.split(",")] if arguments.only else list(OURS)
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.safetensors"
        save_file({"rows": made_rows(arguments.d_in, 102 * arguments.batch)}, rows)
        steps = arguments.to_the_end or arguments.rounds * arguments.steps
        job: dict[str, Any] = {
            **vars(arguments), "rows": str(rows), "steps": steps, "arm": "none", "matmul": matmul_here,
            "lr": 2e-3,
        }  # fmt: skip
        plan = {"one encoder product": (sys.executable, {**job, "trainer": "product"})}
        for name in names:
            arm, matmul = OURS.get(name, (name, None))
            plan[name] = sys.executable, {**job, "trainer": "ours", "arm": arm, "matmul": matmul or matmul_here}
        if arguments.to_the_end:
            plan["dense float32 twin"] = sys.executable, {**job, "trainer": "twin"}
        for name, (trainer, matmul) in PEERS.items():
            python = arguments.saelens_python if trainer == "saelens" else arguments.peers_python
            if python and (matmul == "float32" or matmul_here == matmul):
                plan[name] = python, {**job, "trainer": trainer, "matmul": matmul}
        trainers = {name: Trainer(python, one) for name, (python, one) in plan.items()}
        many = dict.fromkeys(trainers, arguments.peer_steps) | dict.fromkeys(names, arguments.steps)
        many["one encoder product"] = arguments.steps
        for name, trainer in trainers.items():
            trainer.ask("2" if many[name] < FEWEST else str(arguments.steps))  # to warm up, outside the figures
        early = {name: trainer.ask("memory")[0] for name, trainer in trainers.items()}
        rounds: list[dict[str, float]] = []
        for number in range(arguments.rounds):
            took = {name: trainer.ask(str(many[name])) for name, trainer in trainers.items()}
            # every step of ours is in the mean, since a penalty's cost lies in one of ten
            rounds.append({n: statistics.fmean(s) if n in names else statistics.median(s) for n, s in took.items()})
            print(f"round {number + 1}", {name: round(1e3 * s, 1) for name, s in rounds[-1].items()}, flush=True)
        print(f"\ntorch {version('torch')}, {arguments.device}, {matmul_here}, {job['threads'] or torch.get_num_threads()} threads, "
              f"{arguments.d_in} -> {arguments.d_sae}, k {arguments.k}, batch {arguments.batch}")  # fmt: skip
        base, unit = names[0], "one encoder product"
        print(f"{'':32}{'ms/step':>9}{'x ' + base:>12}{'(rounds)':>16}{'x product':>11}{'MiB peak':>10}{'growth':>8}")
        for name in trainers:
            ratios = sorted(one[name] / one[base] for one in rounds)
            now, peak = trainers[name].ask("memory")
            print(
                f"{name:32}{1e3 * statistics.median(one[name] for one in rounds):9.1f}{statistics.median(ratios):12.3f}"
                f"{f'{ratios[0]:.2f} to {ratios[-1]:.2f}':>16}{statistics.median(o[name] / o[unit] for o in rounds):11.2f}"
                f"{peak:10.0f}{now - early[name]:8.0f}"
            )
        if arguments.to_the_end:
            print(f"\nFVU on unseen rows after {arguments.to_the_end} batches")
            for name, trainer in trainers.items():
                if name != unit:
                    before = many[name] * arguments.rounds + (2 if many[name] < FEWEST else arguments.steps)
                    trainer.ask(str(max(0, arguments.to_the_end - before)))
                    print(f"{name:32}{trainer.ask('error')[0]:9.4f}", flush=True)


if __name__ == "__main__":
    main()
