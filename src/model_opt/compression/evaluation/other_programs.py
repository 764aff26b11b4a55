"""What other programs take from this process while it times something: how long its threads waited for a processor, and
how much of the processors others used. Told by the kernel; nothing is known where it does not tell (other systems)."""

import contextlib
import os
import resource
import time
from pathlib import Path

import numpy as np

TASKS = Path("/proc/self/task")


class RunQueue:
    """Seconds that the threads of this process were ready to run and had no processor: others had it, or a quota of the
    process's control group was used up.

    From `/proc/self/task/*/schedstat` (sched_info's run delay), kept open: a look takes 2 µs a thread. For one thread;
    a context manager.
    """

    def __init__(self) -> None:
        self._open: dict[str, int] = {}
        self._gone_ns = 0
        self._last_ns: dict[str, int] = {}
        self.known = self._find_threads() and any(self._run_ns(fd) for fd in self._open.values())

    def waited_s(self) -> float:
        """Seconds of waiting since the process began, all threads together."""
        self._find_threads()
        for name in list(self._open):
            try:
                self._last_ns[name] = self._fields(self._open[name])[1]
            except (OSError, IndexError, ValueError):  # the thread has ended
                self._forget(name)
        return (self._gone_ns + sum(self._last_ns.values())) / 1e9

    def __enter__(self) -> "RunQueue":
        return self

    def __exit__(self, *error: object) -> None:
        for name in list(self._open):
            self._forget(name)

    def _find_threads(self) -> bool:
        """Opens the files of threads that are new; False where there are none."""
        try:
            names = [task.name for task in TASKS.iterdir()]
        except OSError:
            return False
        for name in names:
            if name not in self._open:
                with contextlib.suppress(OSError):
                    self._open[name] = os.open(TASKS / name / "schedstat", os.O_RDONLY | os.O_CLOEXEC)
        return bool(self._open)

    def _forget(self, name: str) -> None:
        os.close(self._open.pop(name))
        self._gone_ns += self._last_ns.pop(name, 0)

    def _run_ns(self, fd: int) -> int:
        """Nanoseconds on a processor; 0 where the kernel keeps no such statistics."""
        try:
            return self._fields(fd)[0]
        except (OSError, IndexError, ValueError):
            return 0

    @staticmethod
    def _fields(fd: int) -> list[int]:
        return [int(field) for field in os.pread(fd, 96, 0).split()]


class OtherPrograms:
    """How much of the processors that this process may use others take, from /proc/stat; what a hypervisor gives to
    other machines counts too. Knows nothing where that is missing."""

    def __init__(self) -> None:
        self._busy_s, self._own_s = _busy_s(), _own_s()
        self._started = time.perf_counter()

    def share(self) -> float | None:
        """Processor seconds of others ÷ (seconds × processors) since this was made, in [0, 1]."""
        busy_s = _busy_s()
        if busy_s is None or self._busy_s is None:
            return None
        elapsed_s = max(time.perf_counter() - self._started, 1e-9)
        others_s = (busy_s - self._busy_s) - (_own_s() - self._own_s)
        return float(np.clip(others_s / (elapsed_s * len(_processors())), 0, 1))


def _busy_s() -> float | None:
    """Seconds in which the processors of this process worked for anybody, or None."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return None
    ours = {f"cpu{number}" for number in _processors()}
    ticks = [[int(field) for field in line.split()[1:9]] for line in lines if line.partition(" ")[0] in ours]
    return sum(sum(one) - one[3] - one[4] for one in ticks) / os.sysconf("SC_CLK_TCK") if ticks else None


def _processors() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _own_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
