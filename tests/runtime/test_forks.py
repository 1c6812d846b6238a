"""sae_lm.runtime.forks: tasks are shared out among processes, and none that fails or is killed takes the others along."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from sae_lm.errors import SaeLmWarning
from sae_lm.runtime import forks
from sae_lm.runtime.forks import share_out

pytestmark = pytest.mark.skipif(not forks.can_fork(), reason="only Linux's libraries bear a fork")

PATIENCE = 60.0
"""Seconds, after which something never happens."""


@pytest.fixture
def tasks(tmp_path):
    """Each leaves a file with the number of its process; the first two wait until both have begun."""

    def task(number):
        with (tmp_path / str(number)).open("x") as file:
            file.write(str(os.getpid()))
        ends = time.monotonic() + PATIENCE
        while number < 2 and not (tmp_path / str(1 - number)).exists():
            assert time.monotonic() < ends
            time.sleep(0.01)

    return [lambda number=number: task(number) for number in range(7)]


def by(tmp_path):
    return {int(path.name): int(path.read_text() or 0) for path in tmp_path.iterdir() if path.name.isdigit()}


def test_every_task_is_done_once_by_this_process_or_another(tasks, tmp_path):
    seen = []
    share_out(tasks, 2, seen.append)
    done = by(tmp_path)
    assert sorted(done) == [*range(7)] and len({*done.values()}) == 2 and os.getpid() in done.values()
    assert seen == sorted(seen) and seen[-1] == 7


def test_processes_have_one_thread_each_and_this_one_has_its_own_back(tasks, tmp_path):
    def told(task):
        task()
        (tmp_path / f"threads {os.getpid()}").write_text(str(torch.get_num_threads()))

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        share_out([lambda task=task: told(task) for task in tasks], 2, lambda done: None)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert [path.read_text() for path in tmp_path.glob("threads *")] == ["1", "1"]


def test_a_task_that_fails_in_another_process_is_left_undone_there_and_the_process_goes_on(tasks, tmp_path, capfd):
    first = os.getpid()

    def fails(task):
        task()
        if os.getpid() != first:
            raise ValueError("not for the user's eyes")
        ends = time.monotonic() + PATIENCE
        while [*by(tmp_path).values()].count(first) == len(by(tmp_path)) - 1:
            assert time.monotonic() < ends, "the other ends with its first failure"
            time.sleep(0.01)

    seen = []
    share_out([lambda task=task: fails(task) for task in tasks], 2, seen.append)
    done = [*by(tmp_path).values()]
    assert len(done) == 7 and len(done) - done.count(first) >= 2
    assert seen[-1] == done.count(first), "those that failed do not count"
    assert capfd.readouterr().err == ""


def test_where_another_process_is_killed_the_rest_is_done_with_a_warning(tasks, tmp_path):
    first, seen = os.getpid(), []

    def is_killed(task):
        task()
        if os.getpid() != first:
            os.kill(os.getpid(), signal.SIGKILL)

    killed = [lambda task=task: is_killed(task) for task in tasks]
    with pytest.warns(
        SaeLmWarning, match="was killed by signal 9, as happens where memory runs out; .* less --parallel"
    ):
        share_out(killed, 2, seen.append)
    assert sorted(by(tmp_path)) == [*range(7)] and seen[-1] == 6


def test_without_room_for_another_process_this_one_does_all(tasks, tmp_path, monkeypatch):
    def full():
        raise BlockingIOError("no more processes")

    monkeypatch.setattr(os, "fork", full)
    seen = []
    share_out(tasks[2:], 3, seen.append)
    assert {*by(tmp_path).values()} == {os.getpid()} and seen == [1, 2, 3, 4, 5]


def test_where_nobody_is_to_hear_of_ends_all_is_done_too(tasks, tmp_path):
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        share_out(tasks, 2, lambda done: None)
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert sorted(by(tmp_path)) == [*range(7)]


def test_an_exception_here_ends_the_others(tasks, tmp_path):
    first = os.getpid()

    def stopped(task):
        task()
        if os.getpid() == first:
            raise KeyboardInterrupt
        time.sleep(2 * PATIENCE)

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        share_out([lambda task=task: stopped(task) for task in tasks], 2, lambda done: None)
    assert time.monotonic() - began < PATIENCE
    others = {*by(tmp_path).values()} - {first}
    assert others and not any(_runs(process) for process in others)


ENDLESS = """
import os, time
from sae_lm.runtime.forks import share_out
def task():
    os.write(out, f"{os.getpid()}\\n".encode())  # at once: where nothing is buffered print writes the line's end apart
    time.sleep(60)
out = os.dup(1)
share_out([task] * 3, 3, print)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_where_this_process_is_killed_no_other_outlives_it(how):
    with subprocess.Popen([sys.executable, "-c", ENDLESS], stdout=subprocess.PIPE, text=True) as started:
        processes = [int(started.stdout.readline()) for _ in range(3)]
        assert started.pid in processes
        started.send_signal(how)
        started.wait()
        ends = time.monotonic() + PATIENCE
        while any(_runs(process) for process in processes):
            assert time.monotonic() < ends
            time.sleep(0.05)


def _runs(process):
    try:
        with open(f"/proc/{process}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("count", "processes", "forks_there"), [(7, 1, True), (1, 4, True), (0, 4, True), (7, 4, False)]
)
def test_nothing_is_done_where_no_second_process_would_do_it(
    tasks, tmp_path, monkeypatch, count, processes, forks_there
):
    monkeypatch.setattr(forks, "can_fork", lambda: forks_there)
    share_out(tasks[:count], processes, lambda done: None)
    assert by(tmp_path) == {}
