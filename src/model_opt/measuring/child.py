"""A measuring process that can be killed: a hung kernel, a segfault or a full memory costs it, not the search."""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeVar

import cloudpickle

from model_opt.errors import InvalidInput, MeasurementFailed, ModelOptError
from model_opt.measuring.child_process import ChildProcess, Died
from model_opt.measuring.deadlines import Deadlines
from model_opt.measuring.variables import measuring_variables
from model_opt.search.checked import checked
from model_opt.search.evaluator import Description, Evaluator, Failure, Measurement, Outcome, Phase, Purpose, Reason
from model_opt.search.plan import Plan

T = TypeVar("T")


class MeasuringChild:
    """Measures plans with the evaluator that `factory` makes, in a process of its own.

    The process starts on first use, in a session of its own (Ctrl-C reaches only the parent), with this process's
    `sys.path` and folder. It ends with its parent, even if that is killed. After a death or a missed deadline the next
    call starts a fresh one. What it prints goes to a log that keeps its last 16 kB.

    `allocator` keeps freed memory in it (`ALLOCATOR`). It is `forked` where a fork server is open for it. For one
    thread, except `kill`. `factory` is a callable that cloudpickle can write, or the path of its pickle. `deadline`
    (monotonic seconds, None: never) ends whatever runs then. `on_phase` is told, in this process, what a measurement is
    doing. A description's `seconds` let a phase take ten times as long. What a phase stands still while others time is
    not counted.
    Raises `InvalidInput` where the factory cannot be pickled.
    """

    def __init__(
        self,
        factory: Callable[[], Evaluator] | Path,
        *,
        env: Mapping[str, str] | None = None,
        allocator: bool = True,
        forked: bool = True,
        deadlines: Deadlines | None = None,
        on_phase: Phase | None = None,
        deadline: float | None = None,
    ) -> None:
        self._factory = _open_factory(factory)
        self._env = measuring_variables(env or {}, allocator=allocator)
        self._forked = forked
        self._deadlines = deadlines or Deadlines()
        self.on_phase = on_phase
        self.deadline = deadline
        self._process: ChildProcess | None = None
        self._description = Description()
        self.starts = 0

    def describe(self) -> Description:
        """What the evaluator says of the baseline; asked once a process.

        Raises the evaluator's own `ModelOptError`, or `MeasurementFailed` where the baseline cannot be measured.
        """
        self._alive()
        return self._description

    def measure(self, plan: Plan, purpose: Purpose) -> Outcome:
        """Measures `plan`. Whatever the plan does to the process comes back as a `Failure`."""
        watch = _Stopwatch()
        try:
            process = self._alive()
            answer = self._ask(process, "measure", (plan, purpose), "prepare", None, watch)
        except Died as death:
            return Failure(plan=plan, reason=death.reason, message=str(death), seconds=watch.seconds())
        except ModelOptError as error:  # a fresh process could not measure the baseline again
            return Failure(plan=plan, reason=Reason.CRASH, message=str(error), seconds=watch.seconds())
        if answer[0] == "done" and isinstance(answer[1], Measurement):
            return checked(answer[1], plan)
        if answer[0] == "failed":
            blamed: frozenset[tuple[str, str]] = getattr(answer[3], "blamed", frozenset())
            return Failure(plan=plan, reason=answer[1], message=answer[2], seconds=watch.seconds(), blamed=blamed)
        message = f"the evaluator returned {type(answer[1]).__name__}, not a Measurement"
        return Failure(plan=plan, reason=Reason.ERROR, message=message, seconds=watch.seconds())

    def call(
        self, function: Callable[..., T], *arguments: Any, phase: str = "save", phase_deadline: float | None = None
    ) -> T:
        """`function(evaluator, *arguments)` in that process, within `phase_deadline` seconds or the limit of `phase`.

        Raises the evaluator's own `ModelOptError`, else `MeasurementFailed`, also where the process dies.
        """
        try:
            answer = self._ask(self._alive(), function, arguments, phase, phase_deadline, _Stopwatch())
        except Died as death:
            raise MeasurementFailed(f"{function.__name__}: {death}") from death
        value: T = _value(answer, function.__name__)
        return value

    def errand(self, function: Callable[..., T], *arguments: Any) -> T:
        """`function(self, *arguments)`: what has to run on the machine that measures, which is this one."""
        return function(self, *arguments)

    def tell(self, phase: str) -> None:
        """Says what an errand is doing, as a measurement does."""
        if self.on_phase is not None:
            self.on_phase(phase)

    @property
    def pid(self) -> int | None:
        """The process's id, None before its first use and after its death."""
        return None if self._process is None else self._process.pid

    def kill(self) -> None:
        """Ends the process at once; from any thread. A measurement that is running comes back as a crash."""
        if (process := self._process) is not None:
            process.kill()

    def rest(self) -> None:
        """Ends the process, gently at first; the next call starts a fresh one."""
        if self._process is not None:
            self._process.close()
            self._process = None

    def close(self) -> None:
        """Ends the process, gently at first, for good; closing twice does nothing."""
        self.rest()
        self._factory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _alive(self) -> ChildProcess:
        """A process that has described its baseline."""
        if self._process is not None and self._process.exit_code() is None:
            return self._process
        self._drop()
        self._process = process = ChildProcess(
            self._factory, self._env, pause_s=self._deadlines.pause_s, forked=self._forked
        )
        self.starts += 1
        try:
            answer = self._ask(process, "describe", (), "start", None, _Stopwatch())
            self._description = _description(_value(answer, "the baseline could not be measured"))
        except Died as death:
            raise MeasurementFailed(f"the baseline could not be measured: {death}") from death
        except ModelOptError:
            self._drop()
            raise
        return process

    def _drop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process = None

    def _ask(
        self,
        process: ChildProcess,
        what: "str | Callable[..., Any]",
        arguments: tuple[Any, ...],
        phase: str,
        limit_s: float | None,
        watch: "_Stopwatch",
    ) -> tuple[Any, ...]:
        """Sends a request and waits for `("done", …)` or `("failed", …)`, following the phases; raises `Died`."""
        try:
            process.request(what, arguments)
            while True:
                watch.enter(phase)
                most_s = self._limit_s(phase) if limit_s is None else limit_s
                with watch.running(process):
                    answer = process.answer(most_s, self.deadline)
                if answer[0] != "phase":
                    return answer
                phase = answer[1]
                self.tell(phase)
        except Died:
            self._drop()
            raise
        except TimeoutError:
            self._drop()
            whole = self.deadline is not None and time.monotonic() >= self.deadline
            what = "the search's time was up" if whole else f"{phase} took longer than {most_s:.0f} s"
            raise Died(Reason.DEADLINE, what) from None
        except BaseException:
            self._drop()
            raise

    def _limit_s(self, phase: str) -> float:
        return self._deadlines.limit_s(phase, self._description.seconds)


class _Stopwatch:
    """The seconds spent in each phase, pauses left out."""

    def __init__(self) -> None:
        self._spent: dict[str, float] = {}
        self._phase = ""
        self.began = time.monotonic()

    def enter(self, phase: str) -> None:
        self._spent = self.seconds()
        self._phase, self.began = phase, time.monotonic()

    @contextmanager
    def running(self, process: ChildProcess) -> Iterator[None]:
        """Leaves out what `process` stands still inside the block."""
        before = process.paused_s
        try:
            yield
        finally:
            self.began += process.paused_s - before

    def seconds(self) -> dict[str, float]:
        if not self._phase:
            return {}
        return self._spent | {self._phase: self._spent.get(self._phase, 0.0) + time.monotonic() - self.began}


def _open_factory(factory: Callable[[], Evaluator] | Path) -> BinaryIO:
    """The pickle of `factory` as an open file that is gone from the disk once it is closed."""
    if isinstance(factory, Path):
        return factory.open("rb")
    file = tempfile.TemporaryFile(prefix="model-opt-")  # noqa: SIM115 - it lives as long as the child
    try:
        cloudpickle.dump(factory, file)
        file.flush()
    except Exception as error:
        file.close()
        raise InvalidInput(
            f"the model, the data or a function cannot be sent to a measuring process: {error}"
        ) from error
    return file


def _description(value: Any) -> Description:
    if not isinstance(value, Description):
        raise InvalidInput(f"an evaluator's describe() returns a Description, not {type(value).__name__}")
    return value


def _value(answer: tuple[Any, ...], what: str) -> Any:
    if answer[0] == "done":
        return answer[1]
    if isinstance(answer[3], ModelOptError):
        raise answer[3]
    raise MeasurementFailed(f"{what}: {answer[2]}") from answer[3]
