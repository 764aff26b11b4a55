"""What an optimisation tells while it runs. Subclass `Callbacks` and override what you want to hear."""

import math
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from model_opt.autotuner.figures import duration, faster, lost, smaller
from model_opt.autotuner.pace import Pace
from model_opt.search.plan import Plan

if TYPE_CHECKING:
    from model_opt.autotuner.result import CompressionResult
    from model_opt.search.trial import Trial

PHASES: Mapping[str, str] = {
    "load": "loading the model",
    "baseline": "measuring the model as it is",
    "what applies": "finding out what applies to this model",
    "sensitivity": "finding out which layers are sensitive",
    "slot": "waiting for a free slot of the cluster",
    "workers": "starting the workers",
    "search": "searching",
    "prepare": "preparing",
    "compile": "compiling",
    "wait": "waiting for its turn to be timed",
    "time": "timing",
    "accuracy": "judging",
    "save": "saving",
    "final figures": "timing the answer in fresh processes",
    "remember": "keeping what was learnt",
}
"""What the phases that `Callbacks.on_phase` is told are called for people; others by their own names."""


class Callbacks:
    """Every method does nothing here. They are called in the caller's thread, between measurements; what they raise
    ends the optimisation."""

    def on_baseline(self, figures: Mapping[str, float]) -> None:
        """The model as it is has been measured: `latency_ms`, `size_bytes`, and its accuracy where it was asked for."""

    def on_start(self, *, plans: int, budget: int) -> None:
        """The space has `plans` plans, of which at most `budget` will be measured."""

    def on_phase(self, name: str, plan: Plan | None) -> None:
        """`name` begins (one of `PHASES`, or "fresh process 1 of 4"), for `plan` or for the whole."""

    def on_measurement(self, observed: "Trial", *, settled: int, budget: int, best: Plan | None) -> None:
        """A plan is settled: `settled` of `budget`, zero where it is the original, which needs no measuring. `best`
        is the best known that keeps the constraints."""

    def on_merge(self, status: Mapping[str, Any]) -> None:
        """A cluster's coordinator has merged new measurements, each of which was told before: its counts, `measured_by`
        of them by worker."""

    def on_note(self, text: str) -> None:
        """Something the user should know."""

    def on_end(self, result: "CompressionResult") -> None:
        """The result is there; the optimised model is saved beside it next."""


class Together(Callbacks):
    """Tells each of `listeners`, in turn."""

    def __init__(self, listeners: Sequence[Callbacks]) -> None:
        self._listeners = tuple(listeners)

    def on_baseline(self, figures: Mapping[str, float]) -> None:
        """Passes it on."""
        for each in self._listeners:
            each.on_baseline(figures)

    def on_start(self, *, plans: int, budget: int) -> None:
        """Passes it on."""
        for each in self._listeners:
            each.on_start(plans=plans, budget=budget)

    def on_phase(self, name: str, plan: Plan | None) -> None:
        """Passes it on."""
        for each in self._listeners:
            each.on_phase(name, plan)

    def on_measurement(self, observed: "Trial", *, settled: int, budget: int, best: Plan | None) -> None:
        """Passes it on."""
        for each in self._listeners:
            each.on_measurement(observed, settled=settled, budget=budget, best=best)

    def on_merge(self, status: Mapping[str, Any]) -> None:
        """Passes it on."""
        for each in self._listeners:
            each.on_merge(status)

    def on_note(self, text: str) -> None:
        """Passes it on."""
        for each in self._listeners:
            each.on_note(text)

    def on_end(self, result: "CompressionResult") -> None:
        """Passes it on."""
        for each in self._listeners:
            each.on_end(result)


class LineProgress(Callbacks):
    """One line a settled plan on standard error, and one for each plan or phase that takes a while.

    What an optimisation tells unless it is given callbacks: `callbacks=Callbacks()` is quiet. As a context manager it
    says nothing more after its end.
    """

    PHASE_S, PLAN_S = 0.3, 2.0
    """Seconds after which a phase of the whole, and one of a plan, is named."""

    def __init__(self, stream: TextIO | None = None, *, timeout_s: float | None = None) -> None:
        self._stream = stream or sys.stderr
        self._pace = Pace(time.monotonic(), timeout_s)
        self._slow: threading.Timer | None = None
        self._told, self._settled = "", 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._hush()

    def on_baseline(self, figures: Mapping[str, float]) -> None:
        """Says what the model is like before anything is done to it."""
        self._say(f"as it is: {describe_baseline(figures)}")

    def on_start(self, *, plans: int, budget: int) -> None:
        """Says how large the search is."""
        self._pace.begin(time.monotonic(), budget)
        self._say(f"{plans:,} plans; measuring at most {budget}")

    def on_phase(self, name: str, plan: Plan | None) -> None:
        """Says what is going on once it has gone on for a while; once for each plan."""
        self._hush()
        told = name if plan is None or name not in PHASES else str(plan)
        if told == self._told:
            return
        wait_s = self.PHASE_S if plan is None and name != "search" else self.PLAN_S
        self._slow = threading.Timer(wait_s, self._say_slow, (told, describe_phase(name, plan)))
        self._slow.daemon = True
        self._slow.start()

    def on_measurement(self, observed: "Trial", *, settled: int, budget: int, best: Plan | None) -> None:
        """Says what was measured, and how long the rest will take."""
        self._pace.settle(time.monotonic(), settled, budget)
        self._told, self._settled = "", settled
        if settled:
            self._say(f"{settled}/{budget}  {describe_observed(observed)}{self._left()}")
        self.on_phase("search", None)

    def on_merge(self, status: Mapping[str, Any]) -> None:
        """Says what was merged, unless its plans have been told one by one."""
        if status["settled"] > self._settled:
            self._pace.settle(time.monotonic(), status["settled"], status["budget"])
            self._say(f"{describe_status(status)}{self._left()}")

    def on_note(self, text: str) -> None:
        """Says it."""
        self._say(text)

    def on_end(self, result: "CompressionResult") -> None:
        """Says nothing more."""
        self._hush()

    def _left(self) -> str:
        left = self._pace.left_s(time.monotonic())
        return "" if left is None else f"  (about {duration(left)} left)"

    def _say_slow(self, told: str, text: str) -> None:
        self._told = told
        self._print(f"{text} …")

    def _say(self, text: str) -> None:
        self._hush()
        self._print(text)

    def _print(self, text: str) -> None:
        print(f"[{self._pace.passed_s(time.monotonic()):6.1f} s] {text}", file=self._stream, flush=True)

    def _hush(self) -> None:
        if self._slow is not None:
            self._slow.cancel()
            self._slow = None


def describe_phase(name: str, plan: Plan | None) -> str:
    """A phase in words: "preparing precision=int8_static", "measuring the model as it is"."""
    words = PHASES.get(name, name)
    return words if plan is None else f"{words}: {plan}"


def describe_baseline(figures: Mapping[str, float]) -> str:
    """The model as it is, in a few words: "12.345 ms a call, 1,204.5 kB, accuracy 97.50%"."""
    accuracy = [f"accuracy {figures['accuracy']:.2%}"] if "accuracy" in figures else []
    return ", ".join([f"{figures['latency_ms']:.3f} ms a call", f"{figures['size_bytes'] / 1e3:,.1f} kB", *accuracy])


def describe_status(status: Mapping[str, Any]) -> str:
    """One line about a search on a cluster: "7/24 settled; measured by a1-0: 4, a1-1: 3; merged into 7 rows"."""
    workers = ", ".join(f"{name}: {count}" for name, count in sorted(status["measured_by"].items()))
    return f"{status['settled']}/{status['budget']} settled; measured by {workers}; merged into {status['rows']} rows"


def describe_observed(observed: "Trial") -> str:
    """One line about a settled plan: "precision=int8_static: 5.10x faster, 3.90x smaller, 0.40% lost"."""
    if observed.failure is not None:
        return f"{observed.plan}: {observed.failure.splitlines()[0][:120]}"
    figures = observed.metrics
    parts = []
    if "log_speedup" in figures:
        parts.append(faster(math.exp(figures["log_speedup"])))
    if "log_size_ratio" in figures:
        parts.append(smaller(math.exp(figures["log_size_ratio"])))
    if "accuracy_drop" in figures:
        parts.append(lost(figures["accuracy_drop"]))
    elif observed.notes:
        parts.append(observed.notes[0])
    return f"{observed.plan}: {', '.join(parts)}"
