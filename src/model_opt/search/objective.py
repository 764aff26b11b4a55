"""What is wanted of a plan: one metric made small or large, limits on others, and a tie-breaker."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

SURE = 3.1
"""Standard errors beyond which a limit is taken to hold, or to be broken, for certain: P < 0.001."""


@dataclass(frozen=True, kw_only=True)
class Limit:
    """`metric` is at most `bound`, or at least, both inclusive."""

    metric: str
    bound: float
    at_most: bool = True

    def excess(self, value: float) -> float:
        """How far `value` is beyond the bound, as a share of the bound (absolute where that is zero); 0 inside."""
        beyond = value - self.bound if self.at_most else self.bound - value
        return max(0.0, beyond) / (abs(self.bound) or 1.0)

    def certain(self, value: float, error: float) -> bool | None:
        """Whether it holds (True) or is broken (False) by more than `SURE` standard errors; None: nobody can say."""
        room = (self.bound - value) * (1 if self.at_most else -1)
        return None if abs(room) < SURE * error or math.isnan(room) else room >= 0


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Exactly one metric to minimise (or maximise); everything else is a limit.

    `tie` is (metric, maximize): what decides between plans that are equal in the first. An objective is applied when
    rows are read and never stored, so another one can be asked of the same measurements.
    """

    metric: str
    maximize: bool = False
    limits: tuple[Limit, ...] = ()
    tie: tuple[str, bool] | None = None

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics without which a plan cannot be judged: the objective, then the limits', each once."""
        return tuple(dict.fromkeys((self.metric, *(limit.metric for limit in self.limits))))

    def maximizes(self, metric: str) -> bool:
        """The direction in which `metric` gets better; small is better where nothing is said."""
        if metric == self.metric:
            return self.maximize
        if self.tie is not None and metric == self.tie[0]:
            return self.tie[1]
        return any(limit.metric == metric and not limit.at_most for limit in self.limits)

    def violation(self, metrics: Mapping[str, float]) -> float:
        """Sum of the limits' excesses; 0 is feasible, infinite where a limited metric is missing."""
        if any(limit.metric not in metrics for limit in self.limits):
            return math.inf
        return sum(limit.excess(metrics[limit.metric]) for limit in self.limits)

    def hopeless(self, known: Mapping[str, tuple[float, float]]) -> bool:
        """Whether what is `known` of a plan's metrics, (value, standard error), rules out that it is feasible: the rest
        need not be measured."""
        return any(limit.certain(*known[limit.metric]) is False for limit in self.limits if limit.metric in known)

    def better(self, a: Mapping[str, float], b: Mapping[str, float]) -> bool:
        """Whether `a` is strictly better than `b`: less violation, then the objective, then the tie-breaker."""
        return self.order(a) < self.order(b)

    def order(self, metrics: Mapping[str, float]) -> tuple[float, float, float]:
        """A sort key: better plans come first."""
        tie = math.inf if self.tie is None else _signed(metrics, *self.tie)
        return (self.violation(metrics), _signed(metrics, self.metric, self.maximize), tie)


def _signed(metrics: Mapping[str, float], metric: str, maximize: bool) -> float:
    """The value as something to minimise; infinite where it is missing."""
    if metric not in metrics:
        return math.inf
    return -metrics[metric] if maximize else metrics[metric]
