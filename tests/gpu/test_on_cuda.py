"""What only a GPU can tell, within ten minutes: ``python -m pytest tests/gpu -n 0 -s``. Skipped without CUDA.

Figures are printed, each on a line that begins with ``gpu:``. ``SAE_LM_GPU_TESTS=cpu`` runs the same code, small, on a CPU: it
shows that the script works and says nothing of a GPU.
"""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from command_line import flags_of
from conftest import save_tiny_model
from recipes import training_recipe
from safetensors.torch import load_file

from sae_lm.commands.cache import cache
from sae_lm.commands.train import train
from sae_lm.penalties.arms import parse_arm
from sae_lm.runtime.timing import timing_line
from sae_lm.settings import TrainSettings
from sae_lm.training.trainer import ArmTraining

ROOT = Path(__file__).parents[2]
DEVICE = os.environ.get("SAE_LM_GPU_TESTS", "cuda")
SMALL = DEVICE == "cpu"
pytestmark = pytest.mark.skipif(not SMALL and not torch.cuda.is_available(), reason="torch sees no CUDA device here")

ARMS = (
    "none,none@arch=relu,none@arch=jumprelu,none@arch=batchtopk,none@arch=matryoshka@prefixes=2,max_cos:0.25@fvu=0.01,abs_cos,"
    "sq_cos,freq_cos,coactive@anchored,c2r@arch=batchtopk,silent,align:0.1,none@decoder=0.95"
)


def wait():
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def say(*words):
    print("\ngpu:", *words, flush=True)


@pytest.fixture
def train_settings(tiny_store, tmp_path):
    def make(out, **changes):
        values = {"store": tiny_store, "hook": "blocks.1.hook_out", "d_sae": 64, "k": 4, "arms": ARMS, "seeds": 1, "tokens": 4000,
                  "batch_size": 100, "lr": 2e-3, "dead_after": 500, "matmul": "float32", "device": DEVICE, "out": tmp_path / out}  # fmt: skip
        return TrainSettings(**{**values, **changes})

    return make


def weights(folder):
    return {path.parent.name: load_file(path) for path in folder.glob("*/sae_weights.safetensors")}


def test_readmes_example_runs_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    block = (ROOT / "README.md").read_text().split("<!-- tested -->\n```python\n")[1].split("```")[0]
    space = {}
    exec(compile(block, "README.md", "exec"), space)
    losses = space["loss"], space["spliced_loss"], space["ablated_loss"]
    say(
        f"README's example on {next(space['model'].parameters()).device}: {losses[0]:.3f}, {losses[1]:.3f}, {losses[2]:.3f} nats"
    )
    assert losses[0] < losses[1] < losses[2]


def test_every_arm_trains_here_to_what_it_is_on_the_cpu(train_settings):
    there, here = weights(train(train_settings("there"))), weights(train(train_settings("here", device="cpu")))
    worst = {}
    for name, tensors in here.items():
        worst[name] = max(
            float((there[name][key] - value).abs().max() / value.abs().max()) for key, value in tensors.items()
        )
    say(
        "largest difference from the CPU, over the tensor's largest number:",
        json.dumps({n: float(f"{w:.1e}") for n, w in worst.items()}),
    )
    assert len(worst) == len(ARMS.split(",")) and max(worst.values()) < 0.05


def test_a_training_killed_here_goes_on(train_settings):
    arms = "none,max_cos:0.25@fvu=0.01,align:0.1,none@arch=matryoshka@prefixes=2"
    settings = train_settings("killed", arms=arms, tokens=60_000, checkpoint_seconds=0.2, log_every=10)
    flags = flags_of(settings)
    process = subprocess.Popen([sys.executable, "-m", "sae_lm", "train", *flags], cwd=ROOT)
    while process.poll() is None and not list(settings.out.glob("state/seed0-*/[0-9]*/state.json")):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed = not (settings.out / "none-seed0").exists()
    done = subprocess.run([sys.executable, "-m", "sae_lm", "train", *flags], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not killed or "continuing at step" in done.stdout
    again, whole = weights(settings.out), weights(train(train_settings("whole", arms=arms, tokens=60_000)))
    equal = [name for name in whole if all(torch.equal(value, again[name][key]) for key, value in whole[name].items())]
    say(
        f"killed {'in the middle' if killed else 'too late'}; with the same bits as without a kill: {len(equal)} of {len(whole)} SAEs"
    )
    for name, tensors in whole.items():
        for key, value in tensors.items():
            assert float((again[name][key] - value).abs().max()) < 0.1 * float(value.abs().max()), (name, key)


D_IN, D_SAE, K, BATCH, STEPS = (64, 512, 8, 64, 12) if SMALL else (2304, 65_536, 64, 4096, 60)


@pytest.mark.parametrize("arm", ["none", "none@arch=batchtopk", "max_cos:0.25", "none@arch=jumprelu"])
def test_speed_of_training_and_of_its_parts(arm):
    recipe = training_recipe(10**6, d_sae=D_SAE, k=K, lr=1e-4, aux_k=D_IN // 2, batch_size=BATCH, matmul="bfloat16")
    run = ArmTraining(parse_arm(arm), 0, recipe, torch.zeros(D_IN), DEVICE)
    rows = torch.randn(8, BATCH, D_IN, generator=torch.Generator().manual_seed(0)).div_(D_IN**0.5).to(DEVICE)
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for step in range(STEPS // 6):
        run.step(rows[step % 8], step)
    wait()
    before, began = dict(run.timer.seconds), time.perf_counter()
    for step in range(STEPS // 6, STEPS):
        run.step(rows[step % 8], step)
    wait()
    seconds = time.perf_counter() - began
    spent = {part: value - before.get(part, 0.0) for part, value in run.timer.seconds.items()}
    peak = f", {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB at most" if DEVICE == "cuda" else ""
    steps = STEPS - STEPS // 6
    say(
        f"{arm}, {D_IN} -> {D_SAE}, k {K}, batch {BATCH}: {steps * BATCH / seconds:,.0f} acts/s{peak}; {timing_line(spent)}"
    )
    assert sum(spent.values()) == pytest.approx(seconds, rel=0.25)  # the device's clock and the wall's


@pytest.mark.skipif(find_spec("sparsify") is None, reason="sparsify is not installed: pip install eai-sparsify")
def test_speed_of_sparsify_beside_it():
    sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))
    from training_steps import sparsify

    job = {"d_in": D_IN, "d_sae": D_SAE, "k": K, "device": DEVICE, "lr": 1e-4, "steps": 10**6, "batch": BATCH}
    step, _ = sparsify(job, torch.zeros(D_IN, device=DEVICE))
    rows = torch.randn(8, BATCH, D_IN, generator=torch.Generator().manual_seed(0)).div_(D_IN**0.5).to(DEVICE)
    for number in range(STEPS // 6):
        step(rows[number % 8])
    wait()
    began = time.perf_counter()
    for number in range(STEPS // 6, STEPS):
        step(rows[number % 8])
    wait()
    say(f"sparsify, the same sizes: {(STEPS - STEPS // 6) * BATCH / (time.perf_counter() - began):,.0f} acts/s")


def test_speed_of_caching_beside_a_bare_forward_pass(cache_settings, tmp_path):
    from transformers import AutoModel

    width, layers, tokens = (64, 3, 1500) if SMALL else (1024, 12, 300_000)
    folder = save_tiny_model(tmp_path / "model", width, layers)
    model = AutoModel.from_pretrained(folder).to(DEVICE).eval()
    ids = torch.zeros(256, 32, dtype=torch.long, device=DEVICE)
    with torch.inference_mode():
        for timed in (False, True):
            wait()
            began = time.perf_counter()
            for _ in range(max(1, tokens // ids.numel())):
                model(ids, use_cache=False)
            wait()
            bare = max(1, tokens // ids.numel()) * ids.numel() / (time.perf_counter() - began) if timed else 0.0
    del model
    settings = {"model": str(folder), "hooks": f"blocks.{layers - 1}.hook_out", "context_size": 32, "batch_size": 256, "repeat": True,
                "shard_tokens": 65_536, "device": DEVICE}  # fmt: skip
    cache(cache_settings(tmp_path / "warm", tokens=1000, **settings))
    began = time.perf_counter()
    cache(cache_settings(tmp_path / "acts", tokens=tokens, **settings))
    cached = tokens / (time.perf_counter() - began)
    say(f"caching {cached:,.0f} tokens/s with loading and committing, the bare pass {bare:,.0f}: {cached / bare:.0%}")
