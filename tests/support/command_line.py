"""The command line that has given settings."""

from typing import Any


def flags_of(settings: Any) -> list[str]:
    """A flag for each that is not empty, as `--d-sae=64`, `--no-whiten`."""
    given = {name: value for name, value in settings.model_dump(mode="json").items() if value not in (None, [])}
    return [_flag(name.replace("_", "-"), value) for name, value in given.items()]


def _flag(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name}={','.join(map(str, value)) if isinstance(value, list) else value}"
