"""Every setting of every command: what it means, what it may be, its default; wrong ones are named in a sentence each.

One frozen pydantic model per command. A field's docstring is its ``--help``; ``sae_lm.cli`` makes flags of the fields.
Built from Python, a model takes what it is given alone: no environment variable, no file, no command line.
"""

import shlex
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from sae_lm.fields import flag, is_positional
from sae_lm.settings.base import Settings
from sae_lm.settings.pipeline import CacheSettings, CompareSettings, DemoSettings, EstimateSettings, TrainSettings
from sae_lm.settings.saes import CheckSettings, ConvertSettings, ShowSettings
from sae_lm.settings.stores import InspectSettings, MergeSettings, PullSettings, PushSettings, VerifySettings

VERBS: dict[str, type[Settings]] = {
    "demo": DemoSettings,
    "cache": CacheSettings,
    "train": TrainSettings,
    "compare": CompareSettings,
    "show": ShowSettings,
    "convert": ConvertSettings,
    "check": CheckSettings,
    "verify": VerifySettings,
    "inspect": InspectSettings,
    "estimate": EstimateSettings,
    "merge": MergeSettings,
    "push": PushSettings,
    "pull": PullSettings,
}


def make_settings(verb: str, values: Mapping[str, Any]) -> Any:
    """Validate values for a verb; every problem is named in one SettingsError, settings by their flags."""
    return VERBS[verb].model_validate(dict(values), context={"verb": verb})


def command_line(settings: BaseModel) -> str:
    """The ``sae-lm VERB ...`` command that makes these settings again: what differs from the defaults.

    A list's items are taken to hold no comma: on the command line none can.
    """
    verb = next(verb for verb, model in VERBS.items() if model is type(settings))
    flags: list[str] = []
    positional: list[str] = []
    for key, field in VERBS[verb].model_fields.items():
        value = getattr(settings, key)
        items = list(map(str, value)) if isinstance(value, tuple) else [str(value)]
        if value == field.default:
            continue
        if is_positional(field):
            positional += items
        elif isinstance(value, bool):
            flags.append(flag(key) if value else flag(f"no_{key}"))
        else:
            text = ",".join(items)
            flags += [f"{flag(key)}={text}"] if text.startswith("-") or "=" in text else [flag(key), text]
    if any(word.startswith("-") or "=" in word for word in positional):
        return shlex.join(["sae-lm", verb, *flags, "--", *positional])
    return shlex.join(["sae-lm", verb, *positional, *flags])
