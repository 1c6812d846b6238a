"""Kill a verb with signal 9 again and again, and compare what it ends with: ``python kills.py VERB SETTINGS.json KILLS SEED``.

Everything is imported once; each run is a fork of this process, which has run no thread. Prints the number
of kills that hit a run before its end.
"""

import json
import os
import random
import re
import signal
import sys
import time
from pathlib import Path

import datasets  # noqa: F401
import torch
import transformers.models.gpt2.modeling_gpt2  # noqa: F401

from sae_lm.commands.cache import cache
from sae_lm.commands.train import train
from sae_lm.settings import CacheSettings, TrainSettings

torch.set_num_threads(1)
TIMED = re.compile(rb'"(penalty_share|rows_per_second)": [^,}]*')
VERBS = {"cache": (cache, CacheSettings), "train": (train, TrainSettings)}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file; run.json without the name of the folder that it is in, logs without what the clock says."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    files = {name: TIMED.sub(b"", content) if name.endswith("jsonl") else content for name, content in files.items()}
    return {
        name: content.replace(folder.name.encode(), b"") if name == "run.json" else content
        for name, content in files.items()
    }


def start(verb: str, settings: CacheSettings | TrainSettings) -> int:
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        VERBS[verb][0](settings)
        os._exit(0)
    return pid


def main(verb: str, path: str, wanted: int, seed: int) -> None:
    values = json.loads(Path(path).read_text())
    out, draw, kills, stores = Path(values.pop("out")), random.Random(seed), 0, 0
    whole = VERBS[verb][1](**values, out=out / "whole")
    began = time.monotonic()
    assert os.waitpid(start(verb, whole), 0)[1] == 0
    seconds = time.monotonic() - began
    while kills < wanted:
        settings = VERBS[verb][1](**values, out=out / f"killed{stores}")
        stores += 1
        while True:
            pid = start(verb, settings)
            time.sleep(draw.uniform(0.1, 1) * seconds)
            os.kill(pid, signal.SIGKILL)
            if os.waitpid(pid, 0)[1] == 0:
                seconds *= 0.8  # it was at its end: sooner
                break
            kills += 1
            if kills >= wanted:
                assert os.waitpid(start(verb, settings), 0)[1] == 0
                break
        assert contents(settings.out) == contents(whole.out), f"store {stores - 1} differs after {kills} kills"
        print(kills, "kills,", stores, "stores", file=sys.stderr, flush=True)
    print(kills)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
