"""Files are whole or absent."""

import os
import shutil
import threading

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from sae_lm.errors import SaeLmError
from sae_lm.runtime.files import check_disk, check_folder, disk_problem, whole_folder, write_whole


@pytest.mark.parametrize("problem", [KeyboardInterrupt, ValueError])
def test_a_write_that_ends_early_leaves_the_earlier_file_and_nothing_beside_it(tmp_path, problem):
    (tmp_path / "file").write_text("earlier")

    def half(part):
        part.write_text("ha")
        raise problem

    with pytest.raises(problem):
        write_whole(tmp_path / "file", half)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["earlier"]


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (OSError(28, "No space left on device"), "the disk is full; free some room"),
        (OSError(122, "Disk quota exceeded"), "the disk is full; free some room"),
        (OSError(30, "Read-only file system"), "the disk can only be read; mend that"),
        (
            SafetensorError("I/O error: Operation not supported (os error 95)"),
            "the disk cannot do what safetensors asks",
        ),
        (SafetensorError("I/O error: No such device (os error 19)"), "the disk cannot map files into memory"),
    ],
    ids=str,
)
def test_what_the_disk_refuses_is_one_sentence_and_nothing_is_left(tmp_path, problem, words):
    def half(part):
        part.write_text("ha")
        raise problem

    with pytest.raises(SaeLmError, match=f"file cannot be written, {words}.* run the same command again") as caught:
        write_whole(tmp_path / "file", half)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "earlier").touch()
    with (
        pytest.raises(SaeLmError, match=f"folder cannot be written, {words}"),
        whole_folder(tmp_path / "folder") as part,
    ):
        half(part / "file")
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "earlier"]


def earlier_folder(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "weights").write_text("earlier")
    return tmp_path / "folder"


def content(tmp_path):
    return {path.relative_to(tmp_path).as_posix(): path.read_text() for path in tmp_path.rglob("*") if path.is_file()}


@pytest.mark.parametrize("problem", [KeyboardInterrupt, OSError(5, "Input/output error")])
@pytest.mark.parametrize("move", [1, 2])
def test_a_folder_whose_replacement_fails_on_its_way_in_is_what_it_was(tmp_path, monkeypatch, problem, move):
    folder, replace, moves = earlier_folder(tmp_path), os.replace, []

    def fails(source, target):
        moves.append(target)
        if len(moves) == move:
            raise problem
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises((KeyboardInterrupt, SaeLmError)), whole_folder(folder) as part:
        (part / "weights").write_text("new")
    assert content(tmp_path) == {"folder/weights": "earlier"} and [*tmp_path.iterdir()] == [folder]


def test_a_finished_folder_stays_where_the_earlier_ones_removal_is_cut(tmp_path, monkeypatch):
    folder, rmtree = earlier_folder(tmp_path), shutil.rmtree

    def cut(path, **how):
        if (path / "weights").is_file() and (path / "weights").read_text() == "earlier":
            raise KeyboardInterrupt
        rmtree(path, **how)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", cut)
        with pytest.raises(KeyboardInterrupt), whole_folder(folder) as part:
            (part / "weights").write_text("new")
    assert content(folder) == {"weights": "new"}
    with whole_folder(folder) as part:
        (part / "weights").write_text("newer")
    assert content(tmp_path) == {"folder/weights": "newer"} and [*tmp_path.iterdir()] == [folder]


def test_what_a_kill_left_aside_comes_back_where_the_next_folder_fails(tmp_path, monkeypatch):
    earlier_folder(tmp_path).rename(tmp_path / "folder.earlier.part")
    replace = os.replace

    def fails(source, target):
        if source.name == "folder.part":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "folder") as part:
        (part / "weights").write_text("new")
    assert content(tmp_path) == {"folder/weights": "earlier"}


@pytest.mark.skipif(os.name == "nt", reason="Windows syncs no folder")
def test_all_of_a_folder_is_on_disk_before_it_is_moved_and_the_move_before_it_ends(tmp_path, monkeypatch):
    """A checkpoint is deleted once the SAE is written, so that a loss of power must not take what was written."""
    synced, fsync, replace, before = set(), os.fsync, os.replace, set()
    monkeypatch.setattr(os, "fsync", lambda file: synced.add(os.fstat(file).st_ino) or fsync(file))
    monkeypatch.setattr(os, "replace", lambda *of: before.update(synced) or replace(*of))
    with whole_folder(tmp_path / "folder") as part:
        save_file({"a": torch.zeros(2)}, part / "weights")
        (part / "deeper").mkdir()
        (part / "deeper" / "text").write_text("a")
    inside = [tmp_path / "folder", *(tmp_path / "folder").rglob("*")]
    assert len(inside) == 4 and {path.stat().st_ino for path in inside} <= before
    assert tmp_path.stat().st_ino in synced


def test_a_folder_given_as_a_link_is_replaced_where_it_lies_and_the_link_stays(tmp_path):
    folder = earlier_folder(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "link"
    link.symlink_to(folder)
    with whole_folder(link) as part:
        (part / "weights").write_text("new")
    assert link.is_symlink() and content(tmp_path)["folder/weights"] == "new"
    assert [*folder.iterdir()] == [folder / "weights"] and [*link.parent.iterdir()] == [link]
    assert not list(tmp_path.glob("*.part"))


def test_an_error_that_is_not_the_disks_stays_what_it_is(tmp_path):
    with pytest.raises(ValueError, match="mine"), whole_folder(tmp_path / "folder"):
        raise ValueError("mine")
    assert not list(tmp_path.iterdir())


def test_a_disk_is_tried_before_long_work(tmp_path, monkeypatch):
    import safetensors
    import safetensors.numpy

    check_disk(tmp_path / "not" / "there" / "yet")
    assert not list(tmp_path.iterdir())

    def refuses(*arguments, **options):
        raise SafetensorError("Error preparing tensor for serialization: Operation not supported (os error 95)")

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.numpy, "save_file", refuses)
        with pytest.raises(SaeLmError, match="acts: the disk cannot do what safetensors asks of it; .* another disk"):
            check_disk(tmp_path / "acts")

    def cannot_map(*arguments, **options):
        raise SafetensorError("No such device (os error 19)")

    monkeypatch.setattr(safetensors, "safe_open", cannot_map)
    with pytest.raises(SaeLmError, match="the disk cannot map files into memory"):
        check_disk(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_part_that_is_a_link_is_not_written_through(tmp_path):
    (tmp_path / "others").write_text("precious")
    (tmp_path / "file.part").symlink_to(tmp_path / "others")
    write_whole(tmp_path / "file", lambda part: part.write_text("new"))
    assert (tmp_path / "others").read_text() == "precious" and (tmp_path / "file").read_text() == "new"


def test_files_may_be_read_by_whoever_may_read_others_written_there(tmp_path):
    """safetensors gives its files to their owner alone, and a store on a lab's disk could be read by nobody else."""
    tensors = {"a": torch.zeros(2)}
    save_file(tensors, tmp_path / "plain")
    (tmp_path / "usual").touch()
    usual = (tmp_path / "usual").stat().st_mode
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "one", lambda temporary: save_file(tensors, temporary))
        write_whole(tmp_path / "text", lambda temporary: temporary.write_text("a"))
        with whole_folder(tmp_path / "folder") as temporary:
            save_file(tensors, temporary / "two")
            (temporary / "cfg.json").write_text("{}")
    finally:
        os.umask(before)
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == ["cfg.json", "two"]
    for name in ("one", "text", "folder/two", "folder/cfg.json"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o640, name
    write_whole(tmp_path / "one", lambda temporary: save_file(tensors, temporary))
    assert (tmp_path / "one").stat().st_mode == usual


def test_a_link_to_nowhere_is_named_before_and_while_something_is_written(tmp_path):
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    for name, target in (("link", "nowhere"), ("loop", "loop")):
        says = f"{name} is a link to {target}, which is not there; make that folder, or give another"
        for check in (check_disk, check_folder):
            with pytest.raises(SaeLmError, match=says):
                check(tmp_path / name)
        with pytest.raises(SaeLmError, match=says), whole_folder(tmp_path / name):
            pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "loop"]


def test_what_may_not_be_read_is_no_missing_file(tmp_path, monkeypatch):
    """safetensors says of a file that it may not open that there is none."""
    path = tmp_path / "a.safetensors"
    said = FileNotFoundError(f"No such file or directory: {path}")
    assert disk_problem(said) is None
    save_file({"a": torch.zeros(2)}, path)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert disk_problem(said) == "permission is denied"
    assert disk_problem(FileNotFoundError(2, "No such file or directory", str(path))) is None


def test_a_disk_may_be_tried_by_several_at_once(tmp_path):
    """All look at the folder that is there, whatever folder they will make in it."""
    said = []

    def tried(name):
        try:
            for _ in range(60):
                check_disk(tmp_path / name)
        except SaeLmError as problem:
            said.append(problem)

    threads = [threading.Thread(target=tried, args=(f"store{number % 2}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == [] and list(tmp_path.iterdir()) == []


def test_what_a_kill_left_of_a_try_goes_once_it_is_old(tmp_path):
    old, young = tmp_path / "sae_lm.probe.a.part", tmp_path / "sae_lm.probe.b.part"
    for folder in (old, young):
        folder.mkdir()
        (folder / "probe").write_text("")
    os.utime(old, (0, 0))
    check_disk(tmp_path)
    assert [*tmp_path.iterdir()] == [young]
