"""What a search's dashboard shows, through ray.util.metrics (Prometheus names: `ray_model_opt_…`)."""

from collections.abc import Mapping
from typing import Any

COUNTS = ("settled", "granted", "extra", "duplicates", "expired", "workers", "rows", "budget")


class FleetMetrics:
    """Gauges and counters of one search; the coordinator updates them about once a second."""

    def __init__(self, search: str) -> None:
        from ray.util.metrics import Gauge

        self._tags = {"search": search}
        self._gauges = {
            name: Gauge(f"model_opt_{name}", description=f"Search: {name}", tag_keys=("search",)) for name in COUNTS
        }
        self._failures = Gauge("model_opt_failures", description="Failures by reason", tag_keys=("search", "reason"))
        self._measured = Gauge("model_opt_measured", description="Measured by worker", tag_keys=("search", "worker"))
        self._best = Gauge(
            "model_opt_best", description="The objective of the best feasible plan", tag_keys=("search",)
        )
        self._lag = Gauge("model_opt_flush_lag_s", description="Age of what is not flushed", tag_keys=("search",))

    def update(self, status: Mapping[str, Any], *, flush_lag_s: float) -> None:
        """Takes the figures of `CoordinatorService.status`."""
        for name, gauge in self._gauges.items():
            gauge.set(float(status[name]), self._tags)
        for reason, count in status["failures"].items():
            self._failures.set(float(count), {**self._tags, "reason": str(reason)})
        for worker, count in status["measured_by"].items():
            self._measured.set(float(count), {**self._tags, "worker": worker})
        if status["best"] is not None:
            self._best.set(float(status["best"]), self._tags)
        self._lag.set(flush_lag_s, self._tags)
