"""What has been settled: every outcome in order, and per plan the samples of each metric."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from model_opt.errors import InvalidInput
from model_opt.search.encoding import Encoding
from model_opt.search.evaluator import Failure, Measurement, Outcome
from model_opt.search.metric_model import LARGEST, Rows, pooled_variance
from model_opt.search.objective import Objective
from model_opt.search.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Knowledge of a plan's metric from elsewhere: a similar architecture, an estimate. `variance` says how little it
    is worth, in the metric's unit squared. Never counted, never recommended unmeasured.

    `source` names the similar problem that it is knowledge of, and `unlike` > 0 how unlike this one that is expected to
    be; without them it is knowledge of this very problem. How far a source tells is learnt from what is measured here.
    Raises `InvalidInput` for figures that mean nothing.
    """

    plan: Plan
    metric: str
    mean: float
    variance: float
    source: str | None = None
    unlike: float = 0.1

    def __post_init__(self) -> None:
        about = f"evidence on {self.metric!r} of {self.plan}"
        if not math.isfinite(self.mean):
            raise InvalidInput(f"{about}: a mean must be finite, not {self.mean}")
        if not (math.isfinite(self.variance) and self.variance >= 0 and math.isfinite(self.unlike) and self.unlike > 0):
            raise InvalidInput(f"{about}: variance {self.variance} must be at least 0, unlike {self.unlike} above it")


@dataclass
class TriedPlan:
    """One plan that was tried. `attempts` counts its outcomes; it is measured once it has any sample, and `whole`
    once a measurement was not cut short. `means` are those of the samples, without noise where `exact`. It is
    `explained` where a failure said itself what is to blame."""

    plan: Plan
    codes: NDArray[np.int16]
    attempts: int = 0
    whole: bool = False
    exact: bool = False
    explained: bool = False
    samples: dict[str, tuple[float, ...]] = field(default_factory=dict)
    means: dict[str, float] = field(default_factory=dict)

    def add(self, metric: str, values: tuple[float, ...]) -> None:
        """Takes in samples of one metric."""
        self.samples[metric] = self.samples.get(metric, ()) + values
        self.means[metric] = math.fsum(self.samples[metric]) / len(self.samples[metric])


class _Table:
    """Rows of one metric, in columns that grow: evidence, then plans. `place` is the row of a plan, by its key."""

    def __init__(
        self,
        dims: int,
        evidence: Sequence[tuple[NDArray[np.int16], Evidence]] = (),
        sources: Mapping[str | None, int] | None = None,
    ) -> None:
        self._codes = np.zeros((max(64, 2 * len(evidence)), dims), dtype=np.int16)
        self.mean: list[float] = []
        self.count: list[float] = []
        self.records: list[TriedPlan] = []
        self.place: dict[str, int] = {}
        self.given = np.array([piece.variance for _, piece in evidence])
        self._sources = np.array([(sources or {}).get(piece.source, 0) for _, piece in evidence], dtype=np.int16)
        for codes, piece in evidence:
            self._append(codes, piece.mean, 1)

    @property
    def codes(self) -> NDArray[np.int16]:
        return self._codes[: len(self.mean)]

    @property
    def source(self) -> NDArray[np.int16]:
        """`[rows]`: 0 is what was measured here."""
        return np.concatenate([self._sources, np.zeros(len(self.records), dtype=np.int16)])

    def put(self, record: TriedPlan, metric: str) -> None:
        """Adds the plan's row, or brings it up to date."""
        mean, count = record.means[metric], len(record.samples[metric])
        row = self.place.setdefault(record.plan.key, len(self.mean))
        if row < len(self.mean):
            self.mean[row], self.count[row] = mean, count
            return
        self.records.append(record)
        self._append(record.codes, mean, count)

    def _append(self, codes: NDArray[np.int16], mean: float, count: float) -> None:
        row = len(self.mean)
        if row == len(self._codes):
            self._codes = np.concatenate([self._codes, np.zeros_like(self._codes)])
        self._codes[row] = codes
        self.mean.append(mean)
        self.count.append(count)


class Ledger:
    """Outcomes and records; the rows of a metric are its evidence, then its plans in the order of first measurement."""

    def __init__(self, encoding: Encoding, noise: Mapping[str, float | None], evidence: Sequence[Evidence]) -> None:
        self._encoding = encoding
        self._noise = dict(noise)
        by_metric: dict[str, list[tuple[NDArray[np.int16], Evidence]]] = {}
        for piece in evidence:
            by_metric.setdefault(piece.metric, []).append((encoding.encode([piece.plan])[0], piece))
        dims = len(encoding.sizes)
        far = {piece.source: piece.unlike for piece in evidence if piece.source is not None}
        self.sources = tuple(far)
        self.unlike = np.array(list(far.values()), dtype=np.float64)
        """How unlike the problem each source of evidence is expected to be, `[sources]`."""
        sources: dict[str | None, int] = {source: number for number, source in enumerate(far, 1)}
        self._tables = {metric: _Table(dims, pieces, sources) for metric, pieces in by_metric.items()}
        self._repeated: set[str] = set()
        self.outcomes: list[Outcome] = []
        self.records: dict[str, TriedPlan] = {}

    def add(self, outcome: Outcome, *, exact: bool = False) -> None:
        """Settles one outcome; samples that are not finite are dropped. Those of an `exact` one have no noise, and
        later ones of its plan add nothing."""
        plan = outcome.plan
        record = self.records.get(plan.key)
        if record is None:
            record = self.records[plan.key] = TriedPlan(plan, self._encoding.encode([plan])[0])
        self.outcomes.append(outcome)
        record.attempts += 1
        if record.exact:
            return
        record.exact = exact
        if isinstance(outcome, Failure):
            record.explained |= bool(outcome.blamed)
            return
        record.whole |= not outcome.partial
        self._add_samples(record, outcome)

    def _add_samples(self, record: TriedPlan, measurement: Measurement) -> None:
        for metric, values in measurement.samples.items():
            finite = tuple(float(value) for value in values if math.isfinite(value))
            if finite:
                if metric in record.samples:
                    self._repeated.add(metric)
                record.add(metric, finite)
                self._tables.setdefault(metric, _Table(len(self._encoding.sizes))).put(record, metric)

    @property
    def repeats(self) -> int:
        """Outcomes of plans that had been tried before."""
        return len(self.outcomes) - len(self.records)

    def noisy(self, metric: str) -> bool:
        """Whether another sample of `metric` may differ."""
        return self._noise.get(metric, 0.0) != 0.0

    def variance(self, metric: str) -> float:
        """Variance of one sample of `metric`; NaN where it is unknown and there are too few repeats to tell."""
        given = self._noise.get(metric, 0.0)
        if given is not None:
            return given
        return pooled_variance([record.samples[metric] for record in self.measured(metric)])

    @property
    def metrics(self) -> list[str]:
        """Every metric measured so far."""
        return [metric for metric, table in self._tables.items() if table.records]

    def figures(self, metric: str) -> int:
        """Plans of which a figure of `metric` is known, measured or from elsewhere."""
        return len(self._tables[metric].mean) if metric in self._tables else 0

    def measured(self, metric: str) -> Sequence[TriedPlan]:
        """The plans that have samples of `metric`, in the order of their rows."""
        return self._tables[metric].records if metric in self._tables else ()

    def places(self, metric: str, keys: Sequence[str]) -> NDArray[np.int64]:
        """Rows of plans among those of `metric`, -1 where one has no sample of it."""
        place = self._tables[metric].place
        return np.array([place.get(key, -1) for key in keys], dtype=np.int64)

    @property
    def codes(self) -> NDArray[np.int16]:
        """Every plan that was tried, `[plans, decisions]`."""
        return self._stack(self.records.values())

    def failed(self) -> NDArray[np.int16]:
        """Plans that were tried and have no sample, nobody knows why, `[plans, decisions]`."""
        return self._stack([record for record in self.records.values() if not (record.samples or record.explained)])

    def succeeded(self) -> NDArray[np.int16]:
        """Plans that have a sample of something, `[plans, decisions]`."""
        return self._stack([record for record in self.records.values() if record.samples])

    def rows(self, metric: str, objective: Objective) -> tuple[Rows, bool] | None:
        """All rows of `metric`, and whether old ones have changed since the last call; None where there is no row."""
        table = self._tables.get(metric)
        if table is None:
            return None
        count = np.array(table.count, dtype=np.float64)
        variance = self.variance(metric) / count
        variance[: len(table.given)] = table.given
        variance[len(table.given) :][[record.exact for record in table.records]] = 0.0
        repeated = metric in self._repeated
        self._repeated.discard(metric)
        rank = self._rank(table, objective)
        rows = Rows(
            codes=table.codes,
            mean=np.array(table.mean),
            variance=variance,
            count=count,
            rank=rank,
            source=table.source,
        )
        return rows, repeated

    def _rank(self, table: _Table, objective: Objective) -> NDArray[np.float64]:
        """Places of rows in the objective's order, evidence last; only computed where rows will have to be left out."""
        many = len(table.records)
        if len(table.mean) <= LARGEST:
            return np.zeros(len(table.mean))
        order = sorted(range(many), key=lambda i: objective.order(table.records[i].means))
        places = np.empty(many)
        places[order] = np.arange(many)
        return np.concatenate([np.full(len(table.given), float(many)), places])

    def _stack(self, records: Collection[TriedPlan]) -> NDArray[np.int16]:
        dims = len(self._encoding.sizes)
        raw = b"".join(record.codes.tobytes() for record in records)
        return np.frombuffer(raw, dtype=np.int16).reshape(len(records), dims)
