"""Who may keep a device busy while somebody times on it: a readers–writer lock across the processes of one host."""

import fcntl
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HOST = "cpu"


class TimingLock:
    """Timing is exclusive, other work shares; those who wait to time go before those who wait to share.

    `device` is "cpu" for the host, else a name that is the same in every process of the host (a GPU's UUID, not
    "cuda:0"). Timing on the host excludes everything; timing on another device excludes work on that device and
    timing on the host. The kernel releases the locks of a process that dies. Not reentrant. Processes meet where they
    share `folder`, which by default is the user's own part of the temporary folder.
    """

    def __init__(self, device: str = HOST, *, folder: Path | None = None) -> None:
        self.device = device
        self._folder = folder or Path(tempfile.gettempdir()) / f"model-opt-{os.getuid()}"
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Nobody else works on the device inside the block."""
        if self.device == HOST:
            with _exclusive(self._path(HOST)):
                yield
        else:
            with _shared(self._path(HOST)), _exclusive(self._path(self.device)):
                yield

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Nobody times on the device inside the block."""
        if self.device == HOST:
            with _shared(self._path(HOST)):
                yield
        else:
            with _shared(self._path(HOST)), _shared(self._path(self.device)):
                yield

    def _path(self, device: str) -> Path:
        readable = re.sub(r"[^A-Za-z0-9-]+", "_", device)[:40]
        return self._folder / f"{readable}-{hashlib.blake2b(device.encode(), digest_size=4).hexdigest()}"


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Shares the intent with other writers, which keeps readers out, then waits for the lock itself."""
    with _flock(path.with_suffix(".intent"), fcntl.LOCK_SH), _flock(path.with_suffix(".lock"), fcntl.LOCK_EX):
        yield


@contextmanager
def _shared(path: Path) -> Iterator[None]:
    """Passes the intent when no writer has it: then the lock itself is free of writers, so it is taken at once."""
    with _open(path.with_suffix(".lock")) as lock:
        with _flock(path.with_suffix(".intent"), fcntl.LOCK_EX):
            fcntl.flock(lock, fcntl.LOCK_SH)
        try:
            yield
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)


@contextmanager
def _flock(path: Path, kind: int) -> Iterator[None]:
    with _open(path) as fd:
        fcntl.flock(fd, kind)
        try:
            yield
        finally:
            fcntl.flock(fd, fcntl.LOCK_UN)


@contextmanager
def _open(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)
