"""Damage of every kind is found, and the file that has it named."""

import random
import shutil

import pytest

import sae_lm
from sae_lm.commands.verify import verify
from sae_lm.data.manifest import MANIFEST
from sae_lm.errors import StoreError

FLIPS = 150


@pytest.fixture
def copied_store(tiny_store, tmp_path):
    return shutil.copytree(tiny_store, tmp_path / "copy")


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_flipped_bit_is_found_in_the_file_that_has_it(copied_store):
    """Bits drawn at random over all bytes of the store, and as many in the manifest alone."""
    draw = random.Random(0)
    files = sorted(path for path in copied_store.rglob("*") if path.is_file())
    sizes = [path.stat().st_size for path in files]
    victims = draw.choices(files, sizes, k=FLIPS) + [copied_store / MANIFEST] * FLIPS
    for victim in victims:
        whole = victim.read_bytes()
        flipped = bytearray(whole)
        flipped[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        victim.write_bytes(bytes(flipped))
        found = verify(copied_store)
        assert len(found) == 1 and victim.name in found[0] and victim.parent.name in found[0] + str(copied_store)
        victim.write_bytes(whole)
    assert verify(copied_store) == []


def test_opening_reads_checksums_on_request(copied_store):
    victim = copied_store / "blocks.0.hook_out" / "00003.safetensors"
    victim.write_bytes(victim.read_bytes()[:-1] + b"?")
    sae_lm.open_store(copied_store)
    with pytest.raises(
        StoreError, match=r"00003.safetensors does not match its checksum; run sae-lm verify .* --repair"
    ):
        sae_lm.open_store(copied_store, checksums=True)


def test_verify_finds_flips_truncation_missing_and_foreign_files(copied_store):
    assert verify(copied_store) == []
    victim = copied_store / "blocks.0.hook_out" / "00002.safetensors"
    whole = victim.read_bytes()
    for byte in (8, len(whole) // 2, len(whole) - 1):
        flipped = bytearray(whole)
        flipped[byte] ^= 1
        victim.write_bytes(bytes(flipped))
        assert verify(copied_store) == ["blocks.0.hook_out/00002.safetensors: content does not match its checksum"]
    victim.write_bytes(whole[:-5])
    assert "expected" in verify(copied_store)[0]
    with pytest.raises(StoreError, match="00002.safetensors has"):
        sae_lm.open_store(copied_store)
    victim.unlink()
    (copied_store / "stray").write_text("?")
    assert verify(copied_store) == [
        "blocks.0.hook_out/00002.safetensors: missing",
        "stray: does not belong to the store",
    ]
    with pytest.raises(StoreError, match="is missing"):
        sae_lm.open_store(copied_store)
