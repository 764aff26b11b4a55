"""One measuring process: how it is started, spoken to, and how its death is told."""

import contextlib
import math
import os
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from model_opt.errors import InvalidInput, is_out_of_memory
from model_opt.measuring import pickle_frames
from model_opt.measuring.fork_server import Forked, fork, start_python
from model_opt.measuring.process import find_process, resume_tree
from model_opt.search.evaluator import Reason

LOG_BYTES = 16_384
CHUNK_BYTES = 1 << 16
TAIL_LINES = 20
POLL_S = 0.2
"""How often a silent process is looked at; an answer wakes the parent at once."""


class Died(Exception):
    """The process ended before it answered: `reason` and a message for people."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class ChildProcess:
    """One measuring process: starting it, its frames, its log, its death. `kill` may be called from any thread.

    `paused_s` are the seconds that it stood still while somebody waited for its answers; `pause_s` is how long it may
    do so in one go. It may be `forked` where a fork server is open for it.
    """

    def __init__(self, factory: BinaryIO, env: Mapping[str, str], *, pause_s: float, forked: bool) -> None:
        self._connection, theirs = socket.socketpair()
        life_read, self._life = os.pipe()  # closed by the kernel when this process dies
        fds = [theirs.fileno(), factory.fileno(), life_read]
        everything = {**os.environ, **env}
        try:
            self._process = (fork(everything, fds) if forked else None) or start_python(
                "model_opt.measuring.server", fds, fds, everything, stdout=subprocess.PIPE
            )
        finally:
            theirs.close()
            os.close(life_read)
        self.pid = self._process.pid
        self.paused_s = 0.0
        self._pause_s = pause_s
        self._reader = pickle_frames.PickleFrameReader(self._connection)
        self._serial = 0
        self._oom_kills = _oom_kills()
        self._log = _Log(self._process.stdout)
        self._ended = threading.Lock()

    def request(self, what: str | Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        """Sends a request; raises `Died`, or `InvalidInput` where the arguments cannot be pickled."""
        self._serial += 1
        self._log.clear()
        try:
            pickle_frames.send(self._connection, (self._serial, what, arguments))
        except OSError as error:
            raise self._death() from error
        except Exception as error:
            raise InvalidInput(f"the arguments cannot be pickled: {error}") from error

    def answer(self, limit_s: float, deadline: float | None) -> tuple[Any, ...]:
        """The next frame of the running request. Raises `TimeoutError` once it has run for `limit_s` seconds, pauses
        not counted, or at `deadline` (monotonic seconds), or `Died`."""
        end, before, pause = time.monotonic() + limit_s, self.paused_s, _Pause()
        while True:
            self.paused_s += pause.look(self.pid)
            if pause.seconds > self._pause_s:
                resume_tree(self.pid)
                pause = _Pause()
            left = min(end + self.paused_s - before, deadline or math.inf) - time.monotonic()
            ended = self.exit_code() is not None
            try:
                frame = self._reader.receive(min(POLL_S, max(left, 0.0)))
            except (EOFError, OSError):
                raise self._death() from None
            except Exception as error:  # what the evaluator sent cannot be unpickled here
                raise Died(Reason.ERROR, f"the answer cannot be read: {error}") from error
            if frame is not None:
                if frame[0] == self._serial:
                    return frame[1:]
            elif ended:
                raise self._death()
            elif left <= 0:
                raise TimeoutError

    def exit_code(self) -> int | None:
        """How the process ended (negative: by that signal), or None while it lives."""
        return self._process.poll()

    def kill(self) -> None:
        """Kills the process and all that it started, and waits for it."""
        with self._ended:
            if self._connection.fileno() < 0:
                return
            try:
                os.killpg(self.pid, signal.SIGKILL)  # it leads its group; whatever it forked is in there
            except (ProcessLookupError, PermissionError):
                self._process.kill()
            _wait(self._process, 10.0)
            self._connection.close()
            os.close(self._life)
            self._log.close()

    def close(self) -> None:
        """Lets the process end by itself, within 5 s, then kills what is left."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        _wait(self._process, 5.0)
        self.kill()

    def _death(self) -> Died:
        """Why the process is gone, told from its signal, the kernel's counter of killed processes, and its log."""
        code = _wait(self._process, 5.0)
        self._log.settle()
        tail = self._log.tail()
        died = f"signal {_signal_name(-code)}" if code is not None and code < 0 else f"exit code {code}"
        killed = code == -signal.SIGKILL and _oom_kills() > self._oom_kills
        reason = Reason.OUT_OF_MEMORY if killed or is_out_of_memory(tail) else Reason.CRASH
        return Died(reason, f"the measuring process ended with {died}" + (f"; it said last:\n{tail}" if tail else ""))


class _Pause:
    """How long a process has stood still, looked at now and then."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._looked = time.monotonic()

    def look(self, pid: int) -> float:
        """The seconds since the last look if the process stands still now, else 0."""
        now = time.monotonic()
        since, self._looked = now - self._looked, now
        process = find_process(pid)
        if process is None or not process.stopped:
            self.seconds = 0.0
            return 0.0
        self.seconds += since
        return since


class _Log:
    """Drains what a process prints, for as long as it prints, and keeps the end of it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._kept = bytearray()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._drain, name="model-opt-child-log", daemon=True)
        self._stop, self._stopped = os.pipe()
        self._thread.start()

    def _drain(self) -> None:
        while self._stop not in select.select([self._stream, self._stop], [], [])[0]:
            with self._lock:
                if not self._take():
                    return

    def _take(self) -> bool:
        """Reads what is there, without waiting; False at the end of the stream."""
        if not select.select([self._stream], [], [], 0)[0]:
            return True
        chunk = os.read(self._stream.fileno(), CHUNK_BYTES)
        self._kept += chunk
        del self._kept[:-LOG_BYTES]
        return bool(chunk)

    def clear(self) -> None:
        """Forgets what was printed until now, so that a death is not blamed on an earlier plan's words."""
        with self._lock:
            while select.select([self._stream], [], [], 0)[0] and self._take():
                pass
            self._kept.clear()

    def settle(self) -> None:
        """Waits a moment for the last words of a process that has just died."""
        self._thread.join(0.2)

    def tail(self) -> str:
        """The last lines."""
        with self._lock:
            text = self._kept.decode(errors="replace")
        return "\n".join(text.rstrip().splitlines()[-TAIL_LINES:])

    def close(self) -> None:
        """Ends the thread, also where something that the process started still holds the pipe."""
        os.write(self._stopped, b"x")
        self._thread.join()
        self._stream.close()
        os.close(self._stop)
        os.close(self._stopped)


def _wait(process: "subprocess.Popen[bytes] | Forked", timeout_s: float) -> int | None:
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:  # in the kernel, with a device that hangs: nothing can end it
        return None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


def _oom_kills() -> int:
    """How many processes the kernel has killed for memory since it started; 0 where it does not say."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
