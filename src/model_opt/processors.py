"""What this process may really use: processors by its affinity and the CPU quotas of its control groups, and memory."""

import os
from collections.abc import Iterator, Sequence
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


def usable_memory(root: Path = ROOT) -> int | None:
    """Bytes that the machine and the limits of control groups leave to this process; None where nobody says."""
    lines = (line.split() for line in _read(root / "proc/meminfo").splitlines())
    whole = [int(words[1]) * 1024 for words in lines if words[:1] == ["MemTotal:"]]
    files = ((folder / "memory.max", folder / "memory.limit_in_bytes") for _, folder in _groups(root, ("memory",)))
    limits = (_read(path).strip() for pair in files for path in pair)
    return min([*whole, *(int(limit) for limit in limits if limit.isdecimal())], default=None)


def _quotas(root: Path) -> Iterator[float]:
    """The quotas of this process's control groups and all above them, in processors; none on other systems."""
    for version, folder in _groups(root, MOUNTS_1):
        yield from _quota_2(folder) if version == 2 else _quota_1(folder)


def _groups(root: Path, mounts: Sequence[str]) -> Iterator[tuple[int, Path]]:
    """(version, folder) of this process's control groups and all above them; version 1 mounts a controller at one of
    `mounts`.

    A container often sees its own group as the root of the mount, whatever path it is told: what is not there is
    passed over.
    """
    mounted = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            yield from ((2, folder) for mount in MOUNTS_2 for folder in _upwards(mounted / mount, path))
        elif set(controllers.split(",")) & {name for mount in mounts for name in mount.split(",")}:
            yield from ((1, folder) for mount in mounts for folder in _upwards(mounted / mount, path))


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
