"""Faults put into running and finished work: kills, full disks, little memory, jumping clocks, two at once, flipped bits.

Each run is a fork of this process, which has run no thread. After a fault the same command is run again, undisturbed,
and what it leaves is held against what an undisturbed run left.
"""

import io
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

from kills import contents

from sae_lm.commands.cache import cache
from sae_lm.commands.show import show
from sae_lm.commands.train import train
from sae_lm.commands.verify import verify
from sae_lm.errors import SaeLmError
from sae_lm.sae.load import load
from sae_lm.settings import CacheSettings, ShowSettings, TrainSettings

SENTENCE, TRACEBACK = 2, 3
"""Exit codes of a run that ended in an error of ours, or in another."""
LONGEST = 120.0
"""Seconds after which a run is taken to hang."""


class Work(NamedTuple):
    """A command whose result lies in ``out``, a folder, or a file of a folder of its own."""

    verb: Callable[[Any], object]
    settings: Any
    out: Path


def works(scratch: Path) -> dict[str, Work]:
    """cache, train and show, on a tiny model; each reads what an undisturbed run of the one before has left."""
    import json

    from conftest import TEXTS, save_tiny_model

    model, text = save_tiny_model(scratch / "model", width=8, layers=2), scratch / "text.jsonl"
    text.write_text("".join(json.dumps({"text": one}) + "\n" for one in TEXTS))
    store, saes, trial = scratch / "whole" / "cache", scratch / "whole" / "train", scratch / "trial"
    of_cache = CacheSettings(
        model=str(model), text=str(text), hooks="0", tokens=2000, context_size=16, batch_size=4, shard_tokens=128,
        dtype="float32", device="cpu", out=trial,
    )  # fmt: skip
    of_train = TrainSettings(
        store=str(store), d_sae=16, k=3, seeds=1, tokens=6000, batch_size=32, arms="none,max_cos:0.5@arch=batchtopk",
        checkpoint_seconds=0.05, device="cpu", out=trial,
    )  # fmt: skip
    of_show = ShowSettings(sae=str(saes / "none-seed0"), store=str(store), device="cpu", out=trial / "page.html")
    return {
        "cache": Work(cache, of_cache, trial),
        "train": Work(train, of_train, trial),
        "show": Work(show, of_show, trial),
    }


class Faults:
    """Draws faults by a seed, and counts what became of them."""

    def __init__(self, scratch: Path, seed: int) -> None:
        self.scratch, self.draw, self.counts = scratch.resolve(), random.Random(seed), Counter[str]()
        self.works, self.seconds, self.failures = works(self.scratch), {}, []
        self.whole: dict[str, dict[str, bytes]] = {}
        for name, work in self.works.items():
            began = time.monotonic()
            assert self.finish(name) == 0, f"{name} fails undisturbed"
            self.seconds[name] = time.monotonic() - began
            self.whole[name] = contents(work.out)
            (self.scratch / "whole").mkdir(exist_ok=True)
            work.out.rename(self.scratch / "whole" / name)

    def one(self) -> None:
        """One fault, and what comes of it: lost, silently wrong, a traceback or a hang are failures."""
        name = self.draw.choice([*self.works])
        kind = self.draw.choice(["kill", "kill", "full disk", "memory", "clock", "two at once", "finished file"])
        self.counts[f"{kind} in {name}"] += 1
        if kind == "finished file":
            self._damage_finished(name)
            return
        shutil.rmtree(self.works[name].out, ignore_errors=True)
        for _ in range(self.draw.choice((1, 1, 3))):
            getattr(self, "_" + kind.replace(" ", "_"))(name)
        if code := self.finish(name):
            self._failed("lost", kind, name, f"the next run ends with {code}: {self.said()}")
        elif contents(self.works[name].out) != self.whole[name]:
            self._failed("silently wrong", kind, name, self._what_differs(name))

    def finish(self, name: str) -> int:
        return self._ended(self._start(name))

    def said(self) -> str:
        return (self.scratch / "said").read_text()[-600:] if (self.scratch / "said").exists() else ""

    def _failed(self, outcome: str, kind: str, name: str, what: str) -> None:
        self.counts[outcome] += 1
        self.failures.append(f"{outcome}: {kind} in {name}: {what}")

    def _what_differs(self, name: str) -> str:
        got, whole = contents(self.works[name].out), self.whole[name]
        return ", ".join(sorted(key for key in got.keys() | whole.keys() if got.get(key) != whole.get(key)))

    def _start(self, name: str, before: Callable[[], object] = lambda: None) -> int:
        pid = os.fork()
        if pid:
            return pid
        code, heard = TRACEBACK, io.StringIO()
        try:
            with redirect_stdout(heard), redirect_stderr(heard):
                before()
                self.works[name].verb(self.works[name].settings)
            code = 0
        except SaeLmError as problem:
            code = SENTENCE
            heard.write(str(problem))
        except BaseException:
            heard.write(traceback.format_exc())
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            (self.scratch / "said").write_text(heard.getvalue())
        finally:
            os._exit(code)

    def _ended(self, pid: int) -> int:
        """The exit code of a run, negative for the signal that ended it."""
        end = time.monotonic() + LONGEST
        while True:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > end:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return -signal.SIGALRM
            time.sleep(0.002)

    def _in_words(self, kind: str, name: str, before: Callable[[], object]) -> None:
        if (code := self._ended(self._start(name, before))) not in (0, SENTENCE):
            self._failed("no sentence", kind, name, f"ends with {code}: {self.said()}")

    def _kill(self, name: str) -> None:
        pid = self._start(name)
        time.sleep(self.draw.uniform(0, 1) * self.seconds[name])
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

    def _full_disk(self, name: str) -> None:
        """No file may be longer than so many bytes."""
        most = int(10 ** self.draw.uniform(1, 4.5))

        def limit() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))

        self._in_words("full disk", name, limit)

    def _memory(self, name: str) -> None:
        """The address space may grow by so many bytes; what comes of that may be any error, but nothing wrong."""
        room = int(10 ** self.draw.uniform(5, 8.5))

        def limit() -> None:
            taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (taken + room, resource.RLIM_INFINITY))

        self.counts[f"memory: ended with {self._ended(self._start(name, limit))}"] += 1

    def _clock(self, name: str) -> None:
        """The time of day jumps back and forth by up to a day; what is monotonic stays so."""
        draw, real, real_ns = random.Random(self.draw.random()), time.time, time.time_ns
        jump = lambda: draw.choice((0, 0, 86400, -86400, 3600)) + draw.random()  # noqa: E731

        def move() -> None:
            time.time = lambda: real() + jump()
            time.time_ns = lambda: real_ns() + int(jump() * 1e9)

        self._in_words("clock", name, move)

    def _two_at_once(self, name: str) -> None:
        pid = self._start(name)
        time.sleep(self.draw.uniform(0, 0.5) * self.seconds[name])
        other = self._start(name)
        codes = self._ended(other), self._ended(pid)
        if not {*codes} <= {0, SENTENCE} or 0 not in codes:
            self._failed("no sentence", "two at once", name, f"end with {codes}: {self.said()}")

    def _damage_finished(self, name: str) -> None:
        """A bit, a cut or a missing file in what was finished: it is noticed when it is verified, or it does not matter."""
        out = self.works[name].out
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(self.scratch / "whole" / name, out)
        files = [
            path for path in sorted(out.rglob("*")) if path.suffix in (".safetensors", ".json") and path.stat().st_size
        ]
        if name == "show" or not files:
            return
        victim = self.draw.choice([path for path in files if name == "cache" or path.parent != out])
        content = bytearray(victim.read_bytes())
        if self.draw.random() < 0.6:
            content[self.draw.randrange(len(content))] ^= 1 << self.draw.randrange(8)
        else:
            del content[self.draw.randrange(len(content)) :]
        victim.write_bytes(content)
        place = out if name == "cache" else victim.parent
        try:
            noticed = bool(verify(place))
            if name == "train" and not noticed:
                load(place, "cpu")
        except SaeLmError:
            noticed = True
        except Exception as error:
            self._failed("no sentence", "finished file", name, f"{victim.name}: {error!r}")
            return
        if not noticed:
            self._failed("silently wrong", "finished file", name, f"{victim.relative_to(out)} changed, unnoticed")


def report(faults: Faults) -> str:
    """One line of counts, and one for each failure."""
    outcomes = {name: faults.counts[name] for name in ("lost", "silently wrong", "no sentence")}
    total = sum(number for name, number in faults.counts.items() if " in " in name)
    counted = ", ".join(f"{number} {name}" for name, number in outcomes.items())
    return "\n".join([*faults.failures, f"{total} faults: {counted}", f"{dict(sorted(faults.counts.items()))}"])


def main(scratch: Path, seed: int, seconds: float, most: int) -> int:
    import torch
    import transformers.models.gpt2.modeling_gpt2  # noqa: F401

    torch.set_num_threads(1)
    faults, end, done = Faults(scratch, seed), time.monotonic() + seconds, 0
    while done < most and time.monotonic() < end:
        faults.one()
        done += 1
        if done % 20 == 0:
            print(done, "faults,", len(faults.failures), "failures", file=sys.stderr, flush=True)
    print(report(faults))
    return 1 if faults.failures else 0
