"""What a penalty or a control adds to a training step: arms in one process, ten steps of each in turn.

    python tests/benchmarks/penalties.py --d-sae 65536 --rounds 5

A round's ratio is to the mean of two turns without a penalty, one before and one after the others. A penalty's
gradient is taken once in its ten steps.
"""

import argparse
import statistics
import time

import torch
from training import made_rows
from training_steps import recipe

from sae_lm.penalties.arms import parse_arm
from sae_lm.training.recipe import default_matmul
from sae_lm.training.trainer import ArmTraining

ARMS = ("abs_cos:1", "sq_cos:1", "max_cos:0.25", "coactive:0.1", "coactive:0.1@anchored", "freq_cos:0.1", "c2r:5",
        "silent:0.3", "align:0.1", "none@decoder=0.8", "none@decoder=frozen", "none@encoder=frozen")  # fmt: skip
STEPS = 10
"""Of an arm's turn; how often a gradient is taken anew."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--d-in", type=int, default=512)
    parser.add_argument("--d-sae", type=int, default=8192)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--arms", type=lambda text: tuple(text.split(",")), default=ARMS, help="with commas between")
    parser.add_argument(
        "--processor-time", action="store_true", help="this process's seconds: others share the machine"
    )
    arguments = parser.parse_args()
    clock = time.process_time if arguments.processor_time else time.perf_counter
    arms = ("none again", *arguments.arms)  # how much a turn is like another, which bounds what the rest can say
    rows = made_rows(arguments.d_in, 2 * STEPS * arguments.batch)
    batches = rows.split(arguments.batch)
    job = {"k": 32, "steps": 1000, "lr": 2e-4, "d_in": arguments.d_in, "d_sae": arguments.d_sae}
    job["batch"] = arguments.batch
    job["matmul"] = default_matmul("cpu")
    runs = {
        arm: ArmTraining(parse_arm(arm.removesuffix(" again")), 0, recipe(job), rows.mean(0), "cpu")
        for arm in ("none", *arms)
    }
    done = dict.fromkeys(runs, 0)

    def turn(arm: str) -> float:
        began = clock()
        for _ in range(STEPS):
            runs[arm].step(batches[done[arm] % len(batches)], done[arm])
            done[arm] += 1
        return clock() - began

    for arm in runs:
        turn(arm)  # to warm up
    ratios: dict[str, list[float]] = {arm: [] for arm in arms}
    for _ in range(arguments.rounds):
        before = turn("none")
        took = {arm: turn(arm) for arm in arms}
        base = (before + turn("none")) / 2
        for arm in arms:
            ratios[arm].append(took[arm] / base)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {arguments.d_in} -> {arguments.d_sae}, k 32")
    for arm, those in ratios.items():
        print(f"{arm:26} {statistics.median(those):.3f} ({min(those):.2f} to {max(those):.2f}) of a step without")


if __name__ == "__main__":
    main()
