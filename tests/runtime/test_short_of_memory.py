"""Memory that runs out in any command is one sentence: what, how much, what to do; whatever form the error comes in."""

import errno
import re
import subprocess
import sys

import pytest

from sae_lm import cli
from sae_lm.comparison.kept import NOT_IN_PARTS
from sae_lm.errors import SaeError
from sae_lm.runtime.memory import LESS_MEMORY, is_out_of_memory
from sae_lm.settings import VERBS
from sae_lm.training.recipe import NOT_IN_RECIPE

TORCH = (
    "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 4000000000 bytes. Error code 12 (Cannot allocate memory)"
)


class OutOfMemoryError(RuntimeError):
    """As torch.OutOfMemoryError and triton's are called."""


@pytest.mark.parametrize(
    ("problem", "how_much"),
    [
        (MemoryError(), ""),
        (MemoryError("Unable to allocate 7.45 GiB for an array with shape (1000000000,)"), "8.0 GB more"),
        (RuntimeError(TORCH), "4.0 GB more"),
        (RuntimeError("std::bad_alloc"), ""),
        (RuntimeError("could not create a memory object"), ""),
        (RuntimeError("can't start new thread"), ""),
        (RuntimeError("unable to mmap 1024 bytes from file <a.safetensors>: Cannot allocate memory (12)"), "0.0 MB more"),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "2.1 GB more"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), ""),
        (ImportError("_c_internal_utils.so: failed to map segment from shared object"), ""),
        (ImportError("libtorch_cpu.so: cannot allocate memory in static TLS block"), ""),
    ],
)  # fmt: skip
def test_memory_that_runs_out_ends_a_command_in_one_sentence(problem, how_much, monkeypatch, capsys):
    def run(verb, settings):
        raise problem

    monkeypatch.setattr(cli, "run", run)
    assert cli.main(["train", "--store", "a", "--out", "b"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("sae-lm: error: memory ran out in `sae-lm train` (") and said.count("\n") == 1
    assert how_much in said and said.endswith(f"); {LESS_MEMORY['train']}\n")


def test_a_file_is_not_called_damaged_where_memory_ran_out_while_it_was_read(monkeypatch, capsys):
    def run(verb, settings):
        try:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        except OSError:
            raise SaeError("cfg.json cannot be read; the folder is damaged, make it anew") from None

    monkeypatch.setattr(cli, "run", run)
    assert cli.main(["inspect", "a"]) == 2
    said = capsys.readouterr().err
    assert "memory ran out in `sae-lm inspect`" in said and "damaged" not in said and "free some memory" in said


@pytest.mark.parametrize("problem", [ValueError("a"), RuntimeError("shapes differ"), KeyError("memory")])
def test_another_error_of_ours_is_still_a_traceback(problem, monkeypatch):
    def run(verb, settings):
        raise problem

    monkeypatch.setattr(cli, "run", run)
    assert not is_out_of_memory(problem)
    with pytest.raises(type(problem)):
        cli.main(["inspect", "a"])


@pytest.mark.parametrize("verb", LESS_MEMORY)
def test_what_is_advised_are_settings_of_that_command(verb):
    flags = re.findall(r"--([a-z-]+)", LESS_MEMORY[verb])
    assert flags and {flag.replace("-", "_") for flag in flags} <= VERBS[verb].model_fields.keys()


@pytest.mark.parametrize(
    ("verb", "free"), [("cache", {"batch_size"}), ("train", NOT_IN_RECIPE), ("compare", NOT_IN_PARTS)]
)
def test_what_is_kept_is_promised_for_settings_alone_that_what_is_kept_does_not_depend_on(verb, free):
    """Others are refused in the same folder, or begin from nothing there."""
    goes_on, begins_anew = LESS_MEMORY[verb].split("run the same command again")
    flags = {flag.replace("-", "_") for flag in re.findall(r"--([a-z-]+)", goes_on)}
    assert flags and flags <= free
    assert "with another --out" in begins_anew or "anew" in begins_anew


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux'")
def test_under_a_real_limit_the_sentence_comes_and_nothing_of_the_attempt_is_left(tiny_store, tmp_path):
    program = (
        "import resource, sys, torch\n"
        "from sae_lm.cli import main\n"
        "import sae_lm.commands.train\n"
        "torch.set_num_threads(1)\n"
        "taken = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (taken + (1 << 28), resource.RLIM_INFINITY))\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    words = ["train", "--store", tiny_store, "--hook", "blocks.0.hook_out", "--d-sae", "4000000", "--k", "3",
             "--tokens", "1k", "--batch-size", "64", "--device", "cpu", "--out", tmp_path / "runs"]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, words)], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    said = done.stderr.strip().splitlines()[-1]
    assert said.startswith("sae-lm: error: memory ran out") and "MB more were asked for" in said
    assert not list((tmp_path / "runs").rglob("*.safetensors"))
