"""What an optimisation tells while it runs. Subclass `Callbacks` and override what you want to hear."""

import math
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from model_opt.autotuner.result import CompressionResult, Observed
from model_opt.search.plan import Plan


class Callbacks:
    """Every method does nothing here. They are called in the caller's thread, between measurements; what they raise
    ends the optimisation."""

    def on_baseline(self, figures: Mapping[str, float]) -> None:
        """The model as it is has been measured: `latency_ms`, `size_bytes`, and its accuracy where it was asked for."""

    def on_start(self, *, plans: int, budget: int) -> None:
        """The space has `plans` plans, of which at most `budget` will be measured."""

    def on_phase(self, name: str, plan: Plan | None) -> None:
        """`name` ("prepare", "time", "accuracy", "save", "fresh processes") begins, for `plan` or for the whole."""

    def on_measurement(self, observed: Observed, *, settled: int, budget: int, best: Plan | None) -> None:
        """A plan is settled: `settled` of `budget`, nought where it is the original, which needs no measuring. `best`
        is the best known that keeps the constraints."""

    def on_merge(self, status: Mapping[str, Any]) -> None:
        """A cluster's coordinator has merged new measurements: its counts, `measured_by` of them by worker."""

    def on_note(self, text: str) -> None:
        """Something the user should know."""

    def on_end(self, result: CompressionResult) -> None:
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

    def on_measurement(self, observed: Observed, *, settled: int, budget: int, best: Plan | None) -> None:
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

    def on_end(self, result: CompressionResult) -> None:
        """Passes it on."""
        for each in self._listeners:
            each.on_end(result)


class LineProgress(Callbacks):
    """One line a settled plan, on standard error."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._started = time.monotonic()

    def on_start(self, *, plans: int, budget: int) -> None:
        """Says how large the search is."""
        self._say(f"{plans:,} plans; measuring at most {budget}")

    def on_measurement(self, observed: Observed, *, settled: int, budget: int, best: Plan | None) -> None:
        """Says what was measured."""
        self._say(f"{settled}/{budget}  {describe_observed(observed)}")

    def on_merge(self, status: Mapping[str, Any]) -> None:
        """Says what was merged."""
        self._say(describe_status(status))

    def on_note(self, text: str) -> None:
        """Says it."""
        self._say(text)

    def _say(self, text: str) -> None:
        print(f"[{time.monotonic() - self._started:6.1f} s] {text}", file=self._stream, flush=True)


def describe_status(status: Mapping[str, Any]) -> str:
    """One line about a search on a cluster: "7/24 settled; a1-0: 4, a1-1: 3; merged into 7 rows"."""
    workers = ", ".join(f"{name}: {count}" for name, count in sorted(status["measured_by"].items()))
    return f"{status['settled']}/{status['budget']} settled; measured by {workers}; merged into {status['rows']} rows"


def describe_observed(observed: Observed) -> str:
    """One line about a settled plan: "openvino int8: 5.1x faster, 3.9x smaller, 0.4 % lost"."""
    if observed.failure is not None:
        return f"{observed.plan}: {observed.failure.splitlines()[0][:120]}"
    figures = observed.metrics
    parts = []
    if "log_speedup" in figures:
        parts.append(f"{math.exp(figures['log_speedup']):.2f}x faster")
    if "log_size_ratio" in figures:
        parts.append(f"{math.exp(figures['log_size_ratio']):.2f}x smaller")
    if "accuracy_drop" in figures:
        parts.append(f"{figures['accuracy_drop']:.2%} lost")
    elif observed.notes:
        parts.append(observed.notes[0])
    return f"{observed.plan}: {', '.join(parts)}"
