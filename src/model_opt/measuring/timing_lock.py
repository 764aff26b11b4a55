"""Who may keep a device busy while somebody times on it: locks and pauses across the processes of one host."""

import contextlib
import fcntl
import hashlib
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from model_opt.measuring.pause import can_pause, paused
from model_opt.measuring.process import UNKNOWN, find_process, pid_space

HOST = "cpu"
ENTRY, MEMBER = ".entry", ".member"
BREATH_SHARE, MOST_BREATH_S = 0.5, 10.0
"""After a timing those who were paused for it work on for this share of its seconds before the next one begins."""
DRAIN_S = 0.2
"""What a paused process has queued on an accelerator runs on: so long a timer waits there."""


class TimingLock:
    """Timing is exclusive: those who work on the device are paused meanwhile, with all that they have started.

    `device` is "cpu" for the host, else a name that is the same in every process of the host (a GPU's UUID, not
    "cuda:0"). Timing on the host excludes everything; timing on another device excludes work on that device and
    timing on the host. Whoever comes to work while somebody times waits until that is done.

    Not paused but waited for, as are all where the system has no /proc: threads of the timing process, processes above
    it, in another container, or of a terminal. Should the timer die, those whom it paused go on (`pausing`). The kernel
    releases the locks of a process that dies. Not reentrant. Processes meet where they share `folder`, which by default
    is the user's own part of the temporary folder.
    """

    def __init__(self, device: str = HOST, *, folder: Path | None = None) -> None:
        self.device = device
        self.paused_s = 0.0
        """Seconds that others' timing has taken from this object's blocks of work."""
        self._folder = folder or Path(tempfile.gettempdir()) / f"model-opt-{os.getuid()}"
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Nobody else works on the device inside the block."""
        own = self._path(self.device)
        with ExitStack() as stack:
            if self.device != HOST:
                stack.enter_context(_shared(self._path(HOST)))
            stack.enter_context(_exclusive(own))
            _breathe(own)
            stack.enter_context(_flock(_door(own), fcntl.LOCK_EX))
            stack.enter_context(_undisturbed(own, drain_s=0.0 if self.device == HOST else DRAIN_S))
            yield

    @contextmanager
    def shared(self, pid: int | None = None) -> Iterator[None]:
        """Nobody times on the device inside the block but while this process stands still; or `pid`, one that it has
        started and that works in its place."""
        with ExitStack() as stack:
            entries = [
                stack.enter_context(_entered(self._path(device), os.getpid() if pid is None else pid))
                for device in dict.fromkeys((HOST, self.device))
            ]
            try:
                yield
            finally:
                self.paused_s += max(entry.paused_s() for entry in entries)

    def wait(self) -> None:
        """Returns when nobody times on the device: for what is short, and would rather not disturb."""
        with _flock(_door(self._path(self.device)), fcntl.LOCK_SH):
            pass

    def join(self) -> None:
        """Counts this process among the `members` for as long as it lives."""
        _hold(self._path(self.device), MEMBER, os.getpid())

    def members(self) -> int:
        """How many living processes have joined, to work on the device now or later."""
        with _entries(self._path(self.device), MEMBER) as members:
            return len(members)

    def _path(self, device: str) -> Path:
        readable = re.sub(r"[^A-Za-z0-9-]+", "_", device)[:40]
        return self._folder / f"{readable}-{hashlib.blake2b(device.encode(), digest_size=4).hexdigest()}"


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """One block of work: a file that says who works, locked for as long as it lasts; timers note their pauses in it."""

    path: Path
    fd: int

    def paused_s(self) -> float:
        """The seconds that timers have noted."""
        return sum(map(float, self._lines()[1:]))

    def note(self, seconds: float) -> None:
        """Adds a pause."""
        with contextlib.suppress(OSError):  # a full disk
            os.write(self.fd, f"{seconds:.3f}\n".encode())

    def is_over(self) -> bool:
        """Whether nobody holds it any more; then it is removed."""
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        self.path.unlink(missing_ok=True)
        return True

    def wait(self) -> None:
        """Returns once it is over."""
        fcntl.flock(self.fd, fcntl.LOCK_EX)

    def pausable(self) -> int | None:
        """The pid of who works, where it is known here and can be paused."""
        who = self._who()
        pid = int(who[0]) if who else 0
        return pid if who and who == _identity(pid) and can_pause(pid) else None

    def is_dead(self) -> bool:
        """Whether who works has died, and only some forked child of it holds the file's lock still."""
        who = self._who()
        return UNKNOWN not in who and who[2:] == (pid_space(),) and who != _identity(int(who[0]))

    def _who(self) -> tuple[str, ...]:
        """The identity of who works; empty where the disk was too full to say."""
        return tuple(self._lines()[0].split()) if self._lines() else ()

    def _lines(self) -> list[str]:
        return os.pread(self.fd, 1 << 20, 0).decode().splitlines()


@contextmanager
def _entered(path: Path, pid: int) -> Iterator[_Entry]:
    """Passes the door once nobody times, and leaves an entry there."""
    with _flock(_door(path), fcntl.LOCK_EX):
        entry = _hold(path, ENTRY, pid)
    try:
        yield entry
    finally:
        entry.path.unlink(missing_ok=True)
        fcntl.flock(entry.fd, fcntl.LOCK_UN)  # a forked child may hold the file open
        os.close(entry.fd)


def _hold(path: Path, suffix: str, pid: int) -> _Entry:
    """A new entry of `pid`, locked until it is released, or this process dies."""
    fd, name = tempfile.mkstemp(prefix=f"{path.name}.", suffix=suffix, dir=path.parent)
    fcntl.flock(fd, fcntl.LOCK_EX)
    with contextlib.suppress(OSError):  # a full disk: it is waited for, not paused
        os.write(fd, f"{' '.join(_identity(pid))}\n".encode())
    return _Entry(path=Path(name), fd=fd)


@contextmanager
def _undisturbed(path: Path, *, drain_s: float) -> Iterator[None]:
    """Waits for those at work who cannot be paused, then pauses the others."""
    with _entries(path, ENTRY) as entries:
        pausable = {entry: pid for entry in entries if (pid := entry.pausable()) is not None}
        for entry in entries:
            if entry not in pausable and not entry.is_dead():
                entry.wait()
        began = time.monotonic()
        with paused(pausable.values()):
            if pausable:
                time.sleep(drain_s)
            try:
                yield
            finally:
                now = time.monotonic()
                for entry in pausable:
                    entry.note(now - began)
                with contextlib.suppress(OSError):
                    path.with_suffix(".last").write_text(f"{now} {now - began}")


def _breathe(path: Path) -> None:
    """Lets those who were paused for the last timing work on for a while, and those enter who waited at the door."""
    try:
        ended, took = map(float, path.with_suffix(".last").read_text().split())
    except (OSError, ValueError):  # nobody has timed yet, or died while it wrote
        return
    rest_s = ended + BREATH_SHARE * took - time.monotonic()
    if rest_s > 0 and any(path.parent.glob(f"{path.name}.*{ENTRY}")):
        time.sleep(min(rest_s, MOST_BREATH_S))


@contextmanager
def _entries(path: Path, suffix: str) -> Iterator[list[_Entry]]:
    """The entries that are held, their files open."""
    with ExitStack() as stack:
        found = []
        for name in path.parent.glob(f"{path.name}.*{suffix}"):
            with contextlib.suppress(FileNotFoundError):
                fd = os.open(name, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
                stack.callback(os.close, fd)
                found.append(_Entry(path=name, fd=fd))
        yield [entry for entry in found if not entry.is_over()]


def _identity(pid: int) -> tuple[str, str, str]:
    """What tells a process from every other of this host and from a later one with its pid."""
    process = find_process(pid)
    return str(pid), str(process.started) if process else UNKNOWN, pid_space()


def _door(path: Path) -> Path:
    return path.with_suffix(".door")


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
