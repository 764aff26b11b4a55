"""What of a trial becomes knowledge: said once, for a search on this machine and for a fleet's."""

import math
from collections.abc import Collection, Mapping

from model_opt.federation.identity import deployment_identity
from model_opt.federation.moments import Moments, merge
from model_opt.federation.store import KnowledgeStore
from model_opt.federation.stream import Stream
from model_opt.metrics import named
from model_opt.search.context import Context
from model_opt.search.evaluator import Measurement
from model_opt.search.model_signature import ModelSignature
from model_opt.search.plan import Plan

KEPT = named(lambda metric: metric.kept)
"""What rows of knowledge have."""
WHOLE_ONLY = frozenset(named(lambda metric: metric.whole_only))
"""What is not kept of a partial measurement: it was told from a part of the data."""


def recorded(
    old: Mapping[str, Moments], measurement: Measurement, whole_only: Collection[str] = WHOLE_ONLY
) -> dict[str, Moments]:
    """`old` moments by metric, with the finite samples of `measurement`: none that other programs disturbed, and of a
    partial one none of the metrics of `whole_only`."""
    made = dict(old)
    for metric, values in measurement.samples.items():
        finite = [value for value in values if math.isfinite(value)]
        in_part = measurement.partial and metric in whole_only
        if finite and metric not in measurement.disturbed and not in_part:
            new = Moments.of(finite)
            made[metric] = merge(made[metric], new) if metric in made else new
    return made


def storable(moments: Mapping[str, Moments], metrics: Collection[str] | None = KEPT) -> dict[str, Moments]:
    """The `moments` of the metrics that are kept (of all where that is None), where they are finite."""
    return {
        name: one
        for name, one in moments.items()
        if (metrics is None or name in metrics) and math.isfinite(one.mean) and math.isfinite(one.m2)
    }


class Recorder:
    """What one search has measured, as rows of one epoch of this deployment."""

    def __init__(self, signature: ModelSignature, context: Context) -> None:
        self._signature, self._context = signature, context
        self._rows: dict[Plan, dict[str, Moments]] = {}

    def add(self, measurement: Measurement) -> None:
        """Adds a measured plan."""
        self._rows[measurement.plan] = recorded(self._rows.get(measurement.plan, {}), measurement)

    def record(self, store: KnowledgeStore) -> int:
        """Appends the rows to `store`, as one envelope; how many. Raises `StoreError`."""
        rows = [(plan, self._context, storable(moments)) for plan, moments in self._rows.items()]
        entries = [row for row in rows if row[2]]
        if entries:
            stream = Stream(origin=deployment_origin(), federation=store.federation)
            store.append(stream.mint(self._signature, entries))
        return len(entries)


def deployment_origin() -> str:
    """The name of this deployment: its root key's, made on first use and kept with the user. Raises `StoreError`."""
    return deployment_identity().origin
