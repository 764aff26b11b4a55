"""What runs inside a fork server: import what measuring processes need, then fork one for each request."""

import contextlib
import gc
import importlib
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Sequence

from model_opt.measuring import pickle_frames, server
from model_opt.measuring.fork_server import check_peer
from model_opt.measuring.timing_lock import TimingLock

REQUEST_S = 5.0
"""How long one who has connected may take to say what it wants."""
FDS = 4


def main(listener_fd: int, life_fd: int, modules: Sequence[str]) -> None:
    """Serves until the other end of the pipe `life_fd` is closed; in a forked process, until its work is done."""
    for module in modules:
        with TimingLock().shared(), contextlib.suppress(Exception):
            importlib.import_module(module)
    gc.collect()
    gc.freeze()  # what is imported stays in pages that all share
    work = ForkServerLoop(socket.socket(fileno=listener_fd), life_fd).serve()
    if work is not None:
        work()


class ForkServerLoop:
    """Forks measuring processes and tells those who asked for them their pids, and later how they ended."""

    def __init__(self, listener: socket.socket, life_fd: int) -> None:
        self._listener, self._life_fd = listener, life_fd
        self._asked: dict[int, socket.socket] = {}
        self._wake, self._woken = os.pipe()
        os.set_blocking(self._woken, False)
        signal.set_wakeup_fd(self._woken, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)

    def serve(self) -> Callable[[], None] | None:
        """Serves; returns the work of a process that was forked, and in the server itself, at its end, None."""
        listener = self._listener.fileno()
        while True:
            ready = select.select([listener, self._life_fd, self._wake], [], [])[0]
            if self._life_fd in ready:
                return None
            if self._wake in ready:
                os.read(self._wake, 4096)
                self._tell_ends()
            if listener in ready and (work := self._accept()) is not None:
                return work

    def _tell_ends(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            with self._asked.pop(pid) as connection, contextlib.suppress(OSError):
                pickle_frames.send(connection, (os.waitstatus_to_exitcode(status),))

    def _accept(self) -> Callable[[], None] | None:
        connection, _ = self._listener.accept()
        connection.settimeout(REQUEST_S)
        fds: list[int] = []
        try:
            check_peer(connection)
            fds = socket.recv_fds(connection, 1, FDS)[1]
            request = pickle_frames.PickleFrameReader(connection).receive(REQUEST_S)
            if request is not None and len(fds) == FDS:
                return self._fork(connection, fds, *request)
        except (OSError, EOFError):
            pass
        _close(fds)
        connection.close()
        return None

    def _fork(
        self, connection: socket.socket, fds: list[int], path: list[str], folder: str, env: dict[str, str]
    ) -> Callable[[], None] | None:
        pid = os.fork()
        if pid:
            self._asked[pid] = connection
            _close(fds)
            with contextlib.suppress(OSError):
                pickle_frames.send(connection, (pid,))
            return None
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for other in (self._listener, connection, *self._asked.values()):
            other.close()
        *given, output = fds
        os.setsid()
        os.dup2(output, 1)
        os.dup2(output, 2)
        _close([output, self._life_fd, self._wake, self._woken])
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(env)
        sys.path[:] = path
        importlib.invalidate_caches()
        return lambda: server.main(*given)


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
