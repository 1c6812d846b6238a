"""One trainer of training.py in a process of its own, in whatever environment has it.

A line "N" in: N steps, "seconds a b c ..." out. A line "error" in: "fvu F" out, on rows no trainer has seen. A line
"memory" in: "MiB now peak" out, the process's resident memory.
Peers run their own step functions, or what their trainer's loop does around them, with their defaults but for the
learning rate, which is everyone's.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

Step = Callable[[Tensor], None]
Rebuild = Callable[[Tensor], Tensor]


def ours(job: dict[str, Any], start: Tensor) -> tuple[Step, Rebuild]:
    from sae_lm.penalties.arms import parse_arm
    from sae_lm.training.trainer import ArmTraining

    run = ArmTraining(parse_arm(job["arm"]), 0, recipe(job), start, job["device"], whitening=whitening(job, start))
    steps = iter(range(10**9))

    def rebuild(x: Tensor) -> Tensor:
        return run.finish(1.0, {})(x)

    return lambda x: run.step(x, next(steps)), rebuild


def twin(job: dict[str, Any], start: Tensor) -> tuple[Step, Rebuild]:
    """The same SAE by dense float32 autograd, from the same weights."""
    from reference import dense_loss

    from sae_lm.penalties.arms import parse_arm
    from sae_lm.training.objective import Weights
    from sae_lm.training.optimizer import make_optimizer
    from sae_lm.training.trainer import ArmTraining

    shared = recipe(job)
    first = ArmTraining(parse_arm("none"), 0, shared, start, job["device"])
    weights = Weights(*(one if one is None else one.detach().clone().requires_grad_() for one in first.weights))
    optimizer = make_optimizer(shared.optimizer, {n: one for n, one in weights._asdict().items() if one is not None})
    steps, turn = iter(range(10**9)), whitening(job, start)

    def rebuild(x: Tensor) -> Tensor:
        _, z = dense_loss("topk", x, weights.encoder.T, *weights[1:4], k=shared.k)
        return z @ weights.W_dec + weights.b_dec

    def step(x: Tensor) -> None:
        loss, _ = dense_loss("topk", x, weights.encoder.T, *weights[1:4], k=shared.k)
        gradient = Weights(*torch.autograd.grad(loss, weights[:4]))
        if turn is not None:
            gradient = gradient._replace(encoder=gradient.encoder @ turn.to(gradient.encoder))
        number = next(steps)
        optimizer.update(gradient, None, number, shared.learning_rate(number))

    return step, rebuild


def whitening(job: dict[str, Any], mean: Tensor) -> Tensor | None:
    """As `sae-lm train` has it, of the first rows."""
    from sae_lm.training.whitening import ROWS, inverse_root

    if not job.get("whiten", 1):
        return None
    rows = load_file(job["rows"])["rows"][:ROWS].double() - mean.cpu()
    return inverse_root(rows.T @ rows, len(rows))


def recipe(job: dict[str, Any]) -> Any:
    from recipes import training_recipe

    return training_recipe(
        job["steps"], d_sae=job["d_sae"], k=job["k"], lr=job["lr"], aux_k=job["d_in"] // 2, matmul=job["matmul"],
        dead_after=max(1, min(10_000_000, job["steps"] * job["batch"] // 10)), optimizer=job.get("optimizer", "row_rms"),
        **{name: job[name] for name in ("warm_up", "decay") if name in job},
    )  # fmt: skip


def product(job: dict[str, Any], start: Tensor) -> tuple[Step, Rebuild]:
    """Nothing but the encoder's product, the least that any step does."""
    weight = torch.randn(job["d_in"], job["d_sae"], dtype=getattr(torch, job["matmul"]), device=job["device"])
    held = torch.empty(job["batch"], job["d_sae"], dtype=weight.dtype, device=job["device"])

    def step(x: Tensor) -> None:
        torch.mm(x.to(weight.dtype), weight, out=held)

    return step, lambda x: x


def saelens(job: dict[str, Any], start: Tensor) -> tuple[Step, Rebuild]:
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=job["d_in"], d_sae=job["d_sae"], k=job["k"], device=job["device"]))
    config = SAETrainerConfig(
        total_training_samples=job["steps"] * job["batch"], train_batch_size_samples=job["batch"],
        lr=job["lr"], lr_end=0.0, lr_warm_up_steps=job["steps"] // 20, lr_decay_steps=job["steps"] // 5, device=job["device"],
        autocast=job["matmul"] == "bfloat16", logger=LoggingConfig(log_to_wandb=False),
    )  # fmt: skip
    trainer = SAETrainer(cfg=config, sae=sae, data_provider=iter(()))

    def step(x: Tensor) -> None:
        trainer._train_step(sae=sae, sae_in=x)
        trainer.n_training_steps += 1

    return step, sae


def dictionary_learning(job: dict[str, Any], start: Tensor) -> tuple[Step, Rebuild]:
    from dictionary_learning.trainers.top_k import TopKTrainer

    trainer = TopKTrainer(
        steps=job["steps"], activation_dim=job["d_in"], dict_size=job["d_sae"], k=job["k"], layer=0, lm_name="none",
        lr=job["lr"], warmup_steps=job["steps"] // 20, decay_start=job["steps"] * 4 // 5, device=job["device"], seed=0,
    )  # fmt: skip
    steps = iter(range(10**9))
    return lambda x: trainer.update(next(steps), x) and None, trainer.ae


def sparsify(job: dict[str, Any], start: Tensor) -> tuple[Step, Rebuild]:
    """What Trainer.fit does to one SAE with its Adam, or its default signum; it has no step function of its own."""
    from sparsify import SparseCoder, SparseCoderConfig

    config = SparseCoderConfig(num_latents=job["d_sae"], k=job["k"])
    sae = SparseCoder(job["d_in"], config, device=job["device"])
    sae.b_dec.data = start.clone()
    if job.get("optimizer") == "signum":
        from sparsify.sign_sgd import SignSGD

        optimizer: torch.optim.Optimizer = SignSGD(sae.parameters(), lr=job["lr"])
    else:
        optimizer = torch.optim.Adam(sae.parameters(), lr=job["lr"])
    warm_up, decay = max(1, job["steps"] // 20), max(1, job["steps"] // 5)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: max(0.0, min(1.0, (step + 1) / warm_up, (job["steps"] - step) / decay))
    )
    since = torch.zeros(job["d_sae"], dtype=torch.long, device=job["device"])

    def step(x: Tensor) -> None:
        sae.set_decoder_norm_to_unit_norm()
        out = sae(x, dead_mask=since > 10_000_000)
        (out.fvu + out.auxk_loss / 32).backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        fired = torch.zeros_like(since, dtype=torch.bool)
        fired[out.latent_indices.flatten()] = True
        since.add_(len(x))
        since[fired] = 0

    return step, lambda x: sae(x).sae_out


TRAINERS = {one.__name__: one for one in (ours, twin, product, saelens, dictionary_learning, sparsify)}


def main() -> None:
    job = json.loads(sys.argv[1])
    if job["threads"]:
        torch.set_num_threads(job["threads"])
    rows = load_file(job["rows"])["rows"]
    first = job.get("unseen", 2 * job["batch"])
    unseen, rows = rows[:first].to(job["device"]), rows[first:]
    batches = rows.split(job["batch"])
    step, rebuild = TRAINERS[job["trainer"]](job, rows.mean(0).to(job["device"]))
    done, wait = 0, torch.cuda.synchronize if job["device"].startswith("cuda") else lambda: None
    for line in sys.stdin:
        if line.strip() == "error":
            with torch.no_grad():
                missed = sum(float((part - rebuild(part)).square().sum()) for part in unseen.split(4096))
                print(f"\nfvu {missed / float((unseen - unseen.mean(0)).square().sum())}", flush=True)
            continue
        if line.strip() == "memory":
            status = dict(entry.split(":", 1) for entry in Path("/proc/self/status").read_text().splitlines())
            print("\nMiB", *(int(status[name].split()[0]) // 1024 for name in ("VmRSS", "VmHWM")), flush=True)
            continue
        seconds = []
        for _ in range(int(line)):
            x = batches[done % len(batches)].to(job["device"])
            wait()
            began = time.perf_counter()
            step(x)
            wait()
            seconds.append(time.perf_counter() - began)
            done += 1
        print("\nseconds", *seconds, flush=True)


if __name__ == "__main__":
    main()
