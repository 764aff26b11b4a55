"""How long the rest of a search will take, by the pace so far."""


class Pace:
    """Told when a search began and what is settled; all times are monotonic seconds that are passed in."""

    def __init__(self, now: float, timeout_s: float | None = None) -> None:
        self._began = self._searching = now
        self._end = None if timeout_s is None else now + timeout_s
        self._budget = self._settled = 0
        self._latest = now

    def begin(self, now: float, budget: int) -> None:
        """The search begins; what was before says nothing of its pace."""
        self._searching, self._budget, self._settled = now, budget, 0

    def settle(self, now: float, settled: int, budget: int) -> None:
        """`settled` plans of `budget` are settled."""
        self._latest, self._settled, self._budget = now, settled, budget

    def passed_s(self, now: float) -> float:
        """Seconds since everything began."""
        return now - self._began

    def left_s(self, now: float) -> float | None:
        """Seconds until the budget is settled or the time is up, whichever comes first; None before the first plan."""
        if not 0 < self._settled < self._budget:
            return None
        each = (self._latest - self._searching) / self._settled
        left = max(self._latest + each * (self._budget - self._settled) - now, 0.0)
        return left if self._end is None else min(left, max(self._end - now, 0.0))

    def limit_s(self, now: float) -> float | None:
        """Seconds until the time is up; None where there is no limit."""
        return None if self._end is None else max(self._end - now, 0.0)
