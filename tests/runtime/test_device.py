"""A device that cannot be used is refused with advice that helps."""

import pytest
import torch

from sae_lm.errors import SettingsError
from sae_lm.runtime.device import pick_device


def none_works(*size, device, **keywords):
    raise RuntimeError("CUDA error: no kernel image is available for execution on the device")


@pytest.mark.parametrize(
    ("device", "there_is_cuda", "advice"),
    [
        ("auto", True, "give `cpu`"),
        ("cuda", True, "give `cpu`"),
        ("cuda:7", True, "give `auto` or `cpu`"),
        ("cuda", False, "give `auto` or `cpu`"),
    ],
)
def test_auto_is_advised_only_where_it_picks_another_device(monkeypatch, device, there_is_cuda, advice):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there_is_cuda)
    monkeypatch.setattr(torch, "zeros", none_works)
    with pytest.raises(SettingsError, match=rf"is not available \(CUDA error: .*\); {advice}$"):
        pick_device(device)
