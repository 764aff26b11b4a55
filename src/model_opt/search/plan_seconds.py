"""How long measuring a plan takes: expected beforehand, learnt while a search runs."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from model_opt.search.evaluator import Failure, Outcome, Purpose
from model_opt.search.plan import Plan

Array = NDArray[np.float64]
Picked = frozenset[tuple[str, str]]
"""(decision, option) pairs; a stage's decision ("prune/stage2") counts as its technique's ("prune")."""

SURE = 0.85
"""A plan is begun where its time is up by then with this probability."""
LARGEST_SHARE, LARGEST_RATIO = 0.2, 2.0
"""No plan is explored that should take more than this share of a search's time, unless that is at most this many times
what a plan usually takes: in the same time many others can be measured."""
_PACE, _OPTION = 0.7, 0.5  # standard deviations of log seconds: of a machine's pace, of what one option is off by
_ANY_PACE = 100.0
_SPREAD, _WORTH = 0.35, 2.0  # of one plan's log seconds around the model; half the degrees of freedom that this has
_SHORTEST_S = 1e-3


@dataclass(frozen=True, kw_only=True)
class ExpectedSeconds:
    """What is expected before anything was measured: `plan_s` for any plan, `verify_s` more where it is to be verified,
    and for every group of `added_s` that a plan holds whole the seconds there; of those in `once_s` so much more the
    first time. One that is verified takes `again` (a share) of what is added: its model may have been kept."""

    plan_s: float
    verify_s: float = 0.0
    added_s: Mapping[Picked, float] = field(default_factory=dict)
    once_s: Mapping[Picked, float] = field(default_factory=dict)
    again: float = 1.0

    def of(self, plan: Plan, purpose: Purpose, *, used: Collection[Picked] = ()) -> float:
        """Seconds that `plan` should take, where the groups `used` are not there for the first time."""
        picked = picked_by(plan)
        added = sum(seconds for group, seconds in self.added_s.items() if group <= picked)
        added += sum(seconds for group, seconds in self.once_s.items() if group <= picked and group not in used)
        if purpose is Purpose.VERIFY:
            return max(self.plan_s + self.again * added + self.verify_s, _SHORTEST_S)
        return max(self.plan_s + added, _SHORTEST_S)


class PlanSeconds:
    """Log seconds of a plan: those expected, the machine's pace, and what each option is off by; normal, additive.

    Bayesian linear regression with the noise's variance unknown (Gelman et al., Bayesian Data Analysis, section 14.8),
    so that what is predicted has a Student t distribution. Without `expected` nothing is foretold before a plan was
    measured, and plans differ by what was seen of their options only.
    """

    def __init__(self, expected: ExpectedSeconds | None = None) -> None:
        self._expected = expected
        self._columns: dict[tuple[str, str], int] = {}
        self._precision = np.array([[((_PACE if expected else _ANY_PACE) / _SPREAD) ** -2]])
        self._moment = np.zeros(1)
        self._square = 0.0
        self._fit: _Fit | None = None
        self._took: list[float] = []
        self._used: dict[bool, set[Picked]] = {True: set(), False: set()}
        self.learnt = 0
        """How many plans it has learnt from."""

    def learn(self, outcome: Outcome, purpose: Purpose, seconds: float, *, own: bool = True) -> None:
        """`outcome` took `seconds`, in this measuring process if it is its `own`. A failure says no more than that its
        plan takes at least as long."""
        expected = self._log_expected(outcome.plan, purpose, own=own)
        if self._expected is not None:
            picked = picked_by(outcome.plan)
            self._used[own] |= {group for group in self._expected.once_s if group <= picked}
        if seconds <= 0 or (isinstance(outcome, Failure) and seconds <= self.quantile(outcome.plan, purpose, 0.5)):
            return
        at = np.array([0, *(self._column(each) for each in sorted(picked_by(outcome.plan)))])
        off = np.log(max(seconds, _SHORTEST_S)) - expected
        self._precision[np.ix_(at, at)] += 1.0
        self._moment[at] += off
        self._square += off**2
        self._took.append(seconds)
        self.learnt += 1
        self._fit = None

    def quantile(self, plan: Plan, purpose: Purpose, share: float = SURE) -> float:
        """The seconds within which `plan` is measured with probability `share`; 0 where nothing is known at all."""
        if self._expected is None and not self.learnt:
            return 0.0
        fit = self._fitted()
        picked = picked_by(plan)
        seen = [self._columns[each] for each in picked if each in self._columns]
        at = np.array([0, *seen])
        unseen = {technique for technique, option in picked if (technique, option) not in self._columns}
        new = len(unseen) * (_OPTION / _SPREAD) ** 2  # two strengths of one technique take about as long
        scale = np.sqrt(fit.variance * (1.0 + new + fit.covariance[np.ix_(at, at)].sum()))
        off = fit.mean[at].sum() + scale * stdtrit(fit.degrees, share)
        return float(np.exp(self._log_expected(plan, purpose) + off))

    def fits(self, plan: Plan, purpose: Purpose, left_s: float, whole_s: float = np.inf) -> bool:
        """Whether `plan` should end within `left_s` seconds: most probably, or, while no plan has been measured, as
        likely as not; and does not take too much of the `whole_s` seconds of a search."""
        if self.quantile(plan, purpose, SURE if self.learnt else 0.5) > left_s:
            return False
        if not self.learnt or purpose is Purpose.VERIFY:
            return True
        most_s = max(LARGEST_SHARE * whole_s, LARGEST_RATIO * float(np.median(self._took)))
        return self.quantile(plan, purpose, 0.5) <= most_s

    def _log_expected(self, plan: Plan, purpose: Purpose, *, own: bool = True) -> float:
        if self._expected is None:
            return 0.0
        return float(np.log(self._expected.of(plan, purpose, used=self._used[own])))

    def _column(self, option: tuple[str, str]) -> int:
        """The option's place, new where it was not met before; the pace has the first."""
        if option not in self._columns:
            self._columns[option] = 1 + len(self._columns)
            self._precision = np.pad(self._precision, (0, 1))
            self._precision[-1, -1] = (_OPTION / _SPREAD) ** -2
            self._moment = np.append(self._moment, 0.0)
        return self._columns[option]

    def _fitted(self) -> "_Fit":
        if self._fit is None:
            covariance = np.linalg.inv(self._precision)
            mean = covariance @ self._moment
            worth = _WORTH + self.learnt / 2
            rest = _WORTH * _SPREAD**2 + 0.5 * max(self._square - float(self._moment @ mean), 0.0)
            self._fit = _Fit(mean=mean, covariance=covariance, variance=rest / worth, degrees=2 * worth)
        return self._fit


@dataclass(frozen=True, kw_only=True)
class _Fit:
    """The posterior: `mean` `[columns]`, `covariance` `[columns, columns]` in units of `variance`."""

    mean: Array
    covariance: Array
    variance: float
    degrees: float


def picked_by(plan: Plan) -> Picked:
    """The techniques' options in `plan`, whichever stages they are for."""
    return frozenset((choice.decision.partition("/")[0], choice.option) for choice in plan.choices)


def seconds_of(outcome: Outcome) -> float:
    """What an evaluator says that measuring took, all phases together; 0 where it does not say."""
    return float(sum(outcome.seconds.values()))
