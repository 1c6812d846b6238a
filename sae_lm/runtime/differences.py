"""Compare settings that were stored with settings that are wanted, and say which of them differ."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


class SettingDifference(NamedTuple):
    """One setting that differs. ``str`` of it is ``KEY is STORED, asked for WANTED``, values as JSON has them."""

    key: str
    """dotted where settings are nested: ``model.revision``"""
    stored: Any
    wanted: Any

    def __str__(self) -> str:
        stored, wanted = (json.dumps(value, ensure_ascii=False, default=str) for value in (self.stored, self.wanted))
        return f"{self.key} is {stored}, asked for {wanted}"


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
