"""Derive independent random seeds from names and numbers."""

import hashlib


def derive(*parts: str | int) -> int:
    """A 63-bit seed: equal names and numbers give equal seeds, neighbouring ones unrelated seeds.

    So two uses of randomness share nothing unless they mean to.
    """
    digest = hashlib.sha256(",".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
