"""Compare settings that were stored with settings that are wanted, and say which of them differ."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

MOST_NAMED = 4
"""Settings that a sentence names."""
CHECKSUM = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")


class SettingDifference(NamedTuple):
    """One setting that differs. ``str`` of it is ``KEY is STORED, asked for WANTED``, values as JSON has them."""

    key: str
    """dotted where settings are nested: ``model.revision``"""
    stored: Any
    wanted: Any

    def __str__(self) -> str:
        return f"{self.key} is {_shown(self.stored)}, asked for {_shown(self.wanted)}"


def _shown(value: Any) -> str:
    """As JSON, checksums cut to what tells them apart."""
    return CHECKSUM.sub(r"\1...", json.dumps(value, ensure_ascii=False, default=str))


def in_words(differing: Sequence[SettingDifference]) -> str:
    """The first of them, and how many more there are: for a sentence that a user reads."""
    named = "; ".join(map(str, differing[:MOST_NAMED]))
    more = len(differing) - MOST_NAMED
    return f"{named}; and {more} more" if more > 0 else named


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[SettingDifference]:
    """Every key of ``wanted`` that has another value in ``stored``, in the order of ``wanted``.

    A key that ``stored`` lacks counts as None, and one that only ``stored`` has is passed over: what an older or a
    newer version wrote is compared in what both know. Mappings with the same keys are compared key by key; where
    their keys differ, the lists of keys are the values.
    """
    return list(_differences("", {key: stored.get(key) for key in wanted}, wanted))


def _differences(key: str, stored: Any, wanted: Any) -> Iterator[SettingDifference]:
    if isinstance(stored, Mapping) and isinstance(wanted, Mapping):
        if stored.keys() != wanted.keys():
            yield SettingDifference(key, list(stored), list(wanted))
            return
        for name in wanted:
            yield from _differences(f"{key}.{name}" if key else name, stored[name], wanted[name])
    elif stored != wanted:
        yield SettingDifference(key, stored, wanted)
