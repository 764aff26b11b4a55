"""What earlier runs have measured: recalled before a search, added to after it."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from model_opt.federation.identity import deployment_identity
from model_opt.federation.moments import Moments
from model_opt.federation.row import Row
from model_opt.federation.stream import Stream
from model_opt.search.context import Context
from model_opt.search.evaluator import Measurement
from model_opt.search.objective import Objective
from model_opt.search.plan import Plan
from model_opt.search.searcher import Evidence
from model_opt.search.signature import Signature
from model_opt.search.space import SearchSpace
from model_opt.storage.knowledge import rows_for
from model_opt.storage.store import KnowledgeStore

SHARED_METRICS = ("log_size_ratio", "log_speedup", "accuracy_drop", "latency_ms")
WHOLE_ONLY = frozenset({"accuracy_drop"})
"""What is not remembered of a partial measurement: it was told from a part of the data."""
RATIOS = ("log_size_ratio", "log_speedup", "accuracy_drop")
"""What may transfer to another model or context: never an absolute latency."""

NEIGHBOURS = 5
LEAST_SIMILARITY = 0.8
VARIANCE_FLOOR: Mapping[str, float] = {"log_size_ratio": 0.02**2, "log_speedup": 0.05**2, "accuracy_drop": 0.01**2}
VARIANCE_OF_DIFFERENCE: Mapping[str, float] = {
    "log_size_ratio": 0.5**2,
    "log_speedup": 0.7**2,
    "accuracy_drop": 0.3**2,
}
"""What is added at similarity nought; proportionally less for what is more alike. Another context counts as 0.2."""


@dataclass(frozen=True, kw_only=True)
class Recalled:
    """What the knowledge base says of a model: evidence for the surrogate, the plans that did best, and the sources."""

    evidence: tuple[Evidence, ...] = ()
    plans: tuple[Plan, ...] = ()
    rows: int = 0
    samples: int = 0
    signatures: Mapping[str, float] | None = None
    origins: tuple[str, ...] = ()
    exact: bool = False

    def describe(self) -> str:
        """One line for people."""
        if not self.rows:
            return "the knowledge base knows no similar model"
        whose = "this very architecture" if self.exact else f"{len(self.signatures or {})} similar architectures"
        return f"starting from {self.rows} measured plans ({self.samples} samples) of {whose}"

    def as_json(self) -> dict[str, object]:
        """What the result keeps: how much, how similar, from whom."""
        return {
            "rows": self.rows,
            "samples": self.samples,
            "signatures": dict(self.signatures or {}),
            "origins": list(self.origins),
            "exact": self.exact,
        }


def recall(
    store: KnowledgeStore, signature: Signature, space: SearchSpace, context: Context, objective: Objective
) -> Recalled:
    """Everything known of plans of `space` on this and similar architectures. Raises `StoreError`."""
    near = [one for one in rows_for(store, signature, NEIGHBOURS) if one.similarity >= LEAST_SIMILARITY]
    known = [(row, one.similarity) for one in near for row in one.rows if space.fits(row.plan)]
    if not known:
        return Recalled()
    return Recalled(
        evidence=tuple(_evidence(known, context)),
        plans=tuple(_best_plans(known, objective)),
        rows=len(known),
        samples=sum(max(moments.n for moments in row.moments.values()) for row, _ in known),
        signatures={row.signature: round(alike, 4) for row, alike in known},
        origins=tuple(sorted({row.origin for row, _ in known})),
        exact=any(row.signature == signature.key for row, _ in known),
    )


def _evidence(known: Iterable[tuple[Row, float]], context: Context) -> Iterable[Evidence]:
    for row, alike in known:
        for metric in RATIOS:
            if metric in row.moments:
                moments = row.moments[metric]
                unlike = 1 - alike + (0.0 if row.context == context.key else 0.2)
                variance = moments.variance / moments.n + VARIANCE_FLOOR[metric]
                variance += unlike * VARIANCE_OF_DIFFERENCE[metric]
                yield Evidence(plan=row.plan, metric=metric, mean=moments.mean, variance=variance)


def _best_plans(known: Sequence[tuple[Row, float]], objective: Objective) -> list[Plan]:
    """The plans within the limits that were best, most similar architectures first, at most four."""
    by_plan: dict[Plan, tuple[float, dict[str, float]]] = {}
    for row, alike in known:
        means = {name: moments.mean for name, moments in row.moments.items()}
        if row.plan.choices and objective.violation(means) == 0 and alike > by_plan.get(row.plan, (0.0, {}))[0]:
            by_plan[row.plan] = (alike, means)
    sign = 1 if objective.maximize else -1
    ranked = sorted(by_plan, key=lambda p: (-round(by_plan[p][0], 2), -sign * by_plan[p][1][objective.metric]))
    return ranked[:4]


class Lesson:
    """What one search has measured, as rows of one epoch of this deployment."""

    def __init__(self, signature: Signature, context: Context) -> None:
        self._signature, self._context = signature, context
        self._samples: dict[Plan, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))

    def add(self, measurement: Measurement) -> None:
        """Adds a measured plan; what was told from a part of the data only does not count as its accuracy."""
        for metric in SHARED_METRICS:
            values = measurement.samples.get(metric, ())
            if metric not in WHOLE_ONLY or not measurement.partial:
                self._samples[measurement.plan][metric] += [v for v in values if math.isfinite(v)]

    def teach(self, store: KnowledgeStore) -> int:
        """Appends the rows to `store`, as one envelope; how many. Raises `StoreError`."""
        entries = []
        for plan, metrics in self._samples.items():
            moments = {name: Moments.of(values) for name, values in metrics.items() if values}
            if moments:
                entries.append((plan, self._context, moments))
        if not entries:
            return 0
        stream = Stream(origin=deployment_origin(), federation=store.federation)
        store.append(stream.mint(self._signature, entries))
        return len(entries)


def deployment_origin() -> str:
    """The name of this deployment: its root key's, made on first use and kept with the user. Raises `StoreError`."""
    return deployment_identity().origin
