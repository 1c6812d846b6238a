"""What tests of caching share: a store as its files, settings as flags, a run that is stopped."""

import pytest

from sae_lm.commands.cache import cache
from sae_lm.data.shards import OpenShard


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def flags(settings):
    """The command line that has these settings."""
    pairs = {name: value for name, value in settings.model_dump(mode="json").items() if value is not None}
    shown = {name: ",".join(value) if isinstance(value, list) else value for name, value in pairs.items()}
    return [
        f"--{'' if value is not False else 'no-'}{name.replace('_', '-')}" + ("" if isinstance(value, bool) else f"={value}")
        for name, value in shown.items()
    ]  # fmt: skip


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
