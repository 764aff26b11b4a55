"""What runs inside the measuring process: open the factory, then answer one request at a time until the parent is gone.

Started by `model_opt.measuring.child` with three file descriptors: the connection, the pickled factory (an unlinked
file) and the read end of a pipe whose other end only the parent holds.
"""

import faulthandler
import mmap
import os
import pickle
import signal
import socket
import traceback
from collections.abc import Callable
from typing import Any

import cloudpickle

from model_opt.errors import MeasurementFailed, TechniqueError, ran_out_of_memory
from model_opt.measuring import pickle_frames
from model_opt.measuring.process import call_itself_guard
from model_opt.measuring.timing_lock import TimingLock
from model_opt.search.evaluator import Evaluator, Reason


def main(connection_fd: int, factory_fd: int, life_fd: int) -> None:
    """Serves until the parent closes the connection."""
    _fork_guard(life_fd, keep=life_fd, close=(connection_fd, factory_fd))
    os.close(life_fd)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()
    MeasuringServer(socket.socket(fileno=connection_fd), factory_fd).serve()


def _fork_guard(life_fd: int, *, keep: int, close: tuple[int, ...]) -> None:
    """Leaves a small process behind that kills the whole group when the parent dies, however hard this one hangs, and
    also while all others of the group stand still for another's timing."""
    if os.fork():
        return
    call_itself_guard()
    for fd in (0, 1, 2, *close):
        if fd != keep:
            os.close(fd)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.read(life_fd, 1)
    os.killpg(0, signal.SIGKILL)


class MeasuringServer:
    """Answers requests `(serial, what, arguments)` with frames `(serial, kind, …)`: "describe", "measure" or a function
    of the evaluator.

    Kinds: "phase" (name), "done" (value), "failed" (reason, message, the exception where it can be pickled).
    """

    def __init__(self, connection: socket.socket, factory_fd: int) -> None:
        self._connection = connection
        self._reader = pickle_frames.PickleFrameReader(connection)
        self._factory_fd = factory_fd
        self._evaluator: Evaluator | None = None
        self._serial = 0
        self._pid = os.getpid()

    def serve(self) -> None:
        """Answers until the connection ends."""
        while True:
            try:
                request = self._reader.receive()
            except EOFError:
                return
            if request is not None:
                self._answer(*request)

    def _answer(self, serial: int, what: str | Callable[..., object], arguments: tuple[Any, ...]) -> None:
        self._serial = serial
        try:
            reply: tuple[Any, ...] = ("done", self._run(what, arguments))
        except BaseException as error:
            traceback.print_exc()
            reply = ("failed", reason_of(error), message_of(error), portable(error))
        if os.getpid() != self._pid:  # the user's code forked and came back twice: only the original may answer
            os._exit(1)
        self._send(serial, reply)

    def _run(self, what: str | Callable[..., object], arguments: tuple[Any, ...]) -> object:
        if self._evaluator is None:
            self._evaluator = self._read_factory()()
        if what == "describe":
            return self._evaluator.describe()
        if callable(what):
            return what(self._evaluator, *arguments)
        plan, purpose = arguments
        return self._evaluator.measure(plan, purpose, self._phase)

    def _read_factory(self) -> Callable[[], Evaluator]:
        """Unpickles the factory, which imports all that it needs: seconds of work, so it stands still for timers."""
        with TimingLock().shared(), mmap.mmap(self._factory_fd, 0, access=mmap.ACCESS_READ) as pickled:
            factory: Callable[[], Evaluator] = pickle.loads(pickled)
        return factory

    def _phase(self, name: str) -> None:
        if os.getpid() == self._pid:
            pickle_frames.send(self._connection, (self._serial, "phase", name))

    def _send(self, serial: int, reply: tuple[Any, ...]) -> None:
        try:
            pickle_frames.send(self._connection, (serial, *reply))
        except OSError:
            return  # the parent is gone; the next receive ends the loop
        except Exception as error:  # what came back cannot be pickled
            reason, message = reply[1:3] if reply[0] == "failed" else (Reason.ERROR, message_of(error))
            pickle_frames.send(self._connection, (serial, "failed", reason, message, None))


def reason_of(error: BaseException) -> Reason:
    """Why a plan failed, from what its evaluator raised."""
    if isinstance(error, TechniqueError):
        return Reason.ILLEGAL
    if isinstance(error, MeasurementFailed):
        return Reason.WRONG_OUTPUT
    if ran_out_of_memory(error):
        return Reason.OUT_OF_MEMORY
    return Reason.ERROR


def portable(error: BaseException) -> BaseException | None:
    """The error as it survives pickling: itself, else its nearest base class with the same text, else None."""
    for kind in type(error).__mro__:
        try:
            same = error if kind is type(error) else kind(str(error))
            pickle.loads(cloudpickle.dumps(same))
        except Exception:
            continue
        return same if isinstance(same, BaseException) else None
    return None


def message_of(error: BaseException) -> str:
    """The error in one line, with the place that raised it; our own errors speak for themselves."""
    text = str(error) or type(error).__name__
    if isinstance(error, TechniqueError | MeasurementFailed):
        return text
    places = traceback.extract_tb(error.__traceback__)
    where = f" ({places[-1].filename}:{places[-1].lineno})" if places else ""
    return f"{type(error).__name__}: {text}{where}"
