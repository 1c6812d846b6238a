"""Faults put into running and finished work: kills, full disks, little memory, jumping clocks, two at once, flipped bits.

Each run is a fork of this process, which has run no thread. After a fault the same command is run again, undisturbed,
and what it leaves is held against what an undisturbed run left. Pushes go to a stand-in for the hub (`serving`).
"""

import io
import json
import os
import random
import resource
import shlex
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

from hub_process import wait_until_written
from kills import contents

from sae_lm import cli
from sae_lm.commands import cache, compare, push, show, train  # noqa: F401  imported before the first fork
from sae_lm.commands.verify import verify
from sae_lm.errors import SaeLmError
from sae_lm.sae.load import load
from sae_lm.settings import (
    CacheSettings,
    CompareSettings,
    PushSettings,
    ShowSettings,
    TrainSettings,
    command_line,
)

SENTENCE, TRACEBACK = 2, 3
"""Exit codes of a run that ended in an error of ours, or in another."""
ABORTS = {-signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS}
"""Ends of a library in C or Rust that was refused memory: nothing of Python runs after them, as after a kill."""
LATE = (
    "transformers.models.gpt2.modeling_gpt2",
    "huggingface_hub.file_download",
    "huggingface_hub.hf_api",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "sae_lm.pages.figures",
)
"""What commands import when they come to it; imported before the first fork, so that no run has to."""
LONGEST = 300.0
"""Seconds after which a run is taken to hang."""
KINDS = ("kill", "kill", "full disk", "memory", "clock", "two at once", "finished file")


class Work(NamedTuple):
    """A command whose result lies in ``out``, a folder, or a file of a folder of its own."""

    settings: Any
    out: Path
    reads: tuple[str, ...] = ()
    """works whose results it reads"""

    def words(self, out: Path) -> list[str]:
        """Of the command line, for a result in another place than ``out``."""
        changes = (
            {"repo": self.settings.repo.replace(self.out.name, out.name)}
            if isinstance(self.settings, PushSettings)
            else {"out": out / Path(self.settings.out).relative_to(self.out)}
        )
        return shlex.split(command_line(self.settings.model_copy(update=changes)))[1:]


def works(scratch: Path) -> dict[str, Work]:
    """All commands on a tiny model; each reads what an undisturbed run of those before has left."""
    from conftest import TEXTS, save_tiny_model

    scratch.mkdir(parents=True, exist_ok=True)
    model, text = save_tiny_model(scratch / "model", width=8, layers=2), scratch / "text.jsonl"
    text.write_text("".join(json.dumps({"text": one}) + "\n" for one in TEXTS))
    store, saes, trial = scratch / "whole" / "cache", scratch / "whole" / "train", scratch / "trial"
    of_cache = CacheSettings(
        model=str(model), text=str(text), hooks="0", tokens=2000, context_size=16, batch_size=4, shard_tokens=128,
        dtype="float32", device="cpu", out=trial,
    )  # fmt: skip
    of_train = TrainSettings(
        store=str(store), d_sae=16, k=3, seeds=1, tokens=2500, batch_size=32, arms="none,max_cos:0.5@arch=batchtopk",
        checkpoint_seconds=0.05, held_out=0.5, device="cpu", out=trial,
    )  # fmt: skip
    of_show = ShowSettings(sae=str(saes / "none-seed0"), store=str(store), device="cpu", out=trial / "page.html")
    of_compare = CompareSettings(
        runs=saes, model="none", tokens=400, per_type=8, min_words=1, probe_gate=0.5, contextual=False, controls=False,
        device="cpu", out=trial,
    )  # fmt: skip
    hub = scratch.parent / "hub"
    return {
        "cache": Work(of_cache, trial),
        "train": Work(of_train, trial, ("cache",)),
        "show": Work(of_show, trial, ("cache", "train")),
        "compare": Work(of_compare, trial, ("cache", "train")),
        "push": Work(PushSettings(store=store, repo="me/acts"), hub / "datasets" / "me" / "acts", ("cache",)),
        "push SAE": Work(
            PushSettings(store=saes / "none-seed0", repo="me/saes:layer/first"), hub / "models" / "me" / "saes", ("train",)
        ),
    }  # fmt: skip


def state(work: Work, out: Path) -> dict[str, bytes]:
    """Every file, without what differs with the place it is in."""
    if not isinstance(work.settings, PushSettings):
        return contents(out)
    return {name: content.replace(out.name.encode(), b"") for name, content in contents(out).items()}


class Faults:
    """Draws faults by a seed, and counts what became of them."""

    def __init__(self, scratch: Path, seed: int, only: Iterable[str] = (), without: Iterable[str] = ()) -> None:
        self.scratch, self.draw, self.counts = scratch.resolve(), random.Random(seed), Counter[str]()
        self.works, self.seconds, self.failures = works(self.scratch), {}, []
        self.only = [name for name in self.works if not only or name in only]
        self.kinds = [kind for kind in KINDS if kind not in without]
        self.whole: dict[str, dict[str, bytes]] = {}
        self.number = 0
        for name, work in self.works.items():
            began = time.monotonic()
            assert self.finish(name) == 0, f"{name} fails undisturbed: {self.said()}"
            self.seconds[name] = time.monotonic() - began
            print(f"{name}, undisturbed: {self.seconds[name]:.1f} s", file=sys.stderr, flush=True)
            self.whole[name] = state(work, self.out(name))
            (self.scratch / "whole").mkdir(exist_ok=True)
            if not isinstance(work.settings, PushSettings):
                work.out.rename(self.scratch / "whole" / name)
        self.older = self._older_report()

    def out(self, name: str) -> Path:
        """Where this fault's run puts its result: a new repository each time, as a hub keeps what it once had."""
        work = self.works[name]
        if isinstance(work.settings, PushSettings):
            return work.out.with_name(f"{work.out.name}{self.number:06d}")
        return work.out

    def _older_report(self) -> dict[str, bytes]:
        """Of the same SAEs with another seed."""
        work = self.works["compare"]
        self.works["compare"] = work._replace(settings=work.settings.model_copy(update={"seed": 1}))
        assert self.finish("compare") == 0, self.said()
        self.works["compare"] = work
        older = state(work, work.out)
        work.out.rename(self.scratch / "whole" / "older")
        return older

    def one(self) -> None:
        """One fault, and what comes of it: lost, silently wrong, a traceback or a hang are failures."""
        self.number += 1
        name = self.draw.choice(self.only)
        kind = self.draw.choice(self.kinds)
        self.counts[f"{kind} in {name}"] += 1
        if kind == "finished file":
            self._damage_finished(name)
            return
        shutil.rmtree(self.out(name), ignore_errors=True)
        if name == "compare" and self.draw.random() < 0.5:
            shutil.copytree(self.scratch / "whole" / "older", self.out(name))
        for _ in range(self.draw.choice((1, 1, 3))):
            getattr(self, "_" + kind.replace(" ", "_"))(name)
            if wrong := self._mixed(name):
                self._failed("silently wrong", kind, name, wrong)
        if code := self.finish(name):
            self._failed("lost", kind, name, f"the next run ends with {code}: {self.said()}")
        elif what := self._what_differs(name):
            self._failed("silently wrong", kind, name, what)

    def _mixed(self, name: str) -> str:
        """What is wrong with what a disturbed run has left: it says that it is whole, and is not. Empty where all is well."""
        out = self.out(name)
        if name == "compare" and (out / "report.html").is_file():
            unfinished = (".part", "measured/")
            found = {
                key: content
                for key, content in state(self.works[name], out).items()
                if not any(mark in key for mark in unfinished)
            }
            return "" if found in (self.older, self.whole[name]) else "a page lies beside another comparison's files"
        commits = {"push": "manifest.json", "push SAE": "layer/first/cfg.json"}
        if name in commits:
            wait_until_written()
        if name in commits and (out / commits[name]).is_file() and (what := self._what_differs(name)):
            return f"the repository says that it is whole, and differs in {what}"
        return ""

    def finish(self, name: str) -> int:
        return self._ended(self._start(name))

    def said(self) -> str:
        return (self.scratch / "said").read_text()[-1500:] if (self.scratch / "said").exists() else ""

    def _failed(self, outcome: str, kind: str, name: str, what: str) -> None:
        self.counts[outcome] += 1
        self.failures.append(f"{outcome}: {kind} in {name}: {what}")
        print(self.failures[-1], file=sys.stderr, flush=True)

    def _what_differs(self, name: str) -> str:
        got, whole = state(self.works[name], self.out(name)), self.whole[name]
        return ", ".join(sorted(key for key in got.keys() | whole.keys() if got.get(key) != whole.get(key)))

    def _start(self, name: str, before: Callable[[], object] = lambda: None) -> int:
        (self.scratch / "said").unlink(missing_ok=True)
        pid = os.fork()
        if pid:
            return pid
        code, heard = TRACEBACK, io.StringIO()
        try:
            with redirect_stdout(heard), redirect_stderr(heard):
                words = self.works[name].words(self.out(name))
                before()
                code = cli.main(words)
        except BaseException:
            heard.write(traceback.format_exc())
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
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

    def _in_words(self, kind: str, name: str, before: Callable[[], object], also: Iterable[int] = ()) -> None:
        code = self._ended(self._start(name, before))
        if code == 0 and (what := self._what_differs(name)):
            self._failed("silently wrong", kind, name, f"ends as if well, and differs in {what}")
        if code in also:
            self.counts[f"{kind}: ended by signal {-code}"] += 1
        elif code not in (0, SENTENCE) or (code and not self._is_sentence()):
            self._failed("no sentence", kind, name, f"ends with {code}: {self.said()}")

    def _is_sentence(self) -> bool:
        """The last line is the error of a command, and no traceback came before."""
        lines = self.said().strip().splitlines()
        return bool(lines) and lines[-1].startswith("sae-lm: error: ") and "Traceback" not in self.said()

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
        """The address space may grow by so many bytes."""
        room = int(10 ** self.draw.uniform(5, 8.5))

        def limit() -> None:
            taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (taken + room, resource.RLIM_INFINITY))

        self._in_words("memory", name, limit, ABORTS)

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
        """A bit, a cut or a missing file in what was finished: whoever reads it notices, or `verify` does."""
        whole = self.scratch / "whole"
        folders = [
            whole / one for one in (self.works[name].reads if name in ("compare", "push", "push SAE") else (name,))
        ]
        files = [path for folder in folders for path in sorted(folder.rglob("*")) if self._is_damaged(name, path)]
        if name == "show" or not files:
            return
        victim = self.draw.choice(files)
        before = victim.read_bytes()
        content = bytearray(before)
        if self.draw.random() < 0.6:
            content[self.draw.randrange(len(content))] ^= 1 << self.draw.randrange(8)
        else:
            del content[self.draw.randrange(len(content)) :]
        victim.write_bytes(content)
        try:
            self._read_damaged(name, victim, folders)
        finally:
            victim.write_bytes(before)

    def _is_damaged(self, name: str, path: Path) -> bool:
        """Whether it is one of the files that are damaged: those with a checksum, of a folder of runs its SAEs."""
        if path.suffix not in (".safetensors", ".json") or not path.stat().st_size or path.name == "run.json":
            return False
        return name != "push SAE" or path.parent.name == "none-seed0"

    def _read_damaged(self, name: str, victim: Path, folders: list[Path]) -> None:
        place = next(folder for folder in folders if folder in victim.parents)
        place = place if place.name == "cache" else victim.parent
        if name in ("compare", "push", "push SAE"):
            shutil.rmtree(self.out(name), ignore_errors=True)
            self._in_words_or_noticed(name, victim, place)
            return
        if not self._noticed(name, place):
            self._failed("silently wrong", "finished file", name, f"{victim.name} changed, unnoticed")

    def _in_words_or_noticed(self, name: str, victim: Path, place: Path) -> None:
        code = self.finish(name)
        if code not in (0, SENTENCE) or (code and not self._is_sentence()):
            self._failed("no sentence", "finished file", name, f"{victim.name}: ends with {code}: {self.said()}")
        elif code == 0 and self._what_differs(name):
            pushed = name != "compare"  # a store on this disk is read without its checksums, which `verify` compares
            if pushed or not self._noticed(name, place):
                self._failed("silently wrong", "finished file", name, f"{victim.name} changed, and is taken as it is")

    def _noticed(self, name: str, place: Path) -> bool:
        try:
            if verify(place):
                return True
            if place.name != "cache":
                load(place, "cpu")
        except SaeLmError:
            return True
        except Exception as error:
            self._failed("no sentence", "finished file", name, f"{place.name}: {error!r}")
            return True
        return False


def report(faults: Faults) -> str:
    """One line of counts, and one for each failure."""
    outcomes = {name: faults.counts[name] for name in ("lost", "silently wrong", "no sentence")}
    total = sum(number for name, number in faults.counts.items() if " in " in name)
    counted = ", ".join(f"{number} {name}" for name, number in outcomes.items())
    return "\n".join([*faults.failures, f"{total} faults: {counted}", f"{dict(sorted(faults.counts.items()))}"])


def main(
    scratch: Path, seed: int, seconds: float, most: int, only: Iterable[str] = (), without: Iterable[str] = ()
) -> int:
    from importlib import import_module

    import torch

    for name in LATE:
        import_module(name)
    torch.set_num_threads(1)
    faults, end, done = Faults(scratch, seed, only, without), time.monotonic() + seconds, 0
    while done < most and time.monotonic() < end:
        faults.one()
        done += 1
        if done % 10 == 0:
            print(done, "faults,", len(faults.failures), "failures", file=sys.stderr, flush=True)
    print(report(faults))
    return 1 if faults.failures else 0
