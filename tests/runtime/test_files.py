"""Files are whole or absent."""

import pytest
from safetensors import SafetensorError

from sae_lm.errors import SaeLmError
from sae_lm.runtime.files import check_disk, whole_folder, write_whole


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
