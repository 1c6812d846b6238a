"""Threads that read ahead of the main thread and write behind it, within bounds."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Queue
from typing import Any, TypeVar

T = TypeVar("T")
_END = object()


def read_ahead(items: Iterable[T], depth: int) -> Generator[T]:
    """The items in order, made in a thread that is at most ``depth`` of them ahead, the one it works on included.

    What raises there is raised here, at its place in the order. Closing the iterator ends the thread.
    """
    queue: Queue[tuple[Any, BaseException | None]] = Queue()
    room = threading.Semaphore(depth)
    closed = threading.Event()

    def work() -> None:
        iterator = iter(items)
        try:
            while True:
                room.acquire()
                if closed.is_set():
                    return
                item = next(iterator, _END)
                queue.put((item, None))
                if item is _END:
                    return
        except BaseException as problem:
            queue.put((_END, problem))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            item, problem = queue.get()
            if problem is not None:
                raise problem
            if item is _END:
                return
            room.release()
            yield item
    finally:
        closed.set()
        room.release()
        thread.join()


class WriteBehind:
    """``with WriteBehind(depth) as writer: writer.submit(work, ...)``: one thread does the work in order.

    ``submit`` waits while ``depth`` pieces are unfinished, so memory stays bounded. The first exception is
    raised by the next ``submit`` or at the end, and nothing submitted after the piece that raised is done.
    """

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.pending: deque[Future[Any]] = deque()
        self.failed = False

    def __enter__(self) -> "WriteBehind":
        self.pool = ThreadPoolExecutor(max_workers=1)
        return self

    def submit(self, work: Callable[..., Any], *arguments: Any) -> None:
        while len(self.pending) >= self.depth or (self.pending and self.pending[0].done()):
            self.pending.popleft().result()
        self.pending.append(self.pool.submit(self._guarded, work, *arguments))

    def _guarded(self, work: Callable[..., Any], *arguments: Any) -> None:
        if self.failed:
            return
        try:
            work(*arguments)
        except BaseException:
            self.failed = True
            raise

    def wait(self) -> None:
        """Return when everything submitted is done."""
        while self.pending:
            self.pending.popleft().result()

    def __exit__(self, kind: Any, *exception: Any) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self.failed = self.failed or kind is not None
            self.pool.shutdown(wait=True)
