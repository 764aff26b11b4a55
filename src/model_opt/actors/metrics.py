"""What a search's dashboard shows, through ray.util.metrics (Prometheus names: `ray_model_opt_…`)."""

from collections.abc import Mapping
from typing import Any

COUNTS = {
    "settled": "Leases of the budget that are settled",
    "granted": "Leases that are being measured",
    "extra": "Results beside the budget",
    "duplicates": "Results that came again",
    "expired": "Leases whose worker fell silent",
    "workers": "Workers that take part",
    "rows": "Plans and contexts with samples",
    "budget": "Leases in all",
    "staleness": "Settlements that the latest proposals did not know of",
}
BY_TAG = {"failures": "reason", "measured": "worker"}
OTHERS = {"best": "Objective of the best feasible plan", "flush_lag_s": "Age of the oldest row that is not flushed"}
EXPORTED = tuple(f"model_opt_{name}" for name in (*COUNTS, *BY_TAG, *OTHERS))
"""The names of all metrics; Prometheus puts `ray_` before them."""


class FleetMetrics:
    """Gauges of one search; the coordinator updates them about once a second."""

    def __init__(self, search: str) -> None:
        from ray.util.metrics import Gauge

        self._tags = {"search": search}
        told = {**COUNTS, **OTHERS}
        self._gauges = {
            name: Gauge(f"model_opt_{name}", description=text, tag_keys=("search",)) for name, text in told.items()
        }
        self._by_tag = {
            name: Gauge(f"model_opt_{name}", description=f"Settled: {name} by {tag}", tag_keys=("search", tag))
            for name, tag in BY_TAG.items()
        }

    def update(self, status: Mapping[str, Any], *, flush_lag_s: float) -> None:
        """Takes the figures of `CoordinatorService.status`."""
        values = {name: status[name] for name in COUNTS} | {"best": status["best"], "flush_lag_s": flush_lag_s}
        for name, value in values.items():
            if value is not None:
                self._gauges[name].set(float(value), self._tags)
        for name, counts in (("failures", status["failures"]), ("measured", status["measured_by"])):
            for key, count in counts.items():
                self._by_tag[name].set(float(count), {**self._tags, BY_TAG[name]: str(key)})
