"""Join the processes that torchrun started, and exchange values with them.

A plain run is alone. Ranks exchange little: barriers and small objects over gloo, whatever the device; their results are
files. Only a `Team`, ranks that train one SAE together, exchanges tensors, over nccl where they are on GPUs.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeVar

from sae_lm.errors import SaeLmError, SettingsError, Stopped
from sae_lm.runtime.memory import is_out_of_memory

if TYPE_CHECKING:
    from torch import Tensor


T = TypeVar("T")


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
        with _report_lost_peer(self.rank):
            dist.all_gather_object(values, value)
        return values

    def decided(self, decide: Callable[[], T]) -> T:
        """What rank 0 decides, which it alone is asked; what it raises, all raise."""
        return _decided(decide, self.rank, self.gather)

    def dealt(self, deal: Callable[[], list[T]]) -> T:
        """This rank's of the values that rank 0, which it alone is asked, has for each; what it raises, all raise."""
        if self.size == 1:
            return deal()[0]
        import torch.distributed as dist

        mine: list[Any] = [None]
        values, problem = [None] * self.size, None
        if self.rank == 0:
            try:
                values = deal()
            except SaeLmError as raised:
                problem = raised
        with _report_lost_peer(self.rank):
            dist.scatter_object_list(mine, [(value, problem) for value in values], src=0)
        value, problem = mine[0]
        if problem is not None:
            raise problem
        return value

    def team_of(self, size: int) -> "Team":
        """This rank's team, when ranks 0 to size - 1 make the first, and so on. Raises SettingsError if that leaves some over."""
        if self.size % size:
            raise SettingsError(
                f"ranks_per_sae is {size}, which does not divide {self.size} processes; start a multiple of {size}"
            )
        if size == 1:
            return SINGLE
        import torch.distributed as dist

        # every rank has to make every group, which does not take its timeout from the first
        members = [range(first, first + size) for first in range(0, self.size, size)]
        groups = [dist.new_group(some, timeout=COLLECTIVE_TIMEOUT) for some in members]
        rings = [dist.new_group(some, timeout=COLLECTIVE_TIMEOUT, backend="gloo") for some in members]
        number = self.rank // size
        return Team(self.rank % size, size, groups[number], rings[number])


class Team(NamedTuple):
    """Ranks that train one SAE together: each has a slice of every batch. Every member makes the same calls in the same order."""

    rank: int
    size: int
    group: Any
    ring: Any = None
    """a group of its own, over which each member watches the next"""

    def average(self, *tensors: "Tensor") -> None:
        """Put the mean over the team into each tensor. All members end with the same bits."""
        self.total(*tensors)
        for tensor in tensors if self.size > 1 else ():
            tensor /= self.size

    def total(self, *tensors: "Tensor") -> None:
        """Put the sum over the team into each tensor. All members end with the same bits."""
        if self.size == 1:
            return
        import torch.distributed as dist

        with _report_lost_peer(self.rank):
            waiting = [dist.all_reduce(tensor, group=self.group, async_op=True) for tensor in tensors]
            for work in waiting:
                assert work is not None
                work.wait()

    def gather(self, part: "Tensor") -> list["Tensor"]:
        """Every member's part, by rank: of one shape but for the number of rows."""
        if self.size == 1:
            return [part]
        import torch
        import torch.distributed as dist

        with _report_lost_peer(self.rank):
            sizes = [torch.zeros(1, dtype=torch.long, device=part.device) for _ in range(self.size)]
            dist.all_gather(sizes, torch.full_like(sizes[0], len(part)), group=self.group)
            rows = [int(size) for size in sizes]
            sent = part.new_zeros(max(rows), *part.shape[1:])
            sent[: len(part)] = part
            parts = [torch.empty_like(sent) for _ in rows]
            dist.all_gather(parts, sent, group=self.group)
        return [one[:number] for one, number in zip(parts, rows, strict=True)]

    def gather_objects(self, value: Any) -> list[Any]:
        """The values of all members, by rank: small ones."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        with _report_lost_peer(self.rank):
            dist.all_gather_object(values, value, group=self.group)
        return values

    def decided(self, decide: Callable[[], T]) -> T:
        """What the first member decides, which it alone is asked; what it raises, all raise."""
        return _decided(decide, self.rank, self.gather_objects)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Inside, a member that dies ends the others: gloo notices that it is gone, nccl would wait for it for ever.

        Each member waits for a word of the next, which comes at the end of the block, or at a stop that all agreed on.
        """
        if self.size == 1:
            yield
            return
        import torch
        import torch.distributed as dist

        ended = threading.Event()
        before, after = (dist.get_global_rank(self.group, (self.rank + by) % self.size) for by in (-1, 1))

        def watch() -> None:
            try:
                dist.recv(torch.zeros(1), src=after, group=self.ring)
            except RuntimeError:
                if not ended.wait(GRACE_SECONDS):  # the main thread may have noticed by itself, and says so
                    print(f"rank {dist.get_rank()} lost rank {after}; {SEE_THERE}", file=sys.stderr)
                    exit_now(2)

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        except Stopped:
            self._farewell(before, thread)
            raise
        else:
            self._farewell(before, thread)
        finally:
            ended.set()

    def _farewell(self, before: int, thread: threading.Thread) -> None:
        import torch
        import torch.distributed as dist

        with _report_lost_peer(self.rank):
            dist.send(torch.zeros(1), dst=before, group=self.ring)
        thread.join()

    def agree(self, stop_request: bool) -> bool:
        """Whether any member has a stop request."""
        if self.size == 1:
            return stop_request
        import torch

        return any(int(one) for one in self.gather(torch.tensor([int(stop_request)])))


SINGLE = Team(0, 1, None)
"""One process that has whole batches."""


@contextmanager
def _report_lost_peer(rank: int) -> Iterator[None]:
    """What happens inside needs all ranks. Raises SaeLmError where one has died."""
    try:
        yield
    except RuntimeError as problem:  # gloo: a peer's connection is closed
        if is_out_of_memory(problem):
            raise
        raise SaeLmError(
            f"rank {rank} lost another rank ({' '.join(str(problem).split())[:120]}); {SEE_THERE}"
        ) from None


def _decided(decide: Callable[[], T], rank: int, gather: Callable[[Any], list[Any]]) -> T:
    value, problem = None, None
    if rank == 0:
        try:
            value = decide()
        except SaeLmError as raised:
            problem = raised
    value, problem = gather((value, problem))[0]
    if problem is not None:
        raise problem
    return value  # pyright: ignore[reportReturnType]


SEE_THERE = "see that rank's message, then run the same command again, with as many processes as you like"
GRACE_SECONDS = 20.0
"""Time for the main thread to say itself that a member is gone."""
COLLECTIVE_TIMEOUT = timedelta(days=365)
"""Ranks wait for one another as long as it takes: a rank that dies closes its connections, and that is noticed at once."""


def is_one_of_many() -> bool:
    """Whether torchrun, or what sets its variables as it does, started this process beside others."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys() and int(os.environ["WORLD_SIZE"]) > 1


def exit_now(code: int) -> NoReturn:
    """End this process at once, with what it printed.

    Where several ranks come to their end, torch's threads have aborted the interpreter's own end (SIGABRT, "terminate
    called without an active exception", once in a few hundred runs): the work was done, and torchrun called it failed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@contextmanager
def join_ranks() -> Iterator[Ranks]:
    """This process's place; joins the process group of torchrun if there is one, and leaves it at the end."""
    if not is_one_of_many():
        yield Ranks(0, 1, 0)
        return
    import torch
    import torch.distributed as dist

    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=COLLECTIVE_TIMEOUT)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))
    finally:
        dist.destroy_process_group()
