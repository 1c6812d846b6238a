"""Cache, train, show and compare for an hour in one process, and say whether memory, files or threads grow.

    OMP_NUM_THREADS=1 python tests/benchmarks/soak.py --minutes 60 --samples soak.jsonl --picture soak.png

A round caches 4,096 rows of the embedded model, trains two arms with checkpoints, reads them with `inspect` and
`verify`; every fifth shows and compares as well, every fifth runs `sae-lm train` in a process of its own. What the
process holds is taken at the end of each round. The rule for "growing" is in tests/support/soaking.py.
"""

import argparse
import contextlib
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch

sys.path[:0] = [str(Path(__file__).parent.parent / "support"), str(Path(__file__).parent.parent.parent)]

EVERY = 5
SAFE_OPEN = safetensors.safe_open


def main() -> int:
    """1 where something grows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--samples", type=Path, default=Path("soak.jsonl"), help="what was taken, as JSON lines")
    parser.add_argument("--picture", type=Path, help="PNG or SVG of it")
    parser.add_argument(
        "--read-whole", action="store_true", help="read the bytes of tensors by another way: see ReadWhole"
    )
    parser.add_argument("--judge", action="store_true", help="only judge and draw the samples that are there")
    options = parser.parse_args()
    if options.read_whole:
        safetensors.safe_open = safetensors.torch.safe_open = ReadWhole
    if not options.judge:
        options.samples.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory() as name:
            os.environ["TMPDIR"] = tempfile.tempdir = str(Path(name, "temporary"))
            Path(tempfile.tempdir).mkdir()
            soak(Path(name), options.minutes * 60, options.samples)
    from soaking import draw, judge, read

    if options.picture:
        draw(options.samples, options.picture)
    samples, commands = read(options.samples)
    print(f"{len(samples)} rounds, {len(commands)} commands, {samples[-1]['seconds'] - samples[0]['seconds']:.0f} s")
    found = judge(options.samples)
    for what, (level, rise, low, high, verdict) in found.items():
        print(
            f"{what}: {level:,.0f}, rise {rise:+.2f} ({low:+.2f} to {high:+.2f}) over the last three quarters: {verdict}"
        )
    return int(any(one.verdict == "growing" for one in found.values()))


class ReadWhole:
    """In place of ``safetensors.safe_open``, which never frees two integers of each tensor that it gives to torch.

    ``safetensors.torch.load`` of a file's bytes frees all. What still grows is not these integers.
    """

    def __init__(self, path: str | Path, framework: str = "pt", device: str = "cpu", **others: Any) -> None:
        self.file = SAFE_OPEN(path, framework=framework, device=device, **others)
        self.path, self.torch = path, framework in ("pt", "torch")

    def __enter__(self) -> "ReadWhole":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.__exit__(None, None, None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)  # names and shapes, of which nothing is kept

    def get_slice(self, name: str) -> "WholeSlice":
        return WholeSlice(self, name)

    def get_tensors(self) -> dict[str, Any]:
        return safetensors.torch.load(Path(self.path).read_bytes())

    def get_tensor(self, name: str) -> Any:
        return self.get_tensors()[name] if self.torch else self.file.get_tensor(name)


class WholeSlice:
    """One tensor of a file that is `ReadWhole`."""

    def __init__(self, file: ReadWhole, name: str) -> None:
        self.file, self.name, self.slice = file, name, file.file.get_slice(name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.slice, name)

    def __getitem__(self, place: Any) -> Any:
        return self.file.get_tensor(self.name)[place]


def soak(scratch: Path, seconds: float, samples: Path) -> None:
    """Rounds until the time is over, each noted in ``samples``."""
    import torch
    from soaking import take

    torch.set_num_threads(1)
    end, number = time.monotonic() + seconds, 0
    with open(os.devnull, "w") as nowhere:
        while time.monotonic() < end:
            folder = scratch / "round"
            with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
                one_round(folder, number)
            if number % EVERY == 2:
                note(samples, command(folder))
            shutil.rmtree(folder)
            gc.collect()
            note(samples, take(Path(tempfile.gettempdir())))
            number += 1


def one_round(folder: Path, number: int) -> None:
    import sae_lm

    store = sae_lm.cache(
        sae_lm.CacheSettings(
            hooks="blocks.2.hook_resid_post", tokens=4096, shard_tokens=1024, context_size=64, device="cpu",
            out=folder / "acts",
        )
    )  # fmt: skip
    runs = sae_lm.train(
        sae_lm.TrainSettings(
            store=str(store), d_sae=256, k=8, seeds=1, tokens=16_384, batch_size=256, arms="none,max_cos:0.25",
            checkpoint_seconds=0.2, log_every=4, device="cpu", out=folder / "runs",
        )
    )  # fmt: skip
    for path in (store, runs / "none-seed0"):
        sae_lm.inspect(str(path))
        assert not sae_lm.verify(path)
    if number % EVERY == 1:
        sae_lm.show(
            sae_lm.ShowSettings(
                sae=str(runs / "none-seed0"), store=str(store), device="cpu", out=folder / "show" / "latents.html"
            )
        )
        sae_lm.compare(
            sae_lm.CompareSettings(
                runs=runs, tokens=400, ce_contexts=4, per_type=4, min_words=1, controls=False, device="cpu",
                out=folder / "report",
            )
        )  # fmt: skip


PROGRAM = """
import sys
from pathlib import Path
from sae_lm.cli import main

code = main(sys.argv[1:])
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print("peak", int(status["VmHWM"].split()[0]) / 1024)  # what the system tells a parent is the parent's own, if more
sys.exit(code)
"""


def command(folder: Path) -> dict[str, float]:
    """Run one in a process of its own, over what the round has left: its peak memory."""
    words = [
        "train", "--store", folder / "acts", "--d-sae", "256", "--k", "8", "--seeds", "1", "--tokens", "16k",
        "--device", "cpu", "--out", folder / "more",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True
    )
    return {"seconds": time.monotonic(), "peak MiB of commands": float(done.stdout.split()[-1])}


def note(samples: Path, values: dict[str, float]) -> None:
    with samples.open("a") as file:
        file.write(json.dumps(values) + "\n")


if __name__ == "__main__":
    sys.exit(main())
