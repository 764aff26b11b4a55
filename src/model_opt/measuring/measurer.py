"""What measures one plan at a time, wherever that is."""

from collections.abc import Callable
from typing import Any, Protocol, Self, TypeVar

from model_opt.search.evaluator import Description, Outcome, Purpose
from model_opt.search.plan import Plan

T = TypeVar("T")


class Measurer(Protocol):
    """A measuring process on this machine (`MeasuringChild`), or one on a cluster (`actors.ClusterMeasurer`).

    `deadline` (monotonic seconds of this process, None: never) ends whatever runs then.
    """

    deadline: float | None

    def describe(self) -> Description:
        """What the evaluator says of the baseline."""

    def measure(self, plan: Plan, purpose: Purpose) -> Outcome:
        """Measures `plan`; whatever that does to the process comes back as a `Failure`."""

    def call(
        self, function: Callable[..., T], *arguments: Any, phase: str = "save", phase_deadline: float | None = None
    ) -> T:
        """`function(evaluator, *arguments)` in the measuring process: a method of the evaluator's class, usually."""

    def errand(self, function: Callable[..., T], *arguments: Any) -> T:
        """`function(measurer, *arguments)` on the machine of the measuring process, outside of it."""

    def tell(self, phase: str) -> None:
        """Says what an errand is doing, as a measurement does."""

    def kill(self) -> None:
        """Ends the process at once; from any thread."""

    def rest(self) -> None:
        """Ends the process; the next call starts a fresh one."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: Any) -> None: ...
