"""Stop requests: SIGINT and SIGTERM ask for the end at the next safe point; a second one stops at once."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from sae_lm.errors import Stopped


class StopRequest:
    """Whether somebody asked this process to stop."""

    def __init__(self, until: str) -> None:
        self.until = until
        self.signal: int | None = None
        self.asked = False
        """by this program itself: what runs beside it failed"""

    def __bool__(self) -> bool:
        return self.asked or self.signal is not None

    def stop(self, done: str) -> Stopped:
        """What to raise at the safe point; ``done`` says what is kept."""
        number = signal.SIGTERM if self.signal is None else self.signal  # another process of a team may have had it
        return Stopped(f"stopped by {signal.Signals(number).name}: {done}", number)


@contextmanager
def stop_on_signal(until: str) -> Iterator[StopRequest]:
    """Inside the block the first signal is remembered, and acknowledged; the next has its usual effect.

    until: what is finished first, for the message. In a thread other than the main one, where Python
    handles no signals, nothing changes.
    """
    stop_request = StopRequest(until)
    if threading.current_thread() is not threading.main_thread():
        yield stop_request
        return
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def remember(number: int, frame: FrameType | None) -> None:
        stop_request.signal = number
        for each, handler in usual.items():
            signal.signal(each, handler)
        os.write(2, f"stopping after {until}; the same signal again stops at once\n".encode())  # print is not reentrant

    for number in usual:
        signal.signal(number, remember)
    try:
        yield stop_request
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
