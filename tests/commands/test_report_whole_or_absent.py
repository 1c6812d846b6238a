"""A comparison that is killed, or run twice at once, leaves no page beside another comparison's files."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from example_report import make_report

from sae_lm.commands import compare as module
from sae_lm.pages import figures as figures_module
from sae_lm.runtime.locks import only_writer


class Killed(BaseException):
    """As a signal 9 comes, but that this process goes on."""


@pytest.fixture(autouse=True)
def one_figure(monkeypatch):
    """Of two kinds, so that the second report lacks one that the first had; the drawing itself is another test's."""

    def write(report, folder):
        folder.mkdir(parents=True, exist_ok=True)
        names = ["seeds.svg"] if report["seeds"][0] else ["seeds.svg", "frontier.svg"]
        for name in names:
            (folder / name).write_text(str(report["seeds"]))
        return [folder / name for name in names]

    monkeypatch.setattr(figures_module, "write_figures", write)
    monkeypatch.setattr("sae_lm.pages.report.write_html", lambda report, path, latents: path.write_text(mark(report)))


def mark(report):
    return str(report["seeds"])


def report_of(first_seed):
    report = make_report()
    return report | {"seeds": [seed + first_seed for seed in report["seeds"]]}


def state(out):
    """Relative name -> content, of what is not being written."""
    files = {path.relative_to(out).as_posix(): path.read_text() for path in out.rglob("*") if path.is_file()}
    return {name: content for name, content in files.items() if not name.startswith("report.part")}


def test_a_kill_at_any_step_leaves_the_old_report_the_new_one_or_no_page(tmp_path, monkeypatch):
    whole = {}
    for name, seed in (("old", 0), ("new", 5)):
        (tmp_path / name / "figures").mkdir(parents=True)
        module._write(report_of(seed), tmp_path / name)
        whole[name] = state(tmp_path / name)
    assert whole["old"].keys() - whole["new"].keys() == {"figures/frontier.svg"}
    seen, step = set(), 0
    while True:
        out = tmp_path / f"killed{step}"
        (out / "figures").mkdir(parents=True)
        module._write(report_of(0), out)
        left = step

        def kill(real):
            def called(*arguments, **options):
                nonlocal left
                left -= 1
                if left < 0:
                    raise Killed
                return real(*arguments, **options)

            return called

        with monkeypatch.context() as patched:
            for name in ("unlink", "replace"):
                patched.setattr(Path, name, kill(getattr(Path, name)))
            patched.setattr(os, "replace", kill(os.replace))
            patched.setattr(module.shutil, "rmtree", lambda *_, **__: None)  # a kill cleans nothing
            try:
                module._write(report_of(5), out)
                ended = True
            except Killed:
                ended = False
        found = state(out)
        kind = next((name for name, content in whole.items() if content == found), "no page")
        assert kind != "no page" or "report.html" not in found, (step, found.keys())
        of_old = [name for name in found if found[name] == whole["old"].get(name)]
        of_new = [name for name in found if found[name] == whole["new"].get(name)]
        assert not (set(of_old) - set(of_new) and set(of_new) - set(of_old)), (step, of_old, of_new)
        seen.add(kind)
        module._write(report_of(5), out)
        assert state(out) == whole["new"]
        if ended:
            break
        step += 1
    assert seen == {"old", "no page", "new"} and step > 5


def test_two_that_write_at_once_leave_the_report_of_one_of_them(tmp_path):
    out = tmp_path / "report"
    (out / "figures").mkdir(parents=True)
    threads = [threading.Thread(target=module._write, args=(report_of(seed), out)) for seed in (0, 5, 0, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = state(out)
    seeds = json.loads(found["report.json"])["seeds"]
    assert found["report.html"] == str(seeds) == found["figures/seeds.svg"]
    assert ("figures/frontier.svg" in found) == (seeds[0] == 0) and not (out / "report.part").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="it has no such locks")
def test_the_lock_of_a_folder_leaves_nothing_there_and_ends_with_its_process(tmp_path):
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom sae_lm.runtime.locks import only_writer\n"
        "with only_writer(Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    entered = threading.Event()

    def enter():
        with only_writer(tmp_path):
            entered.set()

    waiting = threading.Thread(target=enter)
    waiting.start()
    assert not entered.wait(0.2)
    holder.kill()
    holder.wait()
    assert entered.wait(20) and not list(tmp_path.iterdir())
    waiting.join()
