"""Measuring processes forked from one that has already imported what they need: importing torch and its compilers takes
longer than many a measurement.

A fork server listens on a Linux abstract socket whose name is made of the user, the interpreter and the environment, so
that every process of this machine which would start the same measuring process finds it, Ray's workers too.
"""

import contextlib
import hashlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from model_opt.measuring import pickle_frames

ANSWER_S = 60.0
"""How long a fork server that still imports is waited for."""
LOST = 255
"""What stands for the exit code of a process whose fork server ended before it."""
_PASSING = (
    *("PWD", "OLDPWD", "SHLVL", "_", "COLUMNS", "LINES"),
    *("PYTHONBREAKPOINT", "SPT_NOENV", "PYTEST_CURRENT_TEST", "XDG_DATA_HOME", "XDG_STATE_HOME"),
)
"""Variables that a shell, Ray or pytest sets for each process, and where this package keeps things; no library reads
them when it is loaded."""


@contextmanager
def fork_server(modules: Sequence[str], env: Mapping[str, str]) -> Iterator[None]:
    """Inside the block processes that are started with the environment `env` are forked from one that has imported
    `modules`, of which those that are missing are left out. It ends with this process.

    Where that cannot be (another system than Linux, a GPU, whose driver forbids it) they start as they otherwise do.
    """
    with ExitStack() as stack:
        if _can_fork():
            _open(modules, env, stack)
        yield


def _can_fork() -> bool:
    return sys.platform == "linux" and not any(Path("/dev").glob("nvidia[0-9]*")) and not Path("/dev/kfd").exists()


def _open(modules: Sequence[str], env: Mapping[str, str], stack: ExitStack) -> None:
    """Starts a fork server that ends with `stack`; none where another process of this user has opened the same."""
    life_read, life = os.pipe()  # closed by the kernel when this process dies
    stack.callback(os.close, life)
    with os.fdopen(life_read, "rb", 0), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            listener.bind(_address(env))
        except OSError:
            return
        listener.listen(64)
        module, given = "model_opt.measuring.fork_server_loop", [listener.fileno(), life_read, list(modules)]
        fds = [listener.fileno(), life_read]
        process = start_python(module, given, fds, env, stdout=subprocess.DEVNULL)
    stack.callback(process.wait)
    stack.callback(process.kill)


class Forked:
    """A process that a fork server has started: as much of `subprocess.Popen` as a `ChildProcess` needs."""

    def __init__(
        self, connection: socket.socket, reader: pickle_frames.PickleFrameReader, stdout: IO[bytes], pid: int
    ) -> None:
        self.pid, self.stdout = pid, stdout
        self._connection, self._reader = connection, reader
        self._code: int | None = None
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """How the process ended (negative: by that signal), or None while it lives."""
        return self._look(0.0)

    def wait(self, timeout: float) -> int:
        """The same once it has ended; raises `subprocess.TimeoutExpired` after `timeout` seconds."""
        code = self._look(timeout)
        if code is None:
            raise subprocess.TimeoutExpired("a forked process", timeout)
        return code

    def kill(self) -> None:
        """Kills the process, not what it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def _look(self, timeout_s: float) -> int | None:
        with self._lock:
            if self._code is None:
                try:
                    said = self._reader.receive(timeout_s)
                except EOFError:  # nobody is left who would see it end
                    self.kill()
                    said = (LOST,)
                if said is not None:
                    self._code = int(said[0])
                    self._connection.close()
            return self._code


def fork(env: Mapping[str, str], fds: Sequence[int]) -> Forked | None:
    """A measuring process with the environment `env`, this process's `sys.path` and folder, and the file descriptors
    that `child_loop.main` takes; None where no fork server is open for it, or it does not answer."""
    if not _can_fork():
        return None
    output, theirs = os.pipe()
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(ANSWER_S)
        connection.connect(_address(env))
        check_peer(connection)
        socket.send_fds(connection, [b"f"], [*fds, theirs])
        pickle_frames.send(connection, (import_path(), str(Path.cwd()), dict(env)))
        reader = pickle_frames.PickleFrameReader(connection)
        said = reader.receive(ANSWER_S)
        if said is not None:
            return Forked(connection, reader, os.fdopen(output, "rb", 0), int(said[0]))
    except (OSError, EOFError):
        pass
    finally:
        os.close(theirs)
    connection.close()
    os.close(output)
    return None


def start_python(
    module: str, arguments: Sequence[object], fds: Sequence[int], env: Mapping[str, str], *, stdout: int
) -> "subprocess.Popen[bytes]":
    """A new interpreter in a session of its own, with this process's `sys.path` and folder and the file descriptors
    `fds`, that calls `main` of `module` with `arguments` (JSON-like); what it says goes to `stdout`."""
    code = (
        "import importlib, json, sys; path, name, given = json.loads(sys.argv[1]); sys.path[:] = path; "
        "sys.argv[1:] = []; importlib.import_module(name).main(*given)"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, json.dumps([import_path(), module, list(arguments)])],
        pass_fds=fds,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env=dict(env),
    )


def import_path() -> list[str]:
    """`sys.path` as it means the same in another folder."""
    return [entry or str(Path.cwd()) for entry in sys.path]


def check_peer(connection: socket.socket) -> None:
    """Raises `PermissionError` unless the other side is this very user: anybody can take an abstract name."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    if struct.unpack("3i", credentials)[1] != os.getuid():
        raise PermissionError("another user listens there")


def _address(env: Mapping[str, str]) -> str:
    kept = {name: value for name, value in env.items() if name not in _PASSING and not name.startswith("RAY_")}
    same = json.dumps([os.getuid(), sys.executable, sorted(kept.items())]).encode(errors="surrogateescape")
    return f"\0model-opt-fork-{hashlib.blake2b(same, digest_size=16).hexdigest()}"
