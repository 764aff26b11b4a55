"""The lock between processes of one host, each case with real processes."""

import select
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from model_opt.actors.timing_lock import TimingLock

HOLD = """
import sys
from pathlib import Path
from model_opt.actors.timing_lock import TimingLock
lock = TimingLock(sys.argv[2], folder=Path(sys.argv[1]))
print("asks", flush=True)
with getattr(lock, sys.argv[3])():
    print("has", flush=True)
    sys.stdin.readline()
print("gone", flush=True)
"""


class Holder:
    """A process that takes the lock and keeps it until told, or killed."""

    def __init__(self, folder: Path, device: str, kind: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(folder), device, kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.says() == "asks"

    def says(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def waits(self, seconds: float = 0.3) -> bool:
        return not select.select([self.process.stdout], [], [], seconds)[0]

    def release(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        assert self.says() == "gone"
        self.process.wait()


@pytest.fixture
def hold(tmp_path: Path):
    holders: list[Holder] = []

    def start(kind: str, device: str = "cpu") -> Holder:
        holders.append(Holder(tmp_path, device, kind))
        return holders[-1]

    yield start
    for holder in holders:
        holder.process.kill()
        holder.process.communicate()


def test_sharers_share_and_a_timer_waits_for_them(hold) -> None:
    first, second = hold("shared"), hold("shared")
    assert (first.says(), second.says()) == ("has", "has")
    timer = hold("exclusive")
    first.release()
    assert timer.waits()
    second.release()
    assert timer.says() == "has"


def test_a_waiting_timer_goes_before_later_sharers(hold) -> None:
    sharer = hold("shared")
    assert sharer.says() == "has"
    timer = hold("exclusive")
    assert timer.waits()
    late = hold("shared")
    assert late.waits()
    other = hold("exclusive")
    assert other.waits()
    sharer.release()
    order = [timer, other] if not timer.waits(5) else [other, timer]
    assert order[0].says() == "has"
    assert late.waits(0.1)
    order[0].release()
    assert order[1].says() == "has"
    assert late.waits(0.1)
    order[1].release()
    assert late.says() == "has"


def test_a_killed_holder_leaves_the_lock_free(hold) -> None:
    dead = hold("exclusive")
    assert dead.says() == "has"
    dead.process.kill()
    assert hold("exclusive").says() == "has"


def test_devices_are_apart_but_the_host_takes_them_all(hold) -> None:
    one, two = hold("exclusive", "GPU-1"), hold("exclusive", "GPU-2")
    assert (one.says(), two.says()) == ("has", "has")
    same, host = hold("shared", "GPU-1"), hold("exclusive", "cpu")
    assert same.waits()
    assert host.waits()
    one.release()
    two.release()
    assert {same.says()} == {"has"}
    same.release()
    assert host.says() == "has"


def test_threads_of_one_process_exclude_each_other_too(tmp_path: Path) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work() -> None:
        for _ in range(50):
            with TimingLock("cpu", folder=tmp_path).exclusive():
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
