"""The models of all metrics of one search, and what they say of plans under an objective."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_opt.errors import InvalidInput
from model_opt.search.encoding import Encoding
from model_opt.search.expected_improvement import log_expected_improvement
from model_opt.search.failures import FailureModel
from model_opt.search.ledger import Ledger, TriedPlan
from model_opt.search.metric_model import MetricModel
from model_opt.search.objective import Objective
from model_opt.search.plan import Plan

Array = NDArray[np.float64]
Codes = NDArray[np.int16]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What is believed of a metric: mean and standard deviation, in the metric's unit."""

    mean: float
    std: float


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Plans that have every metric of the objective: `score` (warped, small is better) and its `std`, raw estimates of
    each metric `[plans]` as (mean, std), and `feasible`, the probability that all limits hold."""

    records: Sequence[TriedPlan]
    score: Array
    std: Array
    feasible: Array
    estimates: Mapping[str, tuple[Array, Array]]


class Beliefs:
    """Metric models brought up to date with a ledger, on demand."""

    def __init__(self, encoding: Encoding, ledger: Ledger) -> None:
        self._encoding, self._ledger = encoding, ledger
        self._models: dict[str, MetricModel] = {}
        self._failures = FailureModel(encoding)
        self._fresh: dict[str, int] = {}

    def refresh(self, objective: Objective) -> None:
        """Brings the models of `objective`'s metrics, and that of failures, up to date."""
        for metric in objective.metrics:
            self.model(metric, objective)
        self._failures.update(self._ledger.failed(), self._ledger.succeeded())

    def model(self, metric: str, objective: Objective) -> MetricModel | None:
        """The model of `metric` with all rows taken in, or None where there is no row."""
        settled = len(self._ledger.outcomes)
        if self._fresh.get(metric) != settled:
            rows = self._ledger.rows(metric, objective)
            if rows is None:
                return None
            if metric not in self._models:
                encoding = self._encoding
                self._models[metric] = MetricModel(encoding.sizes, encoding.ordered, self._ledger.unlike)
            model = self._models[metric]
            model.update(rows[0], repeated=rows[1])
            self._fresh[metric] = settled
        return self._models[metric]

    def judged(self, objective: Objective) -> Judged:
        """The plans that can be compared under `objective`."""
        measured, needed = self._ledger.measured(objective.metric), set(objective.metrics)
        common = [r for r in measured if r.whole and needed <= r.samples.keys()]
        keys = [record.plan.key for record in common]
        at = {metric: self._ledger.places(metric, keys) for metric in self._ledger.metrics if common}
        feasible = np.ones(len(common))
        if not common:
            return Judged(records=(), score=np.zeros(0), std=np.zeros(0), feasible=feasible, estimates={})
        for limit in objective.limits:
            feasible = feasible * self._known(limit.metric, objective).feasible_at_rows(limit)[at[limit.metric]]
        mean, std = self._known(objective.metric, objective).at_rows()
        place, sign = at[objective.metric], -1.0 if objective.maximize else 1.0
        estimates = {}
        for metric in self._ledger.metrics:
            raw_mean, raw_std = self._known(metric, objective).estimates_at_rows()
            missing = at[metric] < 0
            estimates[metric] = (np.where(missing, np.nan, raw_mean[at[metric]]), raw_std[at[metric]])
        return Judged(records=common, score=sign * mean[place], std=std[place], feasible=feasible, estimates=estimates)

    def _known(self, metric: str, objective: Objective) -> MetricModel:
        model = self.model(metric, objective)
        if model is None:
            raise InvalidInput(f"nothing is known of metric {metric!r}; known: {', '.join(self._ledger.metrics)}")
        return model

    def add_pending(self, objective: Objective, codes: Codes) -> None:
        """Takes plans in flight, `[plans, decisions]`, as if measured at their posterior mean, until `forget`."""
        for model in self._relevant(objective).values():
            model.add_pending(codes)

    def forget(self) -> None:
        """Drops what was believed."""
        for model in self._models.values():
            model.forget()

    def _relevant(self, objective: Objective) -> dict[str, MetricModel]:
        return {metric: self._models[metric] for metric in objective.metrics if metric in self._models}

    def acquisition(self, objective: Objective, incumbent: float | None) -> Callable[[Codes], Array]:
        """Log of EI below `incumbent` (a warped score, None: no feasible plan is known) + log P(feasible) + log
        P(success)."""
        models = self._relevant(objective)
        sign = -1.0 if objective.maximize else 1.0

        def score(codes: Codes) -> Array:
            value = self._failures.log_success(codes)
            for metric, model in models.items():
                mean, std = model.posterior(codes)
                if metric == objective.metric and incumbent is not None:
                    value = value + log_expected_improvement(sign * mean, std, incumbent)
                for limit in objective.limits:
                    if limit.metric == metric:
                        value = value + model.log_feasible(limit, mean, std)
            return value

        return score

    def importance(self, objective: Objective) -> Array:
        """How much each decision moves the objective and what is limited, `[decisions]`, summing to 1."""
        models = self._relevant(objective).values()
        parts = [model.importance / model.importance.sum() for model in models]
        return np.mean(parts, axis=0) if parts else np.full(len(self._encoding.sizes), 1 / len(self._encoding.sizes))

    def source_weights(self, objective: Objective) -> dict[str, dict[str, float]]:
        """The correlation with the problem that each source of evidence is believed to have, by metric."""
        models = self._relevant(objective)
        return {
            source: {metric: float(model.alike[number]) for metric, model in models.items()}
            for number, source in enumerate(self._ledger.sources)
        }

    def estimates(self, plans: Sequence[Plan], objective: Objective) -> list[Mapping[str, Estimate]]:
        """What is believed of every modelled metric of `plans`, measured or not."""
        out: list[dict[str, Estimate]] = [{} for _ in plans]
        codes = self._encoding.encode(plans)
        for metric in dict.fromkeys((*objective.metrics, *self._ledger.metrics)):
            model = self.model(metric, objective)
            if model is None or not plans:
                continue
            rows = self._ledger.places(metric, [plan.key for plan in plans])
            mean, std = model.estimates(codes)
            if (rows >= 0).any():
                known_mean, known_std = model.estimates_at_rows()
                mean, std = np.where(rows < 0, mean, known_mean[rows]), np.where(rows < 0, std, known_std[rows])
            for i in range(len(plans)):
                out[i][metric] = Estimate(mean=float(mean[i]), std=float(std[i]))
        return list(out)
