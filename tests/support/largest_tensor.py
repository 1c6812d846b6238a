"""How large a tensor is made inside a block of code: memory that is bounded by what the block ought to need."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class LargestTensor(TorchDispatchMode):
    """The most numbers, and the most bytes, of one tensor that was made inside."""

    numbers = bytes = 0

    def __init__(self, but=None) -> None:
        """but: tensors of this one's shape are not counted, what is made of rows that are there anyway."""
        super().__init__()
        self.shape = None if but is None else but.shape

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for made in result if isinstance(result, tuple | list) else (result,):
            if isinstance(made, torch.Tensor) and not func.is_view and made.shape != self.shape:
                self.numbers = max(self.numbers, made.numel())
                self.bytes = max(self.bytes, made.numel() * made.element_size())
        return result
