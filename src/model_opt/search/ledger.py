"""What has been settled: every outcome in order, and per plan the samples of each metric."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from model_opt.search.encoding import Encoding
from model_opt.search.evaluator import Failure, Measurement, Outcome
from model_opt.search.metric_model import LARGEST, Rows, pooled_variance
from model_opt.search.objective import Objective
from model_opt.search.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Knowledge of a plan's metric from elsewhere: a similar architecture, an estimate. `variance` says how little it
    is worth, in the metric's unit squared. Never counted, never recommended unmeasured."""

    plan: Plan
    metric: str
    mean: float
    variance: float


@dataclass
class Record:
    """One plan that was tried. `attempts` counts its outcomes; it is measured once it has any sample, and `whole`
    once a measurement was not cut short."""

    plan: Plan
    codes: NDArray[np.int16]
    attempts: int = 0
    whole: bool = False
    samples: dict[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def means(self) -> dict[str, float]:
        """Mean of the samples of each metric."""
        return {metric: float(np.mean(values)) for metric, values in self.samples.items()}


class Ledger:
    """Outcomes and records; the rows of a metric are its evidence, then its plans in the order of first measurement."""

    def __init__(self, encoding: Encoding, noise: Mapping[str, float | None], evidence: Sequence[Evidence]) -> None:
        self._encoding = encoding
        self._noise = dict(noise)
        self._evidence: dict[str, list[tuple[NDArray[np.int16], Evidence]]] = {}
        for piece in evidence:
            codes = encoding.encode([piece.plan])[0]
            self._evidence.setdefault(piece.metric, []).append((codes, piece))
        self._of_metric: dict[str, list[Record]] = {}
        self._repeated: set[str] = set()
        self.outcomes: list[Outcome] = []
        self.records: dict[str, Record] = {}

    def add(self, outcome: Outcome) -> None:
        """Settles one outcome; samples that are not finite are dropped."""
        plan = outcome.plan
        record = self.records.get(plan.key)
        if record is None:
            record = self.records[plan.key] = Record(plan, self._encoding.encode([plan])[0])
        self.outcomes.append(outcome)
        record.attempts += 1
        if isinstance(outcome, Failure):
            return
        record.whole |= not outcome.partial
        self._add_samples(record, outcome)

    def _add_samples(self, record: Record, measurement: Measurement) -> None:
        for metric, values in measurement.samples.items():
            finite = tuple(float(value) for value in values if math.isfinite(value))
            if not finite:
                continue
            if metric in record.samples:
                self._repeated.add(metric)
            else:
                self._of_metric.setdefault(metric, []).append(record)
            record.samples[metric] = record.samples.get(metric, ()) + finite

    def noisy(self, metric: str) -> bool:
        """Whether another sample of `metric` may differ."""
        return self._noise.get(metric, 0.0) != 0.0

    def variance(self, metric: str) -> float:
        """Variance of one sample of `metric`; NaN where it is unknown and there are too few repeats to tell."""
        given = self._noise.get(metric, 0.0)
        if given is not None:
            return given
        return pooled_variance([record.samples[metric] for record in self._of_metric.get(metric, [])])

    @property
    def metrics(self) -> list[str]:
        """Every metric measured so far."""
        return list(self._of_metric)

    def measured(self, metric: str) -> list[Record]:
        """The plans that have samples of `metric`, in the order of their rows."""
        return self._of_metric.get(metric, [])

    def evidence(self, metric: str) -> int:
        """How many rows of `metric` come before those of measured plans."""
        return len(self._evidence.get(metric, []))

    @property
    def codes(self) -> NDArray[np.int16]:
        """Every plan that was tried, `[plans, decisions]`."""
        return self._stack([record.codes for record in self.records.values()])

    def failed(self) -> NDArray[np.int16]:
        """Plans that were tried and have no sample, `[plans, decisions]`."""
        return self._stack([record.codes for record in self.records.values() if not record.samples])

    def succeeded(self) -> NDArray[np.int16]:
        """Plans that have a sample of something, `[plans, decisions]`."""
        return self._stack([record.codes for record in self.records.values() if record.samples])

    def rows(self, metric: str, objective: Objective) -> tuple[Rows, bool]:
        """All rows of `metric`, and whether old ones have changed since the last call."""
        evidence, records = self._evidence.get(metric, []), self.measured(metric)
        counts = np.array([1] * len(evidence) + [len(record.samples[metric]) for record in records], dtype=np.float64)
        means = [piece.mean for _, piece in evidence] + [float(np.mean(record.samples[metric])) for record in records]
        variance = np.full(len(counts), self.variance(metric)) / counts
        variance[: len(evidence)] = [piece.variance for _, piece in evidence]
        repeated = metric in self._repeated
        self._repeated.discard(metric)
        rows = Rows(
            codes=self._stack([codes for codes, _ in evidence] + [record.codes for record in records]),
            mean=np.array(means),
            variance=variance,
            count=counts,
            rank=self._rank(len(evidence), records, objective),
        )
        return rows, repeated

    def _rank(self, evidence: int, records: list[Record], objective: Objective) -> NDArray[np.float64]:
        """Places of rows in the objective's order, evidence last; only computed where rows will have to be left out."""
        if evidence + len(records) <= LARGEST:
            return np.zeros(evidence + len(records))
        order = sorted(range(len(records)), key=lambda i: objective.order(records[i].means))
        places = np.empty(len(records))
        places[order] = np.arange(len(records))
        return np.concatenate([np.full(evidence, float(len(records))), places])

    def _stack(self, rows: list[NDArray[np.int16]]) -> NDArray[np.int16]:
        dims = len(self._encoding.sizes)
        return np.array(rows, dtype=np.int16).reshape(len(rows), dims)
