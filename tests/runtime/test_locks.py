"""Only another process keeps one out, a disk without locks does not."""

import errno
import os

import pytest

from sae_lm.errors import SaeLmError
from sae_lm.runtime.locks import held_if_free, open_lock, take_lock
from sae_lm.training.locks import only_trainer, only_writer_of_run

fcntl = pytest.importorskip("fcntl")


def refuse(number):
    def flock(file, operation):
        raise OSError(number, "no such thing")

    return flock


def test_a_disk_without_locks_keeps_nobody_from_training_and_says_so_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOSYS))
    with only_trainer(tmp_path, ["none-seed0", "none-seed1"]), only_writer_of_run(tmp_path):
        pass
    assert capsys.readouterr().err.count("has no file locks (no such thing)") == 1


@pytest.mark.parametrize("number", [errno.EWOULDBLOCK, errno.EACCES])
def test_a_held_lock_is_another_process(tmp_path, monkeypatch, number):
    monkeypatch.setattr(fcntl, "flock", refuse(number))
    with (tmp_path / "lock").open("w") as file:
        assert not take_lock(file, tmp_path)


def test_a_file_is_not_emptied_to_lock_it_and_no_link_is_followed(tmp_path):
    (tmp_path / "lock").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "new")
    with open_lock(tmp_path / "lock") as file:
        assert take_lock(file, tmp_path)
    with pytest.raises(SaeLmError, match="link is a link, expected a file to lock; delete the link"):
        open_lock(tmp_path / "link")
    assert (tmp_path / "lock").read_text() == "kept" and not (tmp_path / "new").exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
def test_a_lock_is_not_held_by_a_fork_of_the_process_that_took_it(tmp_path):
    (end_read, end_write), (there_read, there_write) = os.pipe(), os.pipe()
    with held_if_free(tmp_path) as held:
        assert held
        if not (forked := os.fork()):
            os.write(there_write, b".")
            os.read(end_read, 1)
            os._exit(0)
    try:
        os.read(there_read, 1)
        with held_if_free(tmp_path) as again:
            assert again
    finally:
        os.write(end_write, b".")
        os.waitpid(forked, 0)
        for end in (end_read, end_write, there_read, there_write):
            os.close(end)
