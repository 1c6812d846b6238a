"""What all settings have in common: frozen models whose mistakes are named in a sentence each."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from sae_lm.errors import SettingsError
from sae_lm.fields import sentence_of, with_home


class Settings(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )

    def differs(self, setting: str) -> bool:
        """Whether it is another than the default; what is given as the default does not count."""
        return getattr(self, setting) != type(self).model_fields[setting].default

    @field_validator("*")
    @classmethod
    def _at_home(cls, value: Any) -> Any:
        return Path(with_home(value)) if isinstance(value, Path) else value

    @model_validator(mode="wrap")
    @classmethod
    def _one_sentence_each(cls, values: Any, validate: Callable[[Any], Any], info: Any) -> Any:
        """Raises SettingsError: keys read as in Python, or as flags where the context names a verb."""
        try:
            return validate(values)
        except ValidationError as invalid:
            verb = (info.context or {}).get("verb")
            raise SettingsError("; ".join(sentence_of(cls, error, verb) for error in invalid.errors())) from None
