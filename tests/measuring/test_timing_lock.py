"""The lock between processes of one host, each case with real processes."""

import mmap
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from model_opt.measuring import process
from model_opt.measuring.process import GUARD, every_process, find_process
from model_opt.measuring.timing_lock import TimingLock

HOLD = """
import subprocess, sys
from pathlib import Path
from model_opt.measuring import process
from model_opt.measuring.timing_lock import TimingLock
folder, device, kind, how = sys.argv[1:]
if how == "blind":  # as where there is no /proc
    process.PROC = Path("/nowhere")
lock = TimingLock(device, folder=Path(folder))
print("asks", flush=True)
try:
    with getattr(lock, kind)():
        if how == "family":
            sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
            print(*(subprocess.Popen(sleep, start_new_session=apart).pid for apart in (False, True)), flush=True)
        print("has", flush=True)
        if sys.stdin.readline() == "fail\\n":
            raise ValueError("as it was told")
except ValueError as error:
    print(error, flush=True)
print("gone", lock.paused_s > 0, flush=True)
sys.stdin.readline()
"""


class Holder:
    """A process that takes the lock and keeps it until told, or killed."""

    def __init__(self, folder: Path, device: str, kind: str, how: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(folder), device, kind, how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.pid = self.process.pid
        self.was_paused: bool | None = None
        assert self.says() == "asks"

    def says(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def waits(self, seconds: float = 0.3) -> bool:
        return not select.select([self.process.stdout], [], [], seconds)[0]

    def tell(self, what: str = "") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()

    def release(self) -> None:
        self.tell()
        self.was_paused = {"gone True": True, "gone False": False}[self.says()]

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


Hold = Callable[..., Holder]


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Hold]:
    holders: list[Holder] = []

    def start(kind: str, device: str = "cpu", how: str = "plain") -> Holder:
        holders.append(Holder(tmp_path, device, kind, how))
        return holders[-1]

    yield start
    guards = [guard for holder in holders for guard in guards_of(holder.pid)]
    for holder in holders:
        holder.end()
    assert until(lambda: not any(map(lives, guards)))


def until(condition: Callable[[], object], timeout_s: float = 20.0) -> bool:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def stopped(pid: int) -> bool:
    process = find_process(pid)
    return process is not None and process.stopped


def lives(pid: int) -> bool:
    process = find_process(pid)
    return process is not None and process.lives


def guards_of(pid: int) -> list[int]:
    return [process.pid for process in every_process().values() if process.parent == pid and process.name == GUARD]


def test_a_timer_pauses_those_who_work_and_they_go_on(hold: Hold) -> None:
    first, second = hold("shared"), hold("shared")
    assert (first.says(), second.says()) == ("has", "has")
    timer = hold("exclusive")
    assert timer.says() == "has"
    assert stopped(first.pid)
    assert stopped(second.pid)
    timer.release()
    assert not stopped(first.pid)
    assert not stopped(second.pid)
    first.release()
    assert first.was_paused
    late = hold("shared")
    assert late.says() == "has"
    late.release()
    assert not late.was_paused


def test_all_that_a_worker_has_started_is_paused_too_in_whatever_session(hold: Hold) -> None:
    worker = hold("shared", how="family")
    family = [int(pid) for pid in worker.says().split()]
    try:
        assert worker.says() == "has"
        timer = hold("exclusive")
        assert timer.says() == "has"
        assert [stopped(pid) for pid in family] == [True, True]
        timer.release()
        assert [stopped(pid) for pid in family] == [False, False]
    finally:
        for pid in family:
            os.kill(pid, signal.SIGKILL)


def test_who_comes_to_work_while_somebody_times_waits_and_is_not_stopped(hold: Hold) -> None:
    timer = hold("exclusive")
    assert timer.says() == "has"
    late = hold("shared")
    assert late.waits()
    assert not stopped(late.pid)
    timer.release()
    assert late.says() == "has"


def test_timers_take_turns(hold: Hold) -> None:
    timer = hold("exclusive")
    assert timer.says() == "has"
    other = hold("exclusive")
    assert other.waits()
    timer.release()
    assert other.says() == "has"


def test_after_an_error_in_the_timing_the_others_go_on(hold: Hold) -> None:
    worker = hold("shared")
    assert worker.says() == "has"
    timer = hold("exclusive")
    assert timer.says() == "has"
    assert stopped(worker.pid)
    timer.tell("fail")
    assert timer.says() == "as it was told"
    assert not stopped(worker.pid)


@pytest.mark.parametrize("whom", ["process", "group"])
def test_whom_a_killed_timer_had_stopped_go_on(hold: Hold, whom: str) -> None:
    worker = hold("shared", how="family")
    family = [int(pid) for pid in worker.says().split()]
    try:
        assert worker.says() == "has"
        timer = hold("exclusive")
        assert timer.says() == "has"
        assert all(map(stopped, [worker.pid, *family]))
        (os.kill if whom == "process" else os.killpg)(timer.pid, signal.SIGKILL)
        assert until(lambda: not any(map(stopped, [worker.pid, *family])))
        assert hold("exclusive").says() == "has"  # and the lock is free
        assert all(map(stopped, [worker.pid, *family]))
    finally:
        for pid in family:
            os.kill(pid, signal.SIGKILL)


def test_a_timer_that_dies_beside_a_forked_child_lets_the_others_go_on(tmp_path: Path, hold: Hold) -> None:
    worker = hold("shared")
    assert worker.says() == "has"
    script = f"""
import os, sys, time
from pathlib import Path
from model_opt.measuring.timing_lock import TimingLock
with TimingLock(folder=Path({str(tmp_path)!r})).exclusive():
    child = os.fork()
    if child == 0:
        time.sleep(600)
    print(child, flush=True)
    time.sleep(600)
"""
    timer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert timer.stdout is not None
    child = int(timer.stdout.readline())
    try:
        assert stopped(worker.pid)
        timer.kill()
        assert until(lambda: not stopped(worker.pid))
    finally:
        os.kill(child, signal.SIGKILL)
        timer.communicate()


def test_killed_workers_are_not_waited_for_nor_their_forked_children(tmp_path: Path, hold: Hold) -> None:
    worker = hold("shared")
    assert worker.says() == "has"
    worker.process.kill()
    worker.process.wait()
    assert len(list(tmp_path.glob("*.entry"))) == 1
    assert hold("exclusive").says() == "has"
    assert not list(tmp_path.glob("*.entry"))

    script = f"""
import os, time
from pathlib import Path
from model_opt.measuring.timing_lock import TimingLock
with TimingLock(folder=Path({str(tmp_path / "forked")!r})).shared():
    child = os.fork()
    if child:
        print(child, flush=True)
    time.sleep(600)
"""
    forker = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert forker.stdout is not None
    child = int(forker.stdout.readline())
    try:
        forker.kill()
        forker.wait()
        with TimingLock(folder=tmp_path / "forked").exclusive():
            assert not stopped(child)
    finally:
        os.kill(child, signal.SIGKILL)
        forker.communicate()


def test_a_timer_waits_for_those_above_it_and_goes_before_who_comes_later(tmp_path: Path, hold: Hold) -> None:
    with TimingLock(folder=tmp_path).shared():
        timer = hold("exclusive")
        assert timer.waits()
        late = hold("shared")
        assert late.waits()
    assert timer.says() == "has"
    assert late.waits(0.1)
    timer.release()
    assert late.says() == "has"


@pytest.mark.parametrize(("worker", "timer"), [("blind", "blind"), ("blind", "plain"), ("plain", "blind")])
def test_without_proc_a_timer_waits(hold: Hold, worker: str, timer: str) -> None:
    first, second = hold("shared", how=worker), hold("shared", how=worker)
    assert (first.says(), second.says()) == ("has", "has")
    waiting = hold("exclusive", how=timer)
    first.release()
    assert waiting.waits()
    assert not stopped(second.pid)
    second.release()
    assert waiting.says() == "has"


def test_a_process_may_lend_another_that_it_has_started(tmp_path: Path) -> None:
    lock = TimingLock(folder=tmp_path)
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    helper = subprocess.Popen(sleep, start_new_session=True)
    try:
        with lock.shared(helper.pid):
            with TimingLock(folder=tmp_path).exclusive():
                assert stopped(helper.pid)
            assert not stopped(helper.pid)
        with lock.exclusive():
            assert not stopped(helper.pid)
    finally:
        helper.kill()
        helper.wait()


def test_a_killed_holder_leaves_the_lock_free(hold: Hold) -> None:
    dead = hold("exclusive")
    assert dead.says() == "has"
    dead.process.kill()
    assert hold("exclusive").says() == "has"


def test_devices_are_apart_but_the_host_takes_them_all(hold: Hold) -> None:
    one, two = hold("exclusive", "GPU-1"), hold("exclusive", "GPU-2")
    assert (one.says(), two.says()) == ("has", "has")
    same, host = hold("shared", "GPU-1"), hold("exclusive", "cpu")
    assert same.waits()
    assert host.waits()
    one.release()
    assert same.says() == "has"
    two.release()
    assert host.says() == "has"
    assert stopped(same.pid)
    host.release()
    other = hold("exclusive", "GPU-2")
    assert other.says() == "has"
    assert not stopped(same.pid)


def test_threads_of_one_process_exclude_each_other_too(tmp_path: Path) -> None:
    inside: list[str] = []
    seen: set[tuple[str, ...]] = set()

    def work(kind: str) -> None:
        for _ in range(30):
            with getattr(TimingLock("cpu", folder=tmp_path), kind)():
                inside.append(kind)
                seen.add(tuple(inside))
                inside.remove(kind)

    threads = [threading.Thread(target=work, args=(kind,)) for kind in ("exclusive", "shared") * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all("exclusive" not in together or len(together) == 1 for together in seen)


MANY = """
import mmap, sys, time
from pathlib import Path
from model_opt.measuring.timing_lock import TimingLock
folder, number, workers, rounds = Path(sys.argv[1]), *map(int, sys.argv[2:])
lock = TimingLock(folder=folder)
with (folder / "counters").open("r+b") as file:
    counters = memoryview(mmap.mmap(file.fileno(), 8 * workers)).cast("q")
disturbed = 0
for _ in range(rounds):
    with lock.shared():
        for _ in range(100_000):
            counters[number] += 1
    with lock.exclusive():
        before = counters.tolist()
        time.sleep(0.05)
        disturbed += counters.tolist() != before
print(disturbed)
"""


def test_many_workers_all_get_on_and_nobody_works_while_one_times(tmp_path: Path) -> None:
    workers, rounds = 8, 10
    counters = tmp_path / "counters"
    counters.write_bytes(bytes(8 * workers))
    arguments = [sys.executable, "-c", MANY, str(tmp_path)]
    processes = [
        subprocess.Popen(
            [*arguments, str(number), str(workers), str(rounds)],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for number in range(workers)
    ]
    said = [process.communicate(timeout=120)[0] for process in processes]
    assert said == ["0\n"] * workers
    with counters.open("r+b") as file:
        assert memoryview(mmap.mmap(file.fileno(), 0)).cast("q").tolist() == [rounds * 100_000] * workers
    assert not list(tmp_path.glob("*.entry"))


def test_members_are_counted_until_they_die(tmp_path: Path) -> None:
    lock = TimingLock(folder=tmp_path)
    assert lock.members() == 0
    lock.join()
    code = "import sys; from pathlib import Path; from model_opt.measuring.timing_lock import TimingLock; "
    code += f"TimingLock(folder=Path({str(tmp_path)!r})).join(); print(flush=True); sys.stdin.readline()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert (lock.members(), TimingLock("gpu", folder=tmp_path).members()) == (2, 0)
        other.kill()
    assert lock.members() == 1
    assert len(list(tmp_path.glob("*.member"))) == 1


def test_proc_is_read_whatever_a_process_is_called() -> None:
    me = find_process(os.getpid())
    assert me is not None
    assert (me.parent, me.lives, me.stopped) == (os.getppid(), True, False)
    script = "from pathlib import Path; Path('/proc/self/comm').write_text(') T (1) 2'); print(flush=True); input()"
    odd = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert odd.stdout is not None
    odd.stdout.readline()
    found = find_process(odd.pid)
    odd.communicate("\n")
    assert found is not None
    assert (found.name, found.parent, found.stopped) == (") T (1) 2", os.getpid(), False)
    assert process.ancestors(os.getpid()) >= {os.getpid(), os.getppid()}
