"""torchrun's environment -> this process's place among the others; a plain run is the only one.

Ranks exchange little: barriers and small objects over gloo, whatever the device. What they produce meets in files.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple

from sae_lm.errors import SaeLmError


class Ranks(NamedTuple):
    """This process's place among those that torchrun started."""

    rank: int
    size: int
    local_rank: int
    """place among the processes of this machine: the GPU it takes"""

    def barrier(self) -> None:
        """Return once every rank is here. Raises SaeLmError where one of them has died."""
        self.gather(None)

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, by rank."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        try:
            dist.all_gather_object(values, value)
        except RuntimeError as problem:  # gloo: a peer's connection is closed
            raise SaeLmError(
                f"rank {self.rank} lost another rank ({' '.join(str(problem).split())[:120]}); see that rank's message, "
                "then run the same command again, with as many processes as you like"
            ) from None
        return values


PATIENCE = timedelta(days=365)
"""Ranks wait for one another as long as it takes: a rank that dies closes its connections, and that is noticed at once."""


def is_one_of_many() -> bool:
    """Whether torchrun, or what sets its variables as it does, started this process beside others."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys() and int(os.environ["WORLD_SIZE"]) > 1


@contextmanager
def join_ranks() -> Iterator[Ranks]:
    """This process's place; joins the process group of torchrun if there is one, and leaves it at the end."""
    if not is_one_of_many():
        yield Ranks(0, 1, 0)
        return
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))
    finally:
        dist.destroy_process_group()
