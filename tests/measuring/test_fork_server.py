"""Measuring processes that are forked, beside those that start by themselves: the same in all that can be told."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from acting_evaluators import Acting, act

from model_opt.measuring import fork_server as server
from model_opt.measuring.child import MeasuringChild
from model_opt.measuring.process import every_process, find_process
from model_opt.measuring.variables import NEEDED, measuring_variables
from model_opt.search.evaluator import Failure, Measurement, Purpose, Reason
from model_opt.search.plan import Plan

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux only")


MINE = {"MODEL_OPT_TEST": "a fork server of its own"}
"""The tests' session has another, for other variables (conftest.py)."""


@contextmanager
def forking() -> Iterator[list[int]]:
    """Inside, processes with `MINE` are forked; yields the fork server's pid, or nothing where none was started."""
    before = serving()
    with server.fork_server(["decimal", "no_such_module"], {**os.environ, **measuring_variables(MINE)}):
        yield sorted(serving() - before)
    assert serving() == before


def serving() -> set[int]:
    """The fork servers that run now: those whose parent is this process."""
    ours = (one.pid for one in every_process().values() if one.parent == os.getpid())
    return {pid for pid in ours if b"fork_server" in command(pid)}


def command(pid: int) -> bytes:
    """What a process was started with; that of one that has just begun is empty until the kernel has laid it out."""
    end = time.monotonic() + 20
    while True:
        try:
            said = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return b""
        process = find_process(pid)
        if said or process is None or not process.lives or time.monotonic() > end:
            return said
        time.sleep(0.001)


@pytest.fixture(scope="module")
def open_server() -> Iterator[int]:
    with forking() as (pid,):
        yield pid


def child(folder: Path, **env: str) -> MeasuringChild:
    return MeasuringChild(partial(Acting, folder), env=MINE | env)


def test_a_forked_process_measures_as_any_other(open_server: int, tmp_path: Path) -> None:
    with child(tmp_path) as one, child(tmp_path) as two:
        for each in (one, two):
            said = each.describe()
            process = find_process(each.pid or 0)
            assert process is not None and process.parent == open_server
            assert (said.more["pid"], said.more["cwd"]) == (each.pid, str(Path.cwd()))
            assert isinstance(each.measure(Plan(), Purpose.EXPLORE), Measurement)
        pids = one.pid, two.pid
        assert pids[0] != pids[1]
    assert not any(find_process(pid or 0) for pid in pids)


@pytest.mark.parametrize(
    ("action", "reason", "words"),
    [
        ("error", Reason.ERROR, "KeyError"),
        ("exit", Reason.CRASH, "exit code 7; it said last:\nlast words"),
        ("segfault", Reason.CRASH, "signal SIGSEGV"),
    ],
)
def test_how_a_forked_process_ends_is_told(
    open_server: int, tmp_path: Path, action: str, reason: Reason, words: str
) -> None:
    with child(tmp_path) as one:
        outcome = one.measure(act(action), Purpose.EXPLORE)
        assert isinstance(outcome, Failure) and outcome.reason is reason and words in outcome.message
        assert isinstance(one.measure(Plan(), Purpose.EXPLORE), Measurement)
        assert one.starts == (1 if action == "error" else 2)


def test_other_variables_need_another_process(open_server: int, tmp_path: Path) -> None:
    with child(tmp_path, OMP_WAIT_POLICY="PASSIVE") as one:
        one.describe()
        process = find_process(one.pid or 0)
        assert process is not None and process.parent == os.getpid()


def test_where_a_server_dies_its_processes_end_and_others_start_by_themselves(tmp_path: Path) -> None:
    before = serving()
    modules, env = ["decimal"], {**os.environ, **measuring_variables(MINE | {"AGAIN": "1"})}
    with server.fork_server(modules, env), child(tmp_path, AGAIN="1") as one:
        one.describe()
        first = one.pid or 0
        os.kill((serving() - before).pop(), signal.SIGKILL)
        end = time.monotonic() + 20
        while one.measure(Plan(), Purpose.EXPLORE) and one.starts < 2 and time.monotonic() < end:
            time.sleep(0.05)
        assert one.starts == 2 and isinstance(one.measure(Plan(), Purpose.EXPLORE), Measurement)
        process = find_process(one.pid or 0)
        assert process is not None and process.parent == os.getpid()
        gone = find_process(first)
        assert gone is None or not gone.lives


def test_nothing_is_forked_where_a_gpus_driver_forbids_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_can_fork", lambda: False)
    with forking() as none, child(tmp_path) as one:
        assert none == []
        one.describe()


def test_an_address_that_another_user_has_taken_is_not_used(
    open_server: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(connection: object) -> None:
        raise PermissionError("another user listens there")

    monkeypatch.setattr(server, "check_peer", refuse)
    with child(tmp_path) as one:
        one.describe()
        process = find_process(one.pid or 0)
        assert process is not None and process.parent == os.getpid()


def test_what_is_imported_beforehand_starts_no_threads() -> None:
    """A fork loses all threads but one: whoever waits for a lost one waits for ever."""
    code = (
        "import importlib, sys, threading\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "print(threading.active_count())"
    )
    said = subprocess.run([sys.executable, "-c", code, *NEEDED], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["1"]
