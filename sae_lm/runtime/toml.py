"""Read TOML text; what is not TOML is one sentence."""

from typing import Any

from sae_lm.errors import SettingsError


def parse_toml(text: str, name: str) -> dict[str, Any]:
    """Raises SettingsError, in which ``name`` is what the text is called, where it is not TOML."""
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib  # pyright: ignore[reportMissingImports]
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as problem:  # ValueError alone: a number of too many digits, an impossible date
        raise SettingsError(f"{name}: is not valid TOML ({problem}); fix that line") from None
