"""What goes wrong in `chaos.py`: each fault is done, lasts a while and is mended; and how a status names it."""

import os
import random
import signal
import sqlite3
import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from chaotic.proxy import Proxy
from servers.starting import Server

Status = Mapping[str, Any]
WORKER, GARBAGE_KINDS = "ray::SearchWorker", 7
BLOCKS = (1 << 16, 1 << 12, 1 << 9)
REMOUNT_S, LAG_S = 20.0, 3.0


class World(Protocol):
    """What a fault may lay hands on."""

    rng: random.Random
    folder: Path
    """Where evaluators look for what they are to do."""
    kept: Path
    """The state folder of the search."""
    clock: Path
    proxy: Proxy
    server: Server
    mounted: bool
    """Whether the state folder is on a small disk of its own."""
    lost: int
    """How many settlements a back-up that was brought back did not have."""

    def status(self) -> Status: ...
    def pids(self, command: str) -> list[int]: ...
    def start_driver(self) -> None: ...
    def kill_drivers(self) -> None: ...
    def release(self) -> None: ...
    def replace_node(self) -> None: ...
    def start_server(self) -> None: ...


Done = Callable[[World], Any]
"""A context manager: inside the fault lasts, afterwards it is mended."""
Named = Callable[[Status, Status], bool]
"""Whether the status after, or while, it lasts tells of it, given the one before."""


@dataclass(frozen=True)
class Fault:
    """`lasts_s` are the least and the most that it lasts. Without `named` nothing of the search is wrong: who looks is
    what was hit."""

    name: str
    do: Done
    lasts_s: tuple[float, float]
    named: Named | None = None
    needs_disk: bool = False


def _grown(key: str) -> Named:
    return lambda before, now: now[key] > before[key]


def _failed(reason: str) -> Named:
    return lambda before, now: now["failures"].get(reason, 0) > before["failures"].get(reason, 0)


def _said(key: str) -> Named:
    return lambda before, now: bool(now[key])


def _waits_for_store(before: Status, now: Status) -> bool:
    """An error, or, where trying again may help yet, since when rows wait."""
    return bool(now["flush_error"]) or now["flush_lag_s"] > LAG_S


def _signal(pids: list[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


@contextmanager
def _frozen(pids: list[int]) -> Iterator[None]:
    _signal(pids, signal.SIGSTOP)
    try:
        yield
    finally:
        _signal(pids, signal.SIGCONT)


def _coordinator(world: World) -> list[int]:
    return [int(world.status()["pid"])]


def _a_worker(world: World) -> list[int]:
    found = world.pids(WORKER)
    return [world.rng.choice(found)] if found else []


@contextmanager
def _killed(pids: list[int]) -> Iterator[None]:
    _signal(pids, signal.SIGKILL)
    yield


@contextmanager
def _asked(world: World, name: str) -> Iterator[None]:
    (world.folder / name).touch()
    yield


@contextmanager
def _driver_killed(world: World) -> Iterator[None]:
    world.kill_drivers()
    yield
    world.start_driver()


@contextmanager
def _two_drivers(world: World) -> Iterator[None]:
    world.start_driver()
    yield


@contextmanager
def _node_lost(world: World) -> Iterator[None]:
    world.replace_node()
    yield


@contextmanager
def _store(world: World, mode: str) -> Iterator[None]:
    world.proxy.mode = mode
    try:
        yield
    finally:
        world.proxy.mode = "through"


@contextmanager
def _store_killed(world: World) -> Iterator[None]:
    world.server.kill()
    try:
        yield
    finally:
        world.start_server()


@contextmanager
def _clock(world: World) -> Iterator[None]:
    """Hours forward or back, and it stays so."""
    world.clock.write_bytes(struct.pack("d", world.rng.uniform(-1e5, 1e5)))
    yield


@contextmanager
def _disk_full(world: World) -> Iterator[None]:
    ballast = world.kept.parent / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for block in BLOCKS:
            with suppress(OSError):
                while True:
                    file.write(b"x" * block)
    try:
        yield
    finally:
        ballast.unlink()


@contextmanager
def _brought_back(world: World) -> Iterator[None]:
    """An older state of the folder: a copy that was made while it ran takes its place some time later."""
    path, copy = world.kept / "state.db", world.kept.parent / "copy.db"
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    yield
    world.kill_drivers()
    world.release()
    world.lost += _results(path) - _results(copy)
    for old in world.kept.glob("state.db*"):
        old.unlink()
    copy.rename(path)
    world.start_driver()


def _results(path: Path) -> int:
    with closing(sqlite3.connect(path)) as database:
        return int(database.execute("SELECT count(*) FROM results").fetchone()[0])


@contextmanager
def _read_only(world: World) -> Iterator[None]:
    """The disk is read-only when the search is started again."""
    world.kill_drivers()
    world.release()
    _remount(world, "ro")
    try:
        world.start_driver()
        yield
    finally:
        _remount(world, "rw")


def _remount(world: World, how: str) -> None:
    """Tried again for a while: who was killed may have files open yet."""
    end = time.monotonic() + REMOUNT_S
    while subprocess.run(["mount", "-o", f"remount,{how}", str(world.kept.parent)], capture_output=True).returncode:
        if time.monotonic() > end:
            raise TimeoutError(f"the disk cannot be mounted {how}")
        time.sleep(0.2)


FAULTS = (
    Fault("coordinator killed", lambda w: _killed(_coordinator(w)), (1, 3), _grown("term")),
    Fault("coordinator frozen", lambda w: _frozen(_coordinator(w)), (1, 6)),
    Fault("worker killed", lambda w: _killed(_a_worker(w)), (1, 3), _grown("lost_workers")),
    Fault("worker frozen", lambda w: _frozen(_a_worker(w)), (5, 9), _grown("expired")),
    Fault("node lost", _node_lost, (1, 3), _grown("lost_workers")),
    Fault("measuring process killed", lambda w: _asked(w, "exit"), (1, 3), _failed("crash")),
    Fault("measuring process hangs", lambda w: _asked(w, "hang"), (1, 3), _failed("deadline")),
    Fault(
        "garbage in a result",
        lambda w: _asked(w, f"garbage-{w.rng.randrange(GARBAGE_KINDS)}"),
        (1, 3),
        lambda before, now: sum(now["failures"].values()) > sum(before["failures"].values()),
    ),
    Fault("driver killed", _driver_killed, (0, 4)),
    Fault("two drivers", _two_drivers, (2, 8)),
    Fault("store delayed", lambda w: _store(w, "delay"), (3, 8)),
    Fault("store stalled", lambda w: _store(w, "stall"), (3, 20)),
    Fault("store cut off", lambda w: _store(w, "cut"), (8, 15), _waits_for_store),
    Fault("store's connections reset", lambda w: _store(w, "reset"), (8, 15), _waits_for_store),
    Fault("store killed", _store_killed, (8, 12), _waits_for_store),
    Fault("clock jumps", _clock, (1, 3)),
    Fault("disk full", _disk_full, (3, 6), _said("trouble"), needs_disk=True),
    Fault("disk read-only at a start", _read_only, (3, 6), needs_disk=True),
    Fault("older state brought back", _brought_back, (4, 8), _said("restored")),
)
