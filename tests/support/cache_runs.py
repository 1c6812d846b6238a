"""What tests of caching share: a store as its files, settings as flags, a run that is stopped."""

import pytest

from sae_lm.commands.cache import cache
from sae_lm.data.shards import OpenShard


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def cache_until_shard(number, settings, monkeypatch):
    """A run that a Ctrl-C ends when this shard is to be written; what is before it is kept."""
    real = OpenShard.write

    def dies(self, *arguments):
        if self.index == number:
            raise KeyboardInterrupt
        return real(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(OpenShard, "write", dies)
        cache(settings)
