"""Stores on disks without locks or maps, with links out of them, and with names that are no names of files."""

import errno
import fcntl
import json
import shutil

import pytest
from safetensors import SafetensorError

import sae_lm
from sae_lm.commands.cache import cache
from sae_lm.data.manifest import ZEROS, read_manifest
from sae_lm.data.repair import repair
from sae_lm.errors import SaeLmError, StoreError


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_disk_without_locks_is_written_and_told_of_once(cache_settings, tmp_path, monkeypatch, capsys, number):
    def flock(file, operation):
        raise OSError(number, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    store = sae_lm.open_store(cache(cache_settings(tmp_path / "store", tokens=100)), checksums=True)
    assert len(store) == 100 and capsys.readouterr().err.count("has no file locks") == 1


@pytest.mark.parametrize("number", [errno.EWOULDBLOCK, errno.EACCES])
def test_only_a_held_lock_means_another_process(cache_settings, tmp_path, monkeypatch, number):
    def flock(file, operation):
        raise OSError(number, "taken")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(StoreError, match="another process is writing"):
        cache(cache_settings(tmp_path / "store", tokens=100))


def test_a_disk_that_cannot_map_is_named_before_the_model_is_looked_for(
    cache_settings, tmp_path, monkeypatch, tiny_store
):
    def cannot_map(*arguments, **options):
        raise SafetensorError("No such device (os error 19)")

    settings = cache_settings(tmp_path / "store", model=str(tmp_path / "no model"))
    monkeypatch.setattr("safetensors.safe_open", cannot_map)
    with pytest.raises(SaeLmError, match="store: the disk cannot map files into memory"):
        cache(settings)
    assert not list(tmp_path.iterdir())
    store = sae_lm.open_store(tiny_store)
    monkeypatch.setattr("sae_lm.data.stored_tensors.safe_open", cannot_map)
    with pytest.raises(StoreError, match="cannot map files into memory; mend that, or copy the store to another disk"):
        store.rows("0", 0, 5)


def test_a_finished_store_on_a_disk_that_is_only_read_is_reused(
    cache_settings, tmp_path, tiny_store, monkeypatch, capsys
):
    out = shutil.copytree(tiny_store, tmp_path / "store")
    monkeypatch.setattr("sae_lm.commands.cache.check_disk", lambda folder: pytest.fail("nothing is to be written"))
    cache(cache_settings(out))
    assert "is there already; reused" in capsys.readouterr().out


@pytest.mark.parametrize("what", ["folder", "file", "part"])
def test_nothing_is_written_through_a_link_out_of_a_store(cache_settings, tmp_path, tiny_store, what):
    settings = cache_settings(tmp_path / "unused")
    out, elsewhere = shutil.copytree(tiny_store, tmp_path / "store"), tmp_path / "elsewhere"
    name = "blocks.1.hook_out/00001.safetensors"
    elsewhere.mkdir()
    (elsewhere / "00001.safetensors").write_text("precious")
    if what == "folder":
        shutil.rmtree(out / "blocks.1.hook_out")
        (out / "blocks.1.hook_out").symlink_to(elsewhere)
    elif what == "file":
        (out / name).unlink()
        (out / name).symlink_to(elsewhere / "00001.safetensors")
    else:
        (out / name).unlink()
        (out / f"{name}.part").symlink_to(elsewhere / "00001.safetensors")
    if what == "part":
        repair(out, settings.model, settings.text)
        assert (out / name).read_bytes() == (tiny_store / name).read_bytes()
    else:
        with pytest.raises(StoreError, match=r"is a link out of .*, where nothing is written"):
            repair(out, settings.model, settings.text)
    assert [path.read_text() for path in elsewhere.iterdir()] == ["precious"]


def test_an_unfinished_store_whose_folder_is_a_link_is_not_cleaned(cache_settings, tmp_path, monkeypatch):
    from sae_lm.data.shards import OpenShard

    def dies(self, *arguments):
        raise KeyboardInterrupt

    settings = cache_settings(tmp_path / "store")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(OpenShard, "write", dies)
        cache(settings)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("precious")
    (settings.out / "tokens").symlink_to(tmp_path / "mine")
    with pytest.raises(StoreError, match=r"tokens is a link out of"):
        cache(settings)
    assert (tmp_path / "mine" / "letter.txt").read_text() == "precious"


@pytest.mark.parametrize("link", ["progress", "progress/lock"])
def test_no_lock_is_made_or_emptied_through_a_link_out_of_a_store(cache_settings, tmp_path, link):
    settings, mine = cache_settings(tmp_path / "store"), tmp_path / "mine"
    mine.mkdir()
    (mine / "lock").write_text("precious")
    (settings.out / link).parent.mkdir(parents=True)
    (settings.out / link).symlink_to(mine if link == "progress" else mine / "lock")
    with pytest.raises(StoreError, match=r"store/progress/lock is a link out of"):
        cache(settings)
    assert (mine / "lock").read_text() == "precious" and len(list(mine.iterdir())) == 1


@pytest.mark.parametrize("name", ["C:/x", "c:x", "../x", "/x", "a\\x"])
def test_names_that_leave_a_store_on_any_system_are_refused(tiny_store, tmp_path, name):
    out = shutil.copytree(tiny_store, tmp_path / "store")
    content = json.loads((out / "manifest.json").read_text())
    content["files"][name] = {"bytes": 0, "sha256": ZEROS}
    (out / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(StoreError, match="names a file outside the store"):
        read_manifest(out)
