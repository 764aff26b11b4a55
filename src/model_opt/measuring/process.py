"""The processes of this machine as /proc shows them; where there is no /proc, none."""

import contextlib
import os
import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
UNKNOWN = "?"
GUARD = "model-opt-guard"
"""The name (at most 15 letters) of small processes that look after others: they are never paused."""


@dataclass(frozen=True, kw_only=True)
class Process:
    """One process. `started` (clock ticks since the machine did) tells it from a later one with the same `pid`; `state`
    is the kernel's letter; `terminal` is its controlling terminal's number, 0 for none."""

    pid: int
    name: str
    state: str
    parent: int
    terminal: int
    started: int

    @property
    def stopped(self) -> bool:
        """Whether a signal has stopped it."""
        return self.state == "T"

    @property
    def lives(self) -> bool:
        """Whether it may still run: a zombie does not."""
        return self.state not in "ZX"


def find_process(pid: int) -> Process | None:
    """The process `pid`, or None where there is none, or no /proc."""
    try:
        text = (PROC / str(pid) / "stat").read_bytes().decode(errors="replace")
    except OSError:
        return None
    head, _, tail = text.rpartition(")")
    fields = tail.split()
    return Process(
        pid=pid,
        name=head.partition("(")[2],
        state=fields[0],
        parent=int(fields[1]),
        terminal=int(fields[4]),
        started=int(fields[19]),
    )


def every_process() -> dict[int, Process]:
    """All that can be seen, by pid."""
    try:
        pids = [int(name) for name in os.listdir(PROC) if name.isdecimal()]  # noqa: PTH208 - twice as fast
    except OSError:
        return {}
    return {pid: found for pid in pids if (found := find_process(pid)) is not None}


def pid_space() -> str:
    """The system's start and the container, within which a pid and its start mean one process; or `UNKNOWN`."""
    try:
        return f"{(PROC / 'sys/kernel/random/boot_id').read_text().strip()}/{(PROC / 'self/ns/pid').readlink()}"
    except OSError:
        return UNKNOWN


def ancestors(pid: int) -> frozenset[int]:
    """`pid`, its parent, that one's parent, and so on."""
    line = []
    while pid > 0 and pid not in line:
        line.append(pid)
        found = find_process(pid)
        pid = found.parent if found else 0
    return frozenset(line)


def descendants(roots: Iterable[int], table: Mapping[int, Process]) -> dict[int, Process]:
    """`roots` and all that they have started, whichever sessions these lead; neither zombies nor guards."""
    children: dict[int, list[int]] = {}
    for process in table.values():
        children.setdefault(process.parent, []).append(process.pid)
    found: dict[int, Process] = {}
    waiting = [pid for pid in roots if pid in table]
    while waiting:
        process = table[waiting.pop()]
        if process.pid not in found and process.lives and process.name != GUARD:
            found[process.pid] = process
            waiting += children.get(process.pid, ())
    return found


def call_itself_guard() -> None:
    """Names this process a guard, where the system lets it."""
    with contextlib.suppress(OSError):
        (PROC / "self" / "comm").write_text(GUARD)


def resume_tree(pid: int) -> None:
    """Lets `pid` and all that it has started go on."""
    for process in descendants([pid], every_process()).values():
        with contextlib.suppress(OSError):
            os.kill(process.pid, signal.SIGCONT)
