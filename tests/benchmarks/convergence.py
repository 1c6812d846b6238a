"""Held-out error after equal seconds, beside peers, on the rows of one store; and after equal rows, for a recipe's sweep.

    python tests/benchmarks/convergence.py STORE --seconds 20 --saelens-python PYTHON --peers-python PYTHON
    python tests/benchmarks/convergence.py STORE --rows 1000000 --ours lr=4e-3 lr=4e-3,optimizer=adam lr=8e-3,batch=2048
    python tests/benchmarks/convergence.py STORE --rows 500000 --ours decay=0.5 arm=none@arch=relu,lr=3.5e-3 arm=none@arch=relu
    python tests/benchmarks/convergence.py STORE --rows 360000 --peer-rates 2e-3 4e-3 8e-3 --saelens-python PYTHON

The environments are those of training.py. Every run is a process of its own; the machine is its alone. With --seconds
a first process takes a few steps to learn how many fit, and a second one makes them, so that its schedule of the
learning rate (5% warm-up, decay over the last fifth, for all) ends with the time. Peers run at the default rate of
their own library and at each of --peer-rates. Training rows are the store's, shuffled once and read again when they end; all
are in memory before the clock starts. FVU is of rows at the store's end.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from training import Trainer

from sae_lm.data.store import open_store
from sae_lm.training.recipe import default_batch_size, default_lr, default_matmul

PEERS = {
    "SAELens, default": {"trainer": "saelens", "lr": 3e-4, "batch": 4096},
    "SAELens": {"trainer": "saelens", "batch": 512},
    "dictionary_learning, default": {"trainer": "dictionary_learning", "lr": None, "batch": 2048},
    "dictionary_learning": {"trainer": "dictionary_learning", "batch": 512},
    "sparsify (signum), default": {"trainer": "sparsify", "optimizer": "signum", "lr": 5e-3, "batch": 2048},
    "sparsify, Adam": {"trainer": "sparsify", "batch": 512},
}
"""Name -> defaults of the library, where None is 2e-4 / sqrt(d_sae / 2^14); or the best of the batches tried."""

OPTIONS: dict[str, Callable[[str], Any]] = {
    "lr": float, "batch": int, "k": int, "d_sae": int, "optimizer": str, "whiten": int, "warm_up": float, "decay": float,
    "matmul": str, "arm": str,
}  # fmt: skip
"""What --ours may change."""


def held_out_first(store_path: str, hook: str | None, unseen: int) -> torch.Tensor:
    """[unseen + training rows, d_in] float32, scaled as in training: held-out rows, then training rows in random order."""
    store = open_store(store_path)
    _, first = store.held_out_from(0.2)
    moments = store.moments(store.hook(hook), first)
    rows = store.rows(hook).float() / moments.variance**0.5
    order = torch.randperm(first, generator=torch.Generator().manual_seed(0))
    return torch.cat([rows[-unseen:], rows[:first][order]])


def read_options(text: str) -> dict[str, Any]:
    """``lr=4e-3,batch=512,arm=none@arch=relu`` as a job's entries."""
    pairs = dict(pair.split("=", 1) for pair in text.split(",") if pair)
    if unknown := pairs.keys() - OPTIONS.keys():
        raise SystemExit(f"--ours {text}: unknown {', '.join(sorted(unknown))}; expected {', '.join(OPTIONS)}")
    return {key: OPTIONS[key](value) for key, value in pairs.items()}


def own_rate(job: dict[str, Any], d_sae: int) -> float:
    """That of a peer's library at this width."""
    width = (d_sae / 2**14) ** 0.5
    return job["lr"] / width if job.get("optimizer") == "signum" else job["lr"] or 2e-4 / width


def train(python: str, job: dict[str, Any], seconds: float | None, rows: int) -> tuple[int, float, float]:
    """Steps, the seconds they took, the error after them."""
    steps = rows // job["batch"]
    if seconds:
        trial = Trainer(python, {**job, "steps": 1000})
        trial.ask("5")
        steps = int(seconds / statistics.median(trial.ask("15")))
        trial.process.kill()
    trainer = Trainer(python, {**job, "steps": steps})
    took = sum(trainer.ask(str(steps)))
    (fvu,) = trainer.ask("error")
    trainer.process.kill()
    return steps, took, fvu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("store")
    parser.add_argument("--hook")
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of each run, where --seconds is not given")
    parser.add_argument("--d-sae", type=int, default=2048)
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--unseen", type=int, default=40_000)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument(
        "--ours", nargs="*", default=[""], help=f"{', '.join(OPTIONS)} as NAME=VALUE,...; empty: the defaults"
    )
    parser.add_argument("--peer-rates", nargs="*", type=float, default=[4e-3], help="beside their defaults")
    parser.add_argument("--saelens-python")
    parser.add_argument("--peers-python")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = held_out_first(arguments.store, arguments.hook, arguments.unseen)
        file = Path(folder) / "rows.safetensors"
        save_file({"rows": rows.contiguous()}, file)
        d_in = rows.shape[1]
        shared = {
            "rows": str(file), "unseen": arguments.unseen, "d_in": d_in, "threads": arguments.threads, "device": "cpu",
            "matmul": default_matmul("cpu"), "arm": "none", "trainer": "ours",
        }  # fmt: skip
        plan: list[tuple[str, str, dict[str, Any]]] = []
        for text in arguments.ours:
            job = {
                "d_sae": arguments.d_sae,
                "k": arguments.k,
                "batch": default_batch_size(arguments.rows),
                **read_options(text),
            }
            job.setdefault("lr", default_lr(d_in, job["batch"], job.get("optimizer", "row_rms")))
            plan.append((f"sae_lm {text or 'default'}", sys.executable, job))
        for name, job in PEERS.items():
            python = arguments.saelens_python if job["trainer"] == "saelens" else arguments.peers_python
            rates = [own_rate(job, arguments.d_sae)] if "lr" in job else arguments.peer_rates
            for lr in rates if python else ():
                entry = {"d_sae": arguments.d_sae, "k": arguments.k, "matmul": "float32", **job, "lr": lr}
                plan.append((name, python, entry))
        print(f"{'':44}{'lr':>9}{'batch':>7}{'steps':>7}{'rows':>11}{'s':>7}{'ms':>8}{'FVU':>8}")
        for name, python, job in plan:
            steps, took, fvu = train(python, {**shared, **job}, arguments.seconds, arguments.rows)
            print(
                f"{name:44}{job['lr']:9.1e}{job['batch']:7}{steps:7}{steps * job['batch']:11,}{took:7.1f}"
                f"{1e3 * took / steps:8.1f}{fvu:8.4f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
