"""The answer of a search, from what is believed of the measured plans."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_opt.search.beliefs import Estimate, Judged
from model_opt.search.evaluator import Measurement
from model_opt.search.ledger import Ledger
from model_opt.search.objective import Objective
from model_opt.search.plan import Plan

CONFIDENCE = 0.95
"""Probability from which on a plan is called feasible."""


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """`feasible`: all limits hold with probability `CONFIDENCE`; else the plan is the least violated, and says how sure
    it is. `estimates` are of every metric the plan was measured by."""

    plan: Plan
    feasible: bool
    probability_feasible: float
    estimates: Mapping[str, Estimate]


def recommend(judged: Judged, objective: Objective, ledger: Ledger) -> Recommendation:
    """The best of `judged`; where nothing has all metrics, the least violated of what was measured, else
    leave-alone."""
    if not len(judged.records):
        return _from_parts(objective, ledger)
    sure = np.flatnonzero(judged.feasible >= CONFIDENCE)
    best = _best(judged, sure, objective) if len(sure) else _least_violated(judged, objective)
    estimates = {
        metric: Estimate(mean=float(mean[best]), std=float(std[best]))
        for metric, (mean, std) in judged.estimates.items()
        if not np.isnan(mean[best])
    }
    return Recommendation(
        plan=judged.records[best].plan,
        feasible=bool(len(sure)),
        probability_feasible=float(judged.feasible[best]),
        estimates=estimates,
    )


def or_better(found: Recommendation, others: Sequence[Measurement], objective: Objective) -> Recommendation:
    """`found`, or one of `others`, whose figures are exact, where that is better."""
    for other in others:
        means = {metric: float(np.mean(values)) for metric, values in other.samples.items()}
        believed = {metric: estimate.mean for metric, estimate in found.estimates.items()}
        holds = objective.violation(means) == 0 and objective.metric in means
        if holds > found.feasible or (holds == found.feasible and objective.better(means, believed)):
            found = Recommendation(
                plan=other.plan,
                feasible=holds,
                probability_feasible=float(holds),
                estimates={metric: Estimate(mean=mean, std=0.0) for metric, mean in means.items()},
            )
    return found


def _best(judged: Judged, among: NDArray[np.int64], objective: Objective) -> int:
    """The best score; plans within half a standard deviation of it are ties, which the tie-breaker decides."""
    first = among[np.argmin(judged.score[among])]
    if objective.tie is None or objective.tie[0] not in judged.estimates:
        return int(first)
    metric, maximize = objective.tie
    ties = among[judged.score[among] <= judged.score[first] + 0.5 * judged.std[first] + 1e-12]
    value = judged.estimates[metric][0][ties] * (-1 if maximize else 1)
    order = np.lexsort((judged.score[ties], np.where(np.isnan(value), np.inf, value)))
    return int(ties[order[0]])


def _least_violated(judged: Judged, objective: Objective) -> int:
    violation = [
        objective.violation({limit.metric: float(judged.estimates[limit.metric][0][i]) for limit in objective.limits})
        for i in range(len(judged.records))
    ]
    return int(np.lexsort((judged.score, -judged.feasible, np.array(violation)))[0])


def _from_parts(objective: Objective, ledger: Ledger) -> Recommendation:
    """No plan has all metrics: the one that lacks the fewest and breaks least of the limits that can be checked."""
    measured = [record for record in ledger.records.values() if record.samples]

    def key(means: Mapping[str, float]) -> tuple[int, float]:
        known = Objective(metric=objective.metric, limits=tuple(x for x in objective.limits if x.metric in means))
        return sum(metric not in means for metric in objective.metrics), known.violation(means)

    best = min(measured, key=lambda record: key(record.means), default=None)
    if best is None:
        return Recommendation(plan=Plan(), feasible=False, probability_feasible=0.0, estimates={})
    estimates = {metric: Estimate(mean=mean, std=0.0) for metric, mean in best.means.items()}
    return Recommendation(plan=best.plan, feasible=False, probability_feasible=0.0, estimates=estimates)


def pareto_front(judged: Judged, metrics: Sequence[tuple[str, bool]]) -> list[int]:
    """Which of `judged` no other beats in all of `metrics` ((name, maximize)); of equals only the first is kept."""
    if not len(judged.records) or any(metric not in judged.estimates for metric, _ in metrics):
        return []
    values = np.stack([judged.estimates[m][0] * (-1.0 if up else 1.0) for m, up in metrics], axis=1)
    front = []
    for i, row in enumerate(values):
        no_worse = (values <= row).all(axis=1)
        better = no_worse & (values < row).any(axis=1)
        if not np.isnan(row).any() and not better.any() and not no_worse[:i].any():
            front.append(i)
    return front
