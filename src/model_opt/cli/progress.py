"""Live progress in a terminal: the plan being measured, the best so far, the time left."""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from model_opt.autotuner.callbacks import Callbacks, describe_observed, describe_status
from model_opt.autotuner.result import Observed
from model_opt.search.plan import Plan


class LiveProgress(Callbacks):
    """A bar and two lines on standard error while it is open; measured plans scroll by above. A context manager."""

    def __init__(self, timeout_s: float | None = None) -> None:
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("measured"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=self._console
        )
        self._task = self._bar.add_task("measured", total=None)
        self._now, self._best, self._began = "starting", "", time.monotonic()
        self._end = None if timeout_s is None else self._began + timeout_s
        self._live = Live(self._render(), console=self._console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._live.__exit__(kind, error, tb)

    def on_start(self, *, plans: int, budget: int) -> None:
        """Shows how large the search is."""
        self._bar.update(self._task, total=budget)
        self._print(f"{plans:,} plans in the space; measuring at most {budget}")

    def on_phase(self, name: str, plan: Plan | None) -> None:
        """Shows what is going on."""
        self._now = name if plan is None else f"{name}: {plan}"
        self._live.update(self._render())

    def on_measurement(self, observed: Observed, *, settled: int, budget: int, best: Plan | None) -> None:
        """Shows what was measured."""
        self._bar.update(self._task, completed=settled, total=budget)
        self._best = str(best) if best is not None else "none keeps the constraints yet"
        self._print(f"{settled:>3}  {describe_observed(observed)}")
        self._live.update(self._render())

    def on_merge(self, status: Mapping[str, Any]) -> None:
        """Shows what was merged."""
        self._bar.update(self._task, completed=status["settled"], total=status["budget"])
        self._print(describe_status(status))

    def on_note(self, text: str) -> None:
        """Shows it above the bar."""
        self._print(text)

    def _print(self, text: str) -> None:
        self._live.console.print(Text(text))

    def _render(self) -> Group:
        left = "" if self._end is None else f"  ({max(self._end - time.monotonic(), 0):.0f} s left)"
        return Group(
            self._bar, Text(f"now   {self._now}{left}", style="dim"), Text(f"best  {self._best}", style="bold")
        )
