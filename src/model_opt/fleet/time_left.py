"""How long a worker's search goes on, and what can still be measured until then."""

import math
import threading
import time
from collections.abc import Iterable

from model_opt.search.evaluator import Outcome, Purpose
from model_opt.search.plan import Plan
from model_opt.search.plan_seconds import ExpectedSeconds, PlanSeconds, seconds_of


class TimeLeft:
    """The time of a search as its coordinator tells it, and what plans take, as this worker and all others find out.

    Thread-safe. Without a time limit everything fits, and nothing is learnt.
    """

    def __init__(self, expected: ExpectedSeconds | None = None) -> None:
        self._lock = threading.Lock()
        self._seconds = PlanSeconds(expected)
        self._until, self._whole_s = math.inf, 0.0
        self._known: set[str] = set()
        self._own: set[str] = set()
        self.refused = False
        """Whether a plan was found to take too long."""

    def hear(self, left_s: float | None, news: Iterable[Outcome]) -> None:
        """The coordinator's word: seconds left, and what was settled since the last; this worker's own is known."""
        with self._lock:
            self._until = math.inf if left_s is None else time.monotonic() + left_s
            self._whole_s = max(self._whole_s, left_s or 0.0)
            for outcome in news if left_s is not None else ():
                if outcome.plan.key not in self._own:
                    self._seconds.learn(outcome, self._purpose(outcome.plan), seconds_of(outcome), own=False)
                self._known.add(outcome.plan.key)

    def took(self, outcome: Outcome, seconds: float) -> None:
        """A plan of its own was measured in `seconds`."""
        with self._lock:
            if self._until < math.inf:
                self._seconds.learn(outcome, self._purpose(outcome.plan), seconds)
                self._known.add(outcome.plan.key)
                self._own.add(outcome.plan.key)

    def fits(self, plan: Plan) -> bool:
        """Whether `plan`, begun now, should be measured before the time is up."""
        with self._lock:
            left_s = self._until - time.monotonic()
            fitting = math.isinf(left_s) or self._fits(plan, left_s)
            self.refused |= not fitting
            return fitting

    def _fits(self, plan: Plan, left_s: float) -> bool:
        return self._seconds.fits(plan, self._purpose(plan), left_s, self._whole_s)

    def _purpose(self, plan: Plan) -> Purpose:
        return Purpose.VERIFY if plan.key in self._known else Purpose.EXPLORE
