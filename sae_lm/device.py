"""The name of a device -> one this machine has."""

import torch

from sae_lm.errors import SettingsError


def pick_device(device: str) -> str:
    """``auto`` -> cuda if there is one, else cpu; other names are checked. Raises SettingsError."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as problem:
        reason = str(problem).splitlines()[0]
        raise SettingsError(f"device {device!r} is not to be had here ({reason}); give `auto` or `cpu`") from None
    return device
