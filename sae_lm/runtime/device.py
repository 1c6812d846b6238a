"""Check the name of a device, choose cuda or cpu for `auto`, and copy to an accelerator without waiting for it."""

import platform
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from sae_lm.errors import SettingsError
from sae_lm.runtime.threads import read_ahead


def pick_device(device: str, local_rank: int | None = None, float64_for: str = "") -> str:
    """``auto`` -> cuda if there is one, else cpu; any other name that torch knows here is taken.

    local_rank: of several processes on this machine, which take one GPU each.
    float64_for: what is done in float64, for the message; mps has none. Raises SettingsError.
    """
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "auto":
        device = automatic
    instead = "`cpu`" if device == automatic else "`auto` or `cpu`"
    if local_rank is not None and ":" not in device and device not in ("cpu", "mps"):
        device = f"{device}:{local_rank}"
    try:
        known = torch.device(device).type not in ("meta", "privateuseone")
    except RuntimeError:
        known = False
    if not known:
        raise SettingsError(
            f"device is {device!r}; expected `auto`, `cpu`, `cuda`, `cuda:1`, `mps` or another of torch's"
        )
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as problem:
        reason = str(problem).splitlines()[0]
        raise SettingsError(f"device {device!r} is not available ({reason}); give {instead}") from None
    if float64_for:
        try:
            torch.zeros(1, device=device, dtype=torch.float64)
        except (RuntimeError, TypeError):
            raise SettingsError(f"device {device!r} has no float64, which {float64_for}; give `cpu`") from None
    return device


def is_accelerator(device: str | torch.device) -> bool:
    """Whether work is queued there while this process goes on, so that asking for a number is waiting for it."""
    return torch.device(device).type != "cpu"


def has_bfloat16(device: str | torch.device) -> bool:
    """Whether products in bfloat16 are faster there than in float32.

    Without hardware for them they are imitated. measured on a CPU with AVX2 alone (torch 2.13): they take 7 times as
    long, 200 times where the second matrix lies by rows.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        with torch.cuda.device(torch.device(device)):  # torch is asked about the current one
            return torch.cuda.is_bf16_supported(including_emulation=False)
    if kind != "cpu":
        return True
    if _is_x86():
        # oneDNN takes any AVX-512 for enough; without its extension for bfloat16 float32 is faster
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _has_float16(device: str | torch.device) -> bool:
    """The same of float16, which every accelerator has."""
    if torch.device(device).type != "cpu":
        return True
    if _is_x86():
        told = getattr(torch.cpu, "get_capabilities", None)  # a later torch than the oldest supported
        return told is None or any(told().get(name) for name in ("avx512_fp16", "amx_fp16"))
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_fp16_supported()


def _is_x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64")


def imitation(dtype: torch.dtype, device: str | torch.device, instead: str) -> str:
    """A sentence where work in this dtype would be slow there for want of hardware; empty where it is not."""
    has = {torch.bfloat16: has_bfloat16, torch.float16: _has_float16}.get(dtype)
    if has is None or has(device):
        return ""
    name, kind = str(dtype).removeprefix("torch."), torch.device(device).type
    return f"this {kind} only imitates {name}, which is many times slower; {instead}"


def device_module(device: str | torch.device) -> Any:
    """torch.cuda for cuda, and so on."""
    return torch.get_device_module(torch.device(device))


def overlaps(device: str | torch.device) -> bool:
    """Whether copies to and from the device can be queued beside its work. mps has one queue, in the host's memory."""
    return is_accelerator(device) and hasattr(device_module(device), "Stream")


def to_device(tensor: Tensor, device: str | torch.device) -> Tensor:
    """A tensor of the CPU on the device. Where copies overlap it is queued and not waited for, from pinned memory."""
    return tensor.pin_memory().to(device, non_blocking=True) if overlaps(device) else tensor.to(device)


class OnItsWay:
    """Tensors of one device or several that are copied to the CPU while both go on; `get` gives them once they are there.

    torch keeps the pinned memory that they are copied to, and gives it out again when nobody holds it.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors: dict[str, Tensor] = {}
        last: dict[torch.device, Any] = {}
        for name, tensor in tensors.items():
            if overlaps(tensor.device):
                self._tensors[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                self._tensors[name].copy_(tensor, non_blocking=True)
                module = device_module(tensor.device)
                last[tensor.device] = module.Event()  # after the last of this device
                last[tensor.device].record(module.current_stream(tensor.device))
            else:
                self._tensors[name] = tensor.to("cpu")
        self._arrived = list(last.values())

    def get(self) -> dict[str, Tensor]:
        """On the CPU. It may be called in any thread."""
        for event in self._arrived:
            event.synchronize()
        return self._tensors


def copied_ahead(tensors: Iterable[Tensor], device: str | torch.device) -> Iterator[Tensor]:
    """Each tensor on the device, in order. While an accelerator works on one, the next is made and copied beside it.

    The tensors are then made in a thread, and should be in pinned memory: a copy from any other is waited for.
    """
    if not overlaps(device):
        for tensor in tensors:
            yield tensor.to(device)
        return
    module, ahead = device_module(device), read_ahead(tensors, 2)
    beside, copied = module.Stream(device=device), None
    try:
        for tensor in ahead:
            usable = _usable(copied, module, beside)  # before the next is queued there, which it need not wait for
            with module.stream(beside):
                copied = tensor.to(device, non_blocking=True)
            if usable is not None:
                yield usable
        usable = _usable(copied, module, beside)
        if usable is not None:
            yield usable
    finally:
        ahead.close()


def _usable(copied: Tensor | None, module: Any, beside: Any) -> Tensor | None:
    """What was copied on the queue ``beside``, once the main queue has been told to wait for it."""
    if copied is not None:
        main = module.current_stream(copied.device)
        main.wait_stream(beside)
        copied.record_stream(main)  # or its memory would be given to the next copy while it is read
    return copied
