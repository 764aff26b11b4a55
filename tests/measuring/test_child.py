"""The measuring process against real processes that crash, hang, talk, fork and exhaust their memory."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from acting_evaluators import Acting, act

from model_opt.errors import InvalidInput, MeasurementFailed
from model_opt.measuring.child import MeasuringChild
from model_opt.measuring.deadlines import Deadlines
from model_opt.measuring.process import find_process
from model_opt.measuring.timing_lock import TimingLock
from model_opt.search.evaluator import Failure, Measurement, Outcome, Purpose, Reason
from model_opt.search.plan import Plan


def alive(pid: int) -> bool:
    """Whether `pid` runs; a zombie that nobody has reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def stopped(pid: int) -> bool:
    process = find_process(pid)
    return process is not None and process.stopped


def until(condition: object, timeout_s: float = 20.0) -> bool:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.02)
    return False


@pytest.fixture(scope="module", autouse=True)
def by_themselves() -> Iterator[None]:
    """Processes start by themselves here: test_fork_server.py has those that are forked."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("model_opt.measuring.child_process.fork", lambda env, fds: None)
        yield


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MeasuringChild]:
    with MeasuringChild(partial(Acting, tmp_path_factory.mktemp("child"))) as child:
        yield child


def test_measures_in_another_process_with_the_same_folder(shared: MeasuringChild) -> None:
    description = shared.describe()
    assert description.more["pid"] == shared.pid != os.getpid()
    assert description.more["cwd"] == str(Path.cwd())
    outcome = shared.measure(Plan(), Purpose.VERIFY)
    assert outcome == Measurement(
        plan=Plan(), samples={"latency_ms": (1.0, 2.0)}, seconds={"time": 0.5}, notes=("verify",)
    )


@pytest.mark.parametrize(
    ("action", "reason", "words"),
    [
        ("illegal", Reason.ILLEGAL, "depthwise layers cannot be pruned"),
        ("wrong", Reason.WRONG_OUTPUT, "outputs are not finite"),
        ("error", Reason.ERROR, "KeyError: 'weights' ("),
        ("leave", Reason.ERROR, "SystemExit: 3"),
        ("cuda_memory", Reason.OUT_OF_MEMORY, "CUDA out of memory"),
        ("odd", Reason.ERROR, "Odd"),
    ],
)
def test_what_a_plan_raises_becomes_its_reason(shared: MeasuringChild, action: str, reason: Reason, words: str) -> None:
    shared.describe()
    starts = shared.starts
    outcome = shared.measure(act(action), Purpose.EXPLORE)
    assert isinstance(outcome, Failure)
    assert outcome.reason is reason
    assert words in outcome.message
    assert set(outcome.seconds) == {"prepare"}
    assert shared.starts == starts


@pytest.mark.parametrize(
    ("action", "reason", "words"),
    [
        ("exit", Reason.CRASH, "exit code 7; it said last:\nlast words"),
        ("segfault", Reason.CRASH, "SIGSEGV"),
        ("killed", Reason.CRASH, "SIGKILL"),
        ("bad_alloc", Reason.OUT_OF_MEMORY, "SIGABRT"),
    ],
)
def test_after_a_death_the_next_plan_is_measured(
    shared: MeasuringChild, action: str, reason: Reason, words: str
) -> None:
    before = shared.describe().more["pid"]
    outcome = shared.measure(act(action), Purpose.EXPLORE)
    assert isinstance(outcome, Failure)
    assert (outcome.reason, words in outcome.message) == (reason, True), outcome.message
    assert isinstance(shared.measure(Plan(), Purpose.EXPLORE), Measurement)
    assert shared.describe().more["pid"] != before


def test_memory_that_runs_out_is_told_and_survived(shared: MeasuringChild) -> None:
    outcome = shared.measure(act("memory"), Purpose.EXPLORE)
    assert isinstance(outcome, Failure)
    assert outcome.reason is Reason.OUT_OF_MEMORY
    assert isinstance(shared.measure(Plan(), Purpose.EXPLORE), Measurement)


def test_a_gigabyte_of_talk_reaches_neither_the_protocol_nor_our_output(
    shared: MeasuringChild, capfd: pytest.CaptureFixture[str]
) -> None:
    assert isinstance(shared.measure(act("talk"), Purpose.EXPLORE), Measurement)
    assert capfd.readouterr() == ("", "")


def test_a_fork_that_comes_back_answers_once(shared: MeasuringChild) -> None:
    assert isinstance(shared.measure(act("twice"), Purpose.EXPLORE), Measurement)
    assert isinstance(shared.measure(Plan(), Purpose.EXPLORE), Measurement)


def test_an_interrupt_does_not_reach_it(shared: MeasuringChild) -> None:
    assert isinstance(shared.measure(act("signal"), Purpose.EXPLORE), Measurement)


def broken(evaluator: Acting) -> object:
    return evaluator.absent  # type: ignore[attr-defined]


def test_other_methods_and_their_errors(shared: MeasuringChild, tmp_path: Path) -> None:
    assert shared.call(Acting.save, Plan(), tmp_path / "plan") == len("leave alone")
    assert (tmp_path / "plan").read_text() == "leave alone"
    with pytest.raises(InvalidInput, match="not so"):
        shared.call(Acting.refuse)
    with pytest.raises(InvalidInput, match="unknown decision 'x'"):
        shared.call(Acting.raise_unknown)
    with pytest.raises(MeasurementFailed, match=r"broken: .*no attribute 'absent'"):
        shared.call(broken)
    with pytest.raises(InvalidInput, match="cannot be pickled"):
        shared.call(Acting.save, threading.Lock())


def test_a_phase_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    phases: list[str] = []
    deadlines = Deadlines(accuracy_s=0.3)
    with MeasuringChild(partial(Acting, tmp_path), deadlines=deadlines, on_phase=phases.append) as child:
        before = child.describe().more["pid"]
        outcome = child.measure(act("sleep"), Purpose.EXPLORE)
        assert isinstance(outcome, Failure)
        assert outcome.reason is Reason.DEADLINE
        assert set(outcome.seconds) == {"prepare", "accuracy"}
        assert phases == ["prepare", "accuracy"]
        assert not alive(before)  # type: ignore[arg-type]
        assert isinstance(child.measure(Plan(), Purpose.EXPLORE), Measurement)


def test_a_hang_in_c_and_the_searchs_end(tmp_path: Path) -> None:
    with MeasuringChild(partial(Acting, tmp_path)) as child:
        child.describe()
        child.deadline = time.monotonic() + 0.5
        outcome = child.measure(act("hang"), Purpose.EXPLORE)
        assert isinstance(outcome, Failure)
        assert (outcome.reason, outcome.message) == (Reason.DEADLINE, "the search's time was up")


def test_grandchildren_end_with_the_child(tmp_path: Path) -> None:
    with MeasuringChild(partial(Acting, tmp_path)) as child:
        child.measure(act("fork"), Purpose.EXPLORE)
        grandchild = int((tmp_path / "grandchild").read_text())
        assert alive(grandchild)
    assert until(lambda: not alive(grandchild))
    assert child.pid is None


def measured_beside(child: MeasuringChild, action: str) -> tuple[list[Outcome], threading.Thread]:
    """Measures in a thread; the outcome comes into the list."""
    child.describe()
    outcomes: list[Outcome] = []
    thread = threading.Thread(target=lambda: outcomes.append(child.measure(act(action), Purpose.EXPLORE)))
    thread.start()
    return outcomes, thread


def test_what_it_stands_still_for_others_counts_for_no_deadline(tmp_path: Path) -> None:
    with MeasuringChild(partial(Acting, tmp_path), deadlines=Deadlines(accuracy_s=2.0)) as child:
        outcomes, thread = measured_beside(child, "work")
        assert until((tmp_path / "working").exists)
        pid, grandchild = child.pid, int((tmp_path / "grandchild").read_text())
        assert pid is not None
        with TimingLock(folder=tmp_path).exclusive():
            assert stopped(pid)
            assert stopped(grandchild)
            time.sleep(3)
        (tmp_path / "go").touch()
        thread.join()
        assert isinstance(outcomes[0], Measurement), outcomes
        assert child.pid == pid


def slowly_read(folder: Path) -> partial[Acting]:
    (folder / "working").touch()
    while not (folder / "go").exists():
        time.sleep(0.01)
    return partial(Acting, folder)


class SlowToRead:
    """A factory whose unpickling takes until the file `go` is there, as imports may."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self) -> Acting:
        return Acting(self.folder)

    def __reduce__(self) -> tuple[object, ...]:
        return slowly_read, (self.folder,)


def test_a_process_that_starts_stands_still_for_timers(tmp_path: Path) -> None:
    with MeasuringChild(SlowToRead(tmp_path), env={"TMPDIR": str(tmp_path)}) as child:
        thread = threading.Thread(target=child.describe)
        thread.start()
        assert until((tmp_path / "working").exists)
        pid = child.pid
        assert pid is not None
        with TimingLock(folder=tmp_path / f"model-opt-{os.getuid()}").exclusive():
            assert stopped(pid)
        (tmp_path / "go").touch()
        thread.join()
        assert child.describe().more["pid"] == pid


def test_of_a_failures_seconds_those_in_which_it_stood_still_are_none(tmp_path: Path) -> None:
    with MeasuringChild(partial(Acting, tmp_path), deadlines=Deadlines(accuracy_s=1.0)) as child:
        outcomes, thread = measured_beside(child, "work")
        assert until((tmp_path / "working").exists)
        with TimingLock(folder=tmp_path).exclusive():
            time.sleep(5)
        thread.join()
        assert isinstance(outcomes[0], Failure)
        assert outcomes[0].reason is Reason.DEADLINE
        assert outcomes[0].seconds["accuracy"] < 5


def test_the_searchs_end_ends_it_though_it_stands_still(tmp_path: Path) -> None:
    with MeasuringChild(partial(Acting, tmp_path)) as child:
        child.describe()
        pid, child.deadline = child.pid, time.monotonic() + 2
        assert pid is not None
        outcomes, thread = measured_beside(child, "work")
        assert until((tmp_path / "working").exists)
        with TimingLock(folder=tmp_path).exclusive():
            thread.join()
            assert not alive(pid)
        assert isinstance(outcomes[0], Failure)
        assert (outcomes[0].reason, outcomes[0].message) == (Reason.DEADLINE, "the search's time was up")


def test_stopped_by_nobody_knows_whom_it_goes_on(tmp_path: Path) -> None:
    with MeasuringChild(partial(Acting, tmp_path), deadlines=Deadlines(pause_s=0.3)) as child:
        outcomes, thread = measured_beside(child, "work")
        assert until((tmp_path / "working").exists)
        pid, grandchild = child.pid, int((tmp_path / "grandchild").read_text())
        assert pid is not None
        for one in (grandchild, pid):
            os.kill(one, signal.SIGSTOP)
        assert until(lambda: not stopped(pid) and not stopped(grandchild))
        (tmp_path / "go").touch()
        thread.join()
        assert isinstance(outcomes[0], Measurement)


def test_killed_while_it_times_it_leaves_nobody_stopped(tmp_path: Path) -> None:
    with MeasuringChild(partial(Acting, tmp_path)) as worker, MeasuringChild(partial(Acting, tmp_path)) as timer:
        worked, working = measured_beside(worker, "work")
        assert until((tmp_path / "working").exists)
        timed, timing = measured_beside(timer, "time_alone")
        assert until((tmp_path / "timing").exists)
        pid = worker.pid
        assert pid is not None
        assert stopped(pid)
        timer.kill()
        timing.join()
        assert isinstance(timed[0], Failure)
        assert until(lambda: not stopped(pid))
        (tmp_path / "go").touch()
        working.join()
        assert isinstance(worked[0], Measurement)


def test_kill_from_another_thread(tmp_path: Path) -> None:
    with MeasuringChild(partial(Acting, tmp_path)) as child:
        child.describe()
        threading.Timer(0.3, child.kill).start()
        outcome = child.measure(act("sleep"), Purpose.EXPLORE)
        assert isinstance(outcome, Failure)
        assert outcome.reason is Reason.CRASH


def test_a_baseline_that_cannot_be_measured_is_an_error_of_ours() -> None:
    def broken() -> Acting:
        raise ValueError("no such model")

    with MeasuringChild(broken) as child, pytest.raises(MeasurementFailed, match="no such model"):
        child.describe()
    with MeasuringChild(broken) as child:
        outcome = child.measure(Plan(), Purpose.EXPLORE)
        assert isinstance(outcome, Failure)
        assert "no such model" in outcome.message


def test_what_cannot_be_pickled_fails_at_once() -> None:
    lock = threading.Lock()
    with pytest.raises(InvalidInput, match="cannot be sent"):
        MeasuringChild(lambda: lock)  # type: ignore[arg-type, return-value]


def test_a_factory_of_hundreds_of_megabytes_and_of_a_closure(tmp_path: Path) -> None:
    load = bytes(200 << 20)

    def factory() -> Acting:
        assert len(load) == 200 << 20
        return Acting(tmp_path)

    with MeasuringChild(factory, env={"A_SETTING": "on"}) as child:
        assert isinstance(child.measure(Plan(), Purpose.EXPLORE), Measurement)


SCRIPT = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background of a shell
from functools import partial
from pathlib import Path
print("imported once")
from model_opt.measuring.child import MeasuringChild
from model_opt.search.evaluator import Measurement, Purpose
from model_opt.search.plan import Plan
from acting_evaluators import act, Acting

class Mine(Acting):  # in the user's script, which has no __main__ guard
    pass

child = MeasuringChild(partial(Mine, Path(sys.argv[1])))
assert isinstance(child.measure(Plan(), Purpose.EXPLORE), Measurement)
child.measure(act("fork"), Purpose.EXPLORE)
print(child.pid, flush=True)
try:
    child.measure(act(sys.argv[2]), Purpose.EXPLORE)
except KeyboardInterrupt:
    print("interrupted", child.pid)
"""


def start_script(tmp_path: Path, action: str) -> tuple["subprocess.Popen[str]", int]:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path), action],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "imported once\n"
    return process, int(process.stdout.readline())


def test_a_hung_child_and_its_children_die_with_a_killed_parent(tmp_path: Path) -> None:
    process, child = start_script(tmp_path, "hang")
    assert until((tmp_path / "hung").exists)
    process.kill()
    process.communicate()
    assert until(lambda: not alive(child))
    assert until(lambda: not alive(int((tmp_path / "grandchild").read_text())))


def test_a_child_that_stands_still_dies_with_a_killed_parent(tmp_path: Path) -> None:
    process, child = start_script(tmp_path, "work")
    assert until((tmp_path / "working").exists)
    with TimingLock(folder=tmp_path).exclusive():
        assert stopped(child)
        process.kill()
        process.communicate()
        assert until(lambda: not alive(child))
        assert until(lambda: not alive(int((tmp_path / "grandchild").read_text())))


def test_ctrl_c_ends_a_child_that_stands_still(tmp_path: Path) -> None:
    process, child = start_script(tmp_path, "work")
    assert until((tmp_path / "working").exists)
    with TimingLock(folder=tmp_path).exclusive():
        assert stopped(child)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=20)
        assert said == "interrupted None\n"
        assert not alive(child)


def test_ctrl_c_reaches_the_caller_and_ends_the_child(tmp_path: Path) -> None:
    process, child = start_script(tmp_path, "hang")
    assert until((tmp_path / "hung").exists)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=20)
    assert said == "interrupted None\n"
    assert not alive(child)
