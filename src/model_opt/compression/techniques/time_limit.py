"""A limit of time for what may never end in another's code."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from model_opt.errors import TechniqueError


class TookTooLong(TechniqueError):
    """A step of a technique took longer than it may."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Inside, Python code is stopped with `TookTooLong` after so long.

    By a timer signal: there is no limit in other threads than the main one, nor where the system has no timers.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise TookTooLong(f"it took longer than {seconds:g} s")

    began = time.monotonic()
    before = signal.signal(signal.SIGALRM, stop)
    left, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if left:  # another timer was running, which may be due by now
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - began), 1e-3))
