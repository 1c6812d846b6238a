"""Lay a language model that is larger than one card over several, and say where its inputs go.

The placing is accelerate's, by way of transformers and TransformerLens. Blocks hand their outputs on from device to
device, so that activations come from the device of their block. What no card has room for waits on the CPU or on disk,
and is fetched in every pass; its parameters are then on no device at all.
"""

from collections import Counter
from importlib.util import find_spec
from typing import Any

import torch

from sae_lm.errors import SettingsError

Placement = str | dict[str, str | int]
"""``auto``, ``balanced``, ``balanced_low_0``, ``sequential``; or {module: device}, as transformers takes it"""


def check_device_map(device_map: Placement | None, device: str = "auto", *, one_of_many: bool = False) -> None:
    """Raise SettingsError where a model cannot be laid out so, before anything is loaded.

    device: the one that was asked for beside it. one_of_many: whether other processes want a model as well.
    """
    if device_map is None:
        return
    if device != "auto":
        raise SettingsError(
            f"device_map is {device_map!r} and device is {device!r}, and each says where the model goes; give one of the two"
        )
    if one_of_many:
        raise SettingsError(
            f"device_map is {device_map!r}, which lays one model over all cards, and this is one of several processes that would do "
            "so; start a single one, without torchrun"
        )
    if find_spec("accelerate") is None:
        raise SettingsError(
            f"device_map is {device_map!r}, which needs the package accelerate, and it is not installed; pip install accelerate"
        )


def input_device(model: Any) -> torch.device:
    """Where a bridge or a Hugging Face model takes token ids: where its first parameters are.

    Of a model whose parameters wait elsewhere, the device that it runs on.
    """
    device, laid_over = next(model.parameters()).device, places(model)
    if device.type != "meta" or not laid_over:
        return device
    cards = [place for place in laid_over.values() if place not in ("cpu", "disk")]
    return torch.device(cards[0] if cards else "cpu")


def places(model: Any) -> dict[str, str | int]:
    """{module: device} of a model that was laid over several; of any other, nothing."""
    return getattr(getattr(model, "original_model", model), "hf_device_map", None) or {}


def waiting(model: Any) -> str:
    """A sentence on what of a model waits beside the cards; empty where nothing does."""
    counts = Counter(place for place in places(model).values() if place in ("cpu", "disk"))
    if not counts or ("disk" not in counts and len(set(places(model).values())) == 1):
        return ""
    where = " and ".join(f"{count} on {'the CPU' if place == 'cpu' else 'disk'}" for place, count in counts.items())
    return f"of {len(places(model))} parts of the model, {where} wait for each pass to fetch them, which is slow"
