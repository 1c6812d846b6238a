"""What Windows does otherwise: it has none of these locks, deletes no open file, and has error numbers of its own."""

import errno
import os
from pathlib import Path

import pytest
import train_runs

import sae_lm
from sae_lm.commands.cache import cache
from sae_lm.commands.train import train
from sae_lm.errors import TextError
from sae_lm.runtime.files import DISKS, number_said
from sae_lm.training.locks import only_trainer, only_writer_of_run, others_at_work, remove_locks

OPEN_FILES = Path("/proc/self/fd")


@pytest.fixture
def like_windows(monkeypatch, tiny_store):
    """No locks, and no open file is deleted or replaced. tiny_store: what tests share is made before."""
    if not OPEN_FILES.is_dir():
        pytest.skip("which files are open is looked up where Linux lists them")

    def refusing(function):
        def refuse(path, *others, dir_fd=None, **keywords):
            folder = "" if dir_fd is None else os.readlink(OPEN_FILES / str(dir_fd))
            named = {os.path.realpath(os.path.join(folder, each)) for each in (path, *others)}
            opened = {os.path.realpath(entry) for entry in OPEN_FILES.iterdir()}
            if any(os.path.isfile(each) for each in named & opened):
                raise PermissionError(errno.EACCES, "another process has this file open", str(path))
            return function(path, *others, **({} if dir_fd is None else {"dir_fd": dir_fd}), **keywords)

        return refuse

    monkeypatch.setattr("sae_lm.runtime.locks.fcntl", None)
    for name in ("unlink", "remove", "replace", "rename"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))


@pytest.mark.usefixtures("like_windows")
def test_the_locks_of_a_training_keep_nobody_out_and_leave_nothing(tmp_path):
    state = tmp_path / "state"
    state.mkdir()
    (state / "none-seed1.lock").touch()  # of a run that was killed on another system
    with only_trainer(tmp_path, ["none-seed0"]), only_writer_of_run(tmp_path), only_trainer(tmp_path, ["none-seed0"]):
        assert not others_at_work(tmp_path, ["none-seed0"])
    assert remove_locks(tmp_path) and not state.exists()


@pytest.mark.usefixtures("like_windows")
def test_a_training_ends_and_its_folder_of_checkpoints_is_gone(tiny_store, tmp_path):
    settings = train_runs.settings_for(store=tiny_store, out=tmp_path / "runs", arms="none", tokens="1k")
    assert {path.name for path in train(settings).iterdir()} == {"run.json", "none-seed0", "none-seed0.metrics.jsonl"}


@pytest.mark.usefixtures("like_windows")
def test_a_store_that_is_written_keeps_no_lock(cache_settings, tmp_path):
    out = cache(cache_settings(tmp_path / "store", tokens=100))
    assert len(sae_lm.open_store(out)) == 100 and not (out / "progress").exists()
    (tmp_path / "short.txt").write_text("a")
    with pytest.raises(TextError, match="empty or too short"):
        cache(cache_settings(tmp_path / "none", text=str(tmp_path / "short.txt")))
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("number", "words"),
    [(5, "permission is denied"), (19, "the disk can only be read"), (32, "permission is denied"),
     (33, "permission is denied"), (39, "the disk is full"), (112, "the disk is full")],
)  # fmt: skip
def test_safetensors_says_windows_own_numbers_of_a_disk(number, words):
    assert DISKS[number_said(f"I/O error: it went wrong (os error {number})", windows=True)] == words


def test_other_numbers_of_windows_are_not_taken_for_the_systems():
    said = f"I/O error: The printer is out of paper (os error {errno.ENOSPC})"
    assert number_said(said, windows=True) is None and number_said(said, windows=False) == errno.ENOSPC
    assert number_said("invalid header", windows=True) is None
