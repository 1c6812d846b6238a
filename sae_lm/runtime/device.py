"""Check the name of a device, and choose cuda or cpu for `auto`."""

import re

import torch

from sae_lm.errors import SettingsError


def pick_device(device: str, local_rank: int | None = None) -> str:
    """``auto`` -> cuda if there is one, else cpu; other names are checked. Raises SettingsError.

    local_rank: of several processes on this machine, which take one GPU each.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and local_rank is not None:
        device = f"cuda:{local_rank}"
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", device):
        raise SettingsError(f"device is {device!r}; expected `auto`, `cpu`, `cuda`, `cuda:1` or `mps`")
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as problem:
        reason = str(problem).splitlines()[0]
        raise SettingsError(f"device {device!r} is not available ({reason}); give `auto` or `cpu`") from None
    return device
