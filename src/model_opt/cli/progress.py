"""Live progress in a terminal: what is being done, the best so far, the time left."""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from model_opt.autotuner.callbacks import (
    Callbacks,
    describe_baseline,
    describe_observed,
    describe_phase,
    describe_status,
)
from model_opt.autotuner.figures import duration
from model_opt.autotuner.pace import Pace
from model_opt.search.plan import Plan

if TYPE_CHECKING:
    from model_opt.search.trial import Trial

AS_IT_IS = "the model as it is"


class LiveProgress(Callbacks):
    """A bar and two lines on standard error while it is open; measured plans scroll by above. A context manager."""

    def __init__(self, timeout_s: float | None = None, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._bar = Progress(
            TextColumn("settled"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=self._console
        )
        self._task = self._bar.add_task("settled", total=None)
        self._now, self._best, self._settled = "starting", "", 0
        self._since = time.monotonic()
        self._pace = Pace(self._since, timeout_s)
        self._live = Live(
            get_renderable=self._render, console=self._console, refresh_per_second=4, transient=True
        )  # drawn afresh each time: the seconds go on while nothing happens

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._live.__exit__(kind, error, tb)

    def on_baseline(self, figures: Mapping[str, float]) -> None:
        """Shows what the model is like before anything is done to it."""
        self._print(f"as it is: {describe_baseline(figures)}")

    def on_start(self, *, plans: int, budget: int) -> None:
        """Shows how large the search is."""
        self._pace.begin(time.monotonic(), budget)
        self._bar.update(self._task, total=budget)
        self._print(f"{plans:,} plans in the space; measuring at most {budget}")

    def on_phase(self, name: str, plan: Plan | None) -> None:
        """Shows what is going on."""
        self._now, self._since = describe_phase(name, plan), time.monotonic()

    def on_measurement(self, observed: "Trial", *, settled: int, budget: int, best: Plan | None) -> None:
        """Shows what was measured."""
        self._settle(settled, budget)
        self._best = "none keeps the constraints yet" if best is None else str(best if best.choices else AS_IT_IS)
        if settled:
            self._print(f"{settled:>3}  {describe_observed(observed)}")
        self.on_phase("search", None)

    def on_merge(self, status: Mapping[str, Any]) -> None:
        """Shows what was merged, unless its plans have been shown one by one."""
        if status["settled"] > self._settled:
            self._settle(status["settled"], status["budget"])
            self._print(describe_status(status))

    def on_note(self, text: str) -> None:
        """Shows it above the bar."""
        self._print(text)

    def _settle(self, settled: int, budget: int) -> None:
        self._settled = settled
        self._pace.settle(time.monotonic(), settled, budget)
        self._bar.update(self._task, completed=settled, total=budget)

    def _print(self, text: str) -> None:
        self._live.console.print(Text(text))

    def _render(self) -> Group:
        now = time.monotonic()
        lines = [Text(f"now   {self._now}  ({now - self._since:.0f} s)", style="dim")]
        if self._best:
            lines.append(Text(f"best  {self._best}", style="bold"))
        if left := self._left(now):
            lines.append(Text(f"left  {left}", style="dim"))
        return Group(self._bar, *lines)

    def _left(self, now: float) -> str:
        left, limit = self._pace.left_s(now), self._pace.limit_s(now)
        told = [] if left is None else [f"about {duration(left)}"]
        return ", ".join([*told, *([] if limit is None else [f"at most {duration(limit)}"])])
