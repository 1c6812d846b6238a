"""An accelerator that is none: tensors that say they are on a device, refuse what a device refuses, and count waits.

torch's backend for extensions is given the name ``simulated``. Its tensors wrap tensors of the CPU, which do the work, so
results are those of the CPU to the bit. What differs is what a GPU would not do: operations between devices, generators
of another device, `.numpy()`, on request float64. Every copy between host and device and every wait of the host for the
device is counted under the line of the package that caused it. What a copy that nobody waited for brings to the host
arrives at the next wait: read before, it is garbage.
"""

import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "simulated"
aten = torch.ops.aten
VALUE_TO_HOST = {aten._local_scalar_dense, aten.equal, aten.is_nonzero, aten.item}
SIZE_TO_HOST = {aten.nonzero, aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.masked_select, aten.bincount,
                aten.repeat_interleave}  # fmt: skip
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}


class SimulatedTensor(torch.Tensor):
    """A tensor on the simulated device; ``inner`` is on the CPU."""

    @staticmethod
    def __new__(cls, inner):
        layout = (
            {}
            if inner.layout != torch.strided
            else {"strides": inner.stride(), "storage_offset": inner.storage_offset()}
        )
        made = torch.Tensor._make_wrapper_subclass(cls, inner.size(), dtype=inner.dtype, device=f"{NAME}:0", **layout)
        made.inner = inner
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        assert SIMULATION.current is not None, "a tensor of a simulated device outlived its test"
        return SIMULATION.current.call(func, args, kwargs or {})

    waited_for = memory_kept = True

    def record_stream(self, stream):
        self.memory_kept = True

    def tolist(self):
        return self.cpu().tolist()

    def numpy(self, *args, **kwargs):
        raise TypeError(f"can't convert {NAME}:0 device type tensor to numpy. Use Tensor.cpu() first")

    __array__ = numpy

    def __repr__(self):
        return f"SimulatedTensor({self.inner!r})"


class Simulation:
    """What happened on the device: ``copies`` and ``waits``, each by ``file.py:line``."""

    def __init__(self, float64=True):
        self.float64 = float64
        self.copies, self.waits = Counter(), Counter()
        self.of_thread, self.waited_at = threading.local(), 0.0
        self.arriving = []
        """(where to, what) of copies to the host that nobody waited for"""
        self.pinned = set()
        self.lock = threading.RLock()

    def wait(self, counted=True):
        if counted:
            self.waits[_line()] += 1
        with self.lock:
            now = time.perf_counter()
            for host, value in self.arriving:
                host.copy_(value)
            self.arriving.clear()
            self.waited_at = now  # only once all is there: another thread does not wait again for what is before it

    def call(self, func, args, kwargs):
        packet = func.overloadpacket
        flat = list(_leaves((args, kwargs.values())))
        ours = [each for each in flat if isinstance(each, SimulatedTensor)]
        device = kwargs.get("device")
        to_us = device is not None and torch.device(device).type == NAME
        if packet is aten.is_pinned:
            return args[0].untyped_storage().data_ptr() in self.pinned
        if packet is aten._pin_memory or kwargs.get("pin_memory"):
            return self._pin(func, args, kwargs)
        if not ours and not to_us:
            return func(*args, **kwargs)
        if packet is aten._to_copy and device is not None and bool(ours) != to_us:
            return self._move(func, args[0], kwargs, to_us)
        if packet is aten.copy_ and len(ours) == 1:
            return self._copy(*args, **kwargs)
        self._refuse(func, args, flat, ours)
        if packet in VALUE_TO_HOST or packet in SIZE_TO_HOST:
            self.wait()
        if packet in INDEXED and any(index is not None and index.dtype == torch.bool for index in args[1]):
            self.wait()
        return self._on_cpu(func, args, kwargs, ours)

    def _on_cpu(self, func, args, kwargs, ours):
        owners = {id(each.inner): each for each in ours}
        keywords = {name: _unwrapped(value) for name, value in kwargs.items()}
        if keywords.get("device") is not None:
            keywords["device"] = torch.device("cpu")
        result = func(*map(_unwrapped, args), **keywords)
        if isinstance(result, (list, tuple)):
            return type(result)(self._wrapped(value, owners) for value in result)
        return self._wrapped(result, owners)

    def _wrapped(self, value, owners):
        if not isinstance(value, torch.Tensor):
            return value
        if not self.float64 and value.dtype == torch.float64:
            raise TypeError(f"Cannot convert a tensor to float64: {NAME} has none")
        return owners[id(value)] if id(value) in owners else SimulatedTensor(value)

    def _refuse(self, func, args, flat, ours):
        """Raise what a GPU raises at tensors and generators of another device, and where it would read too early."""
        if not all(each.waited_for and each.memory_kept for each in ours):
            raise RuntimeError("used on the main queue, which does not wait for the queue that copies it")
        for other in (
            each for each in flat if isinstance(each, torch.Tensor) and not isinstance(each, SimulatedTensor)
        ):
            if func.overloadpacket in INDEXED and other is not args[0] and isinstance(args[0], SimulatedTensor):
                self.copies[_line()] += 1
                self.wait()  # an index on the CPU is copied
            elif other.ndim or torch.Tag.pointwise not in func.tags or (other is args[0] and func._schema.is_mutable):
                raise RuntimeError(
                    f"Expected all tensors to be on the same device, but found at least two devices, {NAME}:0 and cpu! ({func})"
                )
        for generator in (each for each in flat if isinstance(each, torch.Generator)):
            if generator.device.type != NAME:
                raise RuntimeError(f"Expected a {NAME!r} device type for generator but found 'cpu' ({func})")

    def _move(self, func, value, kwargs, to_us):
        """`.to` between host and device."""
        self.copies[_line()] += 1
        if not to_us or not kwargs.get("non_blocking") or not self._is_pinned(value):
            self.wait()
        inner = func(value if to_us else value.inner, **{**kwargs, "device": torch.device("cpu")})
        if to_us and not self.float64 and inner.dtype == torch.float64:
            raise TypeError(f"Cannot convert a tensor to float64: {NAME} has none")
        if not to_us:
            return inner
        made = SimulatedTensor(inner)
        stream = getattr(self.of_thread, "stream", None)
        if stream is not None:  # on a queue of its own
            made.waited_for = made.memory_kept = False
            stream.copied.append(made)
        return made

    def _copy(self, to, value, non_blocking=False):
        self.copies[_line()] += 1
        if isinstance(to, SimulatedTensor):
            if not non_blocking or not self._is_pinned(value):
                self.wait()
            to.inner.copy_(value)
        elif non_blocking and self._is_pinned(to):
            with self.lock:  # or a wait of another thread would come between, and garbage would stay
                to.fill_(111)
                self.arriving.append((to, value.inner.clone()))
        else:
            self.wait()
            to.copy_(value.inner)
        return to

    def _pin(self, func, args, kwargs):
        if func.overloadpacket is aten._pin_memory:
            made = args[0].clone()
        else:
            made = func(*args, **{**kwargs, "pin_memory": False})
        self.pinned.add(made.untyped_storage().data_ptr())
        KEPT.append(made.untyped_storage())  # or the next tensor at this address would count as pinned
        return made

    def _is_pinned(self, value):
        return value.untyped_storage().data_ptr() in self.pinned


def _leaves(values):
    for value in values:
        if isinstance(value, (list, tuple)) or type(value) is type({}.values()):
            yield from _leaves(value)
        else:
            yield value


def _unwrapped(value):
    if isinstance(value, SimulatedTensor):
        return value.inner
    return type(value)(map(_unwrapped, value)) if isinstance(value, (list, tuple)) else value


KEPT = []
"""Pinned memory is not freed within a test."""


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return SIMULATION.current.call(func, args, kwargs or {})


def _line():
    """The nearest line of the package that led here, as ``file.py:12``."""
    frame = sys._getframe()
    while frame is not None:
        if "/sae_lm/" in frame.f_code.co_filename and "/tests/" not in frame.f_code.co_filename:
            return f"{frame.f_code.co_filename.rpartition('/sae_lm/')[2]}:{frame.f_lineno}"
        frame = frame.f_back
    return "outside the package"


class _Event:
    def __init__(self, enable_timing=False):
        self.seconds = None

    def record(self, stream=None):
        self.seconds = time.perf_counter()

    def synchronize(self):
        if self.seconds > SIMULATION.current.waited_at:  # else the device has passed it
            SIMULATION.current.wait()

    def elapsed_time(self, end):
        return 1000 * (end.seconds - self.seconds)


class _Stream:
    def __init__(self, device=None):
        self.copied = []

    def wait_stream(self, other):
        for tensor in other.copied:
            tensor.waited_for = True
        other.copied.clear()


class _Backend:
    """The device's module, as torch.cuda is CUDA's. Without a simulation there is no device."""

    Event, Stream = _Event, _Stream
    current = None

    def is_available(self):
        return self.current is not None

    def is_initialized(self):
        return True

    def _is_in_bad_fork(self):
        return False

    def current_device(self):
        return 0

    def device_count(self):
        return 1

    def manual_seed_all(self, seed):
        pass

    def get_rng_state(self, device=None):
        return torch.zeros(0, dtype=torch.uint8)

    def set_rng_state(self, state, device=None):
        pass

    def get_amp_supported_dtype(self):
        return [torch.bfloat16, torch.float16]

    def synchronize(self, device=None):
        self.current.wait()

    def current_stream(self, device=None):
        return _Stream()

    @contextmanager
    def stream(self, stream):
        self.current.of_thread.stream = stream  # each thread has its own, as with CUDA
        yield
        self.current.of_thread.stream = None


SIMULATION = _Backend()


def _sparse_csr(real):
    def made(starts, columns, values, *args, **kwargs):
        if not isinstance(starts, SimulatedTensor):
            return real(starts, columns, values, *args, **kwargs)
        return SimulatedTensor(real(starts.inner, columns.inner, values.inner, *args, **kwargs))

    return made


class _Hook(torch._C._acc.PrivateUse1Hooks):
    def is_available(self):
        return SIMULATION.is_available()

    def is_built(self):
        return True

    def has_primary_context(self, index):
        return True


# at import, which is before the first backward pass of a process: that starts autograd's threads, one for each device
_setup_privateuseone_for_python_backend(NAME, backend_module=SIMULATION, hook=_Hook())


@contextmanager
def simulated_device(float64=True):
    """Inside, torch has a device ``simulated``, in this thread and those that are started; gives the `Simulation`."""
    real_run, real_csr, real_inference = threading.Thread.run, torch.sparse_csr_tensor, torch.inference_mode

    def run_in_mode(self):
        with _Mode():
            real_run(self)

    SIMULATION.current = Simulation(float64)
    lift = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=) is then a copy that is seen
    threading.Thread.run, torch.sparse_csr_tensor = run_in_mode, _sparse_csr(real_csr)
    torch.inference_mode = torch.no_grad  # views of such tensors cannot be wrapped
    try:
        with _Mode():
            yield SIMULATION.current
    finally:
        threading.Thread.run, torch.sparse_csr_tensor, torch.inference_mode = real_run, real_csr, real_inference
        torch._C._set_only_lift_cpu_tensors(lift)
        SIMULATION.current = None
        KEPT.clear()
