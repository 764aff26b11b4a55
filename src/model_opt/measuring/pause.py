"""Stopping other processes, with all that they have started, for a moment; whoever stops them may die meanwhile."""

import atexit
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from model_opt.measuring.process import GUARD, Process, ancestors, descendants, every_process, find_process

SETTLE_S = 0.25
"""A process that waits in the kernel for a disk stops only after that; longer than this it is not waited for."""


@contextmanager
def paused(pids: Iterable[int]) -> Iterator[None]:
    """The processes `pids` and their descendants stand still inside the block: never this one nor one above it.

    If this process dies inside the block they go on at once (`pause_guard`). Where no such guard can be started
    nothing is paused; `can_pause` says so before.
    """
    roots = frozenset(pids) - ancestors(os.getpid())
    guard = _guard() if roots else None
    if guard is None:
        yield
        return
    stopped: dict[int, Process] = {}
    try:
        _stop(roots, stopped, guard)
        yield
    finally:
        _resume(stopped)
        guard.tell("resumed")


def can_pause(pid: int) -> bool:
    """Whether `pid` can be paused: neither this one, one above it, nor one of a terminal: its shell would notice."""
    process = find_process(pid)
    if process is None or process.terminal or pid in ancestors(os.getpid()):
        return False
    return _guard() is not None


def _stop(roots: frozenset[int], stopped: dict[int, Process], guard: "_Guard") -> None:
    """Stops the trees of `roots`, and looks again until nothing is left in them that runs and could start more."""
    spared = ancestors(os.getpid())
    while True:
        found = descendants(roots, every_process())
        new = {pid: process for pid, process in found.items() if pid not in stopped and pid not in spared}
        if not new:
            return
        if not guard.tell("stopped", *(f"{process.pid}:{process.started}" for process in new.values())):
            return  # it was killed just now: better a disturbed timing than one who nobody lets go on
        stopped |= new
        _signal(new, signal.SIGSTOP)
        end = time.monotonic() + SETTLE_S
        while any(_runs(process) for process in new.values()) and time.monotonic() < end:
            time.sleep(0.001)


def _runs(process: Process) -> bool:
    now = find_process(process.pid)
    return now is not None and now.lives and not now.stopped


def _resume(stopped: dict[int, Process]) -> None:
    """In the order in which they were stopped, only what is still the same process."""
    same = {}
    for pid, process in stopped.items():
        now = find_process(pid)
        if now is not None and now.started == process.started:
            same[pid] = process
    _signal(same, signal.SIGCONT)


def _signal(processes: Iterable[int], number: signal.Signals) -> None:
    for pid in processes:
        with contextlib.suppress(OSError):  # gone meanwhile, or another user's
            os.kill(pid, number)


class _Guard:
    """The process that runs `pause_guard` for this one."""

    def __init__(self) -> None:
        """Raises `OSError` where it cannot be started."""
        script = Path(__file__).with_name("pause_guard.py")
        self.owner = os.getpid()
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", script, str(self.owner), GUARD],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )
        self._pipe = cast(IO[bytes], self._process.stdin)

    @property
    def lives(self) -> bool:
        return self.owner == os.getpid() and self._process.poll() is None

    def tell(self, *words: str) -> bool:
        """Writes a line; False where nobody reads any more."""
        try:
            os.write(self._pipe.fileno(), f"{' '.join(words)}\n".encode())
        except BrokenPipeError:
            return False
        return True

    def close(self) -> None:
        self._pipe.close()
        if self.owner == os.getpid():
            self._process.wait()


_guards: list[_Guard] = []
_starting = threading.Lock()


def _guard() -> _Guard | None:
    """The guard of this process, started at first need and anew if it is gone; None where none can be."""
    with _starting:
        if not _guards or not _guards[0].lives:
            _close_guard()
            try:
                _guards.append(_Guard())
            except OSError:
                return None
        return _guards[0]


@atexit.register
def _close_guard() -> None:
    while _guards:
        _guards.pop().close()
