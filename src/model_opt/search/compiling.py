"""The kernels are compiled by one process of low priority for all that search on this host; they search on meanwhile.

python -m model_opt.search.compiling        compiles here and now, for instance when the package is installed
"""

import contextlib
import fcntl
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from model_opt.search import compiled
from model_opt.search.compiled import PLAIN, Kernels

log = logging.getLogger(__name__)

POLL_S = 0.1
TRIES = 2
"""So often the process is started where it is killed; then the kernels stay plain."""
PROGRAM = "model_opt.search.compiling"


class Compiler:
    """What this process knows of the kernels. `pid` is that of the process that compiles for it, while there is one."""

    def __init__(self) -> None:
        self.kernels = PLAIN
        self.pid: int | None = None
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self, program: str) -> None:
        """See `start_compiling`."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._bring, args=(program,), name="model-opt-compiling")
                self._thread.start()

    def _bring(self, program: str) -> None:
        """Not a daemon: a thread that is stopped amid compiled code would take the interpreter's end with it."""
        try:
            if compiled.is_kept() or self._compiled_apart(program):
                self.kernels = compiled.load_compiled()
        except Exception:
            log.warning("the search's kernels cannot be compiled, so it runs without", exc_info=True)

    def _compiled_apart(self, program: str) -> bool:
        """Whether a process of its own has filled the cache."""
        if compiled.cache_folder() is None:
            return False
        for _ in range(TRIES):
            if self._run(program) == 0 or not _goes_on():
                break
        return _goes_on() and compiled.is_kept()

    def _run(self, program: str) -> int | None:
        """One process until it ends, or this one does; how it ended."""
        path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
        quiet = subprocess.DEVNULL
        with subprocess.Popen(
            [sys.executable, "-m", program, str(os.getpid())],
            stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True, env={**os.environ, "PYTHONPATH": path},
        ) as process:  # fmt: skip
            self.pid = process.pid
            try:
                while process.poll() is None and _goes_on():
                    time.sleep(POLL_S)
            finally:
                self.pid = None
                process.kill()
        return process.returncode


def _goes_on() -> bool:
    """False once the interpreter ends: it waits for the threads that are left."""
    return threading.main_thread().is_alive()


COMPILER = Compiler()


def start_compiling(program: str = PROGRAM) -> None:
    """Brings the compiled kernels in the background, once in a process: from the cache, or a process fills that first.

    `program` is the module which that process runs: it calls `main`. Returns at once; cheap to call again.
    """
    COMPILER.start(program)


def kernels() -> Kernels:
    """The compiled kernels once they are here, until then the plain ones: the answers are the same."""
    start_compiling()
    return COMPILER.kernels


# the process ----------------------------------------------------------------------------------------------------------


def fill_cache() -> None:
    """Compiles into the cache what is not in it; waits where another process is at it."""
    mark = compiled.mark()
    if mark is None:
        return
    with _alone(mark.with_suffix(".lock")):
        if not mark.exists():
            compiled.load_compiled()
            mark.touch()


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        with contextlib.suppress(OSError):  # a file system without locks: twice is better than never
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _end_with(parent: int) -> None:
    """Ends this process when `parent` has ended."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(hold: AbstractContextManager[object]) -> None:
    """Compiles with `hold` held. Where a pid is given this process steps back for all others and ends with that one."""
    if len(sys.argv) > 1:
        os.nice(19)
        _end_with(int(sys.argv[1]))
    with hold:
        fill_cache()


if __name__ == "__main__":
    main(nullcontext())
