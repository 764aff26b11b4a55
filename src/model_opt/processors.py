"""How many processors this process may really use: by its affinity, and by the CPU quotas of its control groups."""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path("/")
MOUNTS_1 = ("cpu", "cpu,cpuacct", "cpuacct,cpu")
"""Where version 1 mounts the controller, under /sys/fs/cgroup."""
MOUNTS_2 = ("", "unified")
"""Where version 2 is mounted, under /sys/fs/cgroup."""


def usable_processors(root: Path = ROOT) -> int:
    """The whole processors that affinity and quota leave to this process, at least one.

    A quota of 1.5 processors is one: a second thread would be stopped for half of the time, and the first with it.
    """
    return max(1, int(min([_by_affinity(), *_quotas(root)])))


def _by_affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quotas(root: Path) -> Iterator[float]:
    """The quotas of this process's control groups and all above them, in processors; none on other systems.

    A container often sees its own group as the root of the mount, whatever path it is told: what is not there is
    passed over.
    """
    mounted = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            yield from (q for mount in MOUNTS_2 for folder in _upwards(mounted / mount, path) for q in _quota_2(folder))
        elif "cpu" in controllers.split(","):
            yield from (q for mount in MOUNTS_1 for folder in _upwards(mounted / mount, path) for q in _quota_1(folder))


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """The folder of group `path`, and those of all above it up to `mount`."""
    group = PurePosixPath(path.lstrip("/"))
    if ".." not in group.parts:
        yield from (mount / above for above in (group, *group.parents) if above.parts)
    yield mount


def _quota_2(folder: Path) -> Iterator[float]:
    words = _read(folder / "cpu.max").split()
    yield from _processors(*words) if len(words) == 2 else ()


def _quota_1(folder: Path) -> Iterator[float]:
    yield from _processors(_read(folder / "cpu.cfs_quota_us").strip(), _read(folder / "cpu.cfs_period_us").strip())


def _processors(quota: str, period: str) -> Iterator[float]:
    """`quota` / `period`, both in microseconds; nothing where there is no limit ("max", "-1") or no such file."""
    if quota.isdecimal() and period.isdecimal() and int(period) > 0:
        yield int(quota) / int(period)


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
