"""Helpers for SAEs that sae_lm.load refuses: its sentence, and their files."""

import json

import pytest

import sae_lm
from sae_lm.errors import SaeError


def refusal(path, **options):
    with pytest.raises(SaeError) as error:
        sae_lm.load(path, "cpu", **options)
    sentence = str(error.value)
    assert "\n" not in sentence and len(sentence) < 900, sentence
    return sentence


def weights_of(path):
    """The file of weights of an SAE that was written."""
    files = (
        [path] if path.is_file() else [file for file in path.rglob("*.*") if file.suffix != ".json" and file.is_file()]
    )
    (file,) = files
    return file


def edit_config(path, **changes):
    (file,) = path.glob("*.json")
    config = json.loads(file.read_text())
    for key, value in changes.items():
        config.get("trainer", config)[key] = value
    file.write_text(json.dumps(config))
