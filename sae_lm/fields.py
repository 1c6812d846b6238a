"""Parsers for setting values: 200k, comma lists, layer numbers, hf:// addresses; and what errors call a setting."""

import difflib
import os
import re
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field
from pydantic.fields import FieldInfo

_MULTIPLES = {"k": 10**3, "m": 10**6, "b": 10**9}


def parse_count(value: object) -> object:
    """``200k`` -> 200000, ``1.5M`` -> 1500000, ``65_536`` and ``65,536`` -> 65536; anything else is left to pydantic."""
    if not isinstance(value, str):
        return value
    if re.fullmatch(r"-[0-9].*", value.strip()):
        raise ValueError("expected a whole number that is not negative")
    # a comma stands between thousands alone: elsewhere it parts a list, and 0,1,2 is no count
    found = re.fullmatch(
        r"((?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9][0-9_]*)(?:\.[0-9]+)?)\s*([kmbKMB]?)", value.strip(), re.ASCII
    )
    if not found:
        raise ValueError("expected a whole number such as 65536, 200k or 1.5M")
    number = Decimal(re.sub("[_,]", "", found[1])) * _MULTIPLES.get(found[2].lower(), 1)
    if number != int(number):
        raise ValueError("expected a whole number such as 65536, 200k or 1.5M")
    return int(number)


def split_commas(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def split_hooks(value: object) -> object:
    """As ``split_commas``, for names that may be layer numbers: 3 and [3, 7] are fine in a file."""
    parts = split_commas(str(value) if isinstance(value, int) else value)
    return tuple(str(part) for part in parts) if isinstance(parts, (list, tuple)) else parts


def split_numbers(value: object) -> object:
    """As ``split_commas``; one number alone is fine in a file."""
    return (value,) if isinstance(value, int | float) else split_commas(value)


def with_home(path: str | Path) -> str:
    """``~`` is the user's home also in a file, behind an = and in Python, where no shell puts it; of nobody known it stays."""
    return os.path.expanduser(path)


Count = Annotated[int, BeforeValidator(parse_count), Field(gt=0, le=10**15)]
Names = Annotated[tuple[str, ...], BeforeValidator(split_commas), Field(min_length=1)]
Hooks = Annotated[tuple[str, ...], BeforeValidator(split_hooks), Field(min_length=1)]
Numbers = Annotated[tuple[int, ...], BeforeValidator(split_commas), Field(min_length=1)]
Costs = Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], BeforeValidator(split_numbers)]
Share = Annotated[float, Field(ge=0, lt=1)]
Dtype = Literal["float32", "bfloat16", "float16"]
DeviceMap = Literal["auto", "balanced", "balanced_low_0", "sequential"]
Architecture = Literal["relu", "topk", "batchtopk", "jumprelu", "matryoshka"]
StoreAddress = Annotated[str | Path, AfterValidator(with_home)]
"""A folder or an hf:// address, whose two slashes a Path would make one."""
Positional = Field(json_schema_extra={"positional": True})


def choice(got: str, known: Mapping[str, object]) -> str:
    """'did you mean' when something is near, else the whole list."""
    near = difflib.get_close_matches(got, known, n=1, cutoff=0.6)
    return f"{near[0]!r} (did you mean that?)" if near else "one of " + ", ".join(known)


def sentence_of(model: type[BaseModel], error: Any, verb: str | None) -> str:
    """One of pydantic's errors in words of the command line, or of Python where there is no verb."""
    who = verb or model.__name__
    key = str(error["loc"][0]) if error["loc"] else who
    if error["type"] == "extra_forbidden":
        return f"{who}: unknown setting {key!r}; expected {choice(key, model.model_fields)}"
    field = model.model_fields.get(key)
    name = key if verb is None or field is None else key.upper() if is_positional(field) else flag(key)
    if field is not None and error["type"] == "missing":
        return f"{who}: {name} is required ({describe(field)})"
    reason = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if error["type"] == "too_short":
        reason = "one or more, separated by commas"
    return f"{who}: {name}: got {error['input']!r}; expected {reason.removeprefix('expected ')}"


def flag(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def is_positional(field: FieldInfo) -> bool:
    return isinstance(field.json_schema_extra, dict) and bool(field.json_schema_extra.get("positional"))


def describe(field: FieldInfo) -> str:
    """A field's docstring on one line."""
    return " ".join((field.description or "").split())


def has_heads(hook: object) -> bool:
    """Whether the activation at a hook has an axis of heads, which SAEs take side by side, and stores hold so."""
    return isinstance(hook, str) and hook.endswith((".hook_z", ".o.hook_in"))
