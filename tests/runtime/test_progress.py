"""sae_lm.runtime.progress: lines where there is no terminal."""

import os
import time

from sae_lm.runtime.progress import Progress


def test_work_slower_than_one_a_second_still_has_a_rate_and_work_in_a_hurry_no_decimals(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Progress("comparing", 300, "SAE") as bar:
        now[0] = 100.0
        bar.update(20, arm="none")
    with Progress("caching", 2_000_000, "tok") as bar:
        now[0] = 200.0
        bar.update(2_000_000)
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first == "comparing: 20/300 SAE, 0.2 SAE/s, 100 s, 1400 s left, arm none"
    assert last == "caching: 2,000,000/2,000,000 tok, 20,000 tok/s, 100 s, done"


def test_a_forked_process_has_no_part_in_the_line(monkeypatch, capsys):
    with Progress("measuring", 4, "SAE") as bar:
        bar.reach(2)
        bar.reach(1)
        assert bar.done == 2
        with monkeypatch.context() as forked:
            forked.setattr(os, "getpid", lambda: -1)
            bar.update(1)
        assert bar.done == 2
    assert "measuring: 2/4 SAE" in capsys.readouterr().err
