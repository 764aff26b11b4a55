"""What a hub counts, as Prometheus reads it."""

from collections.abc import Mapping
from typing import Any

from model_opt.errors import MissingDependency


class HubCounts:
    """Counters since the start, in a registry of their own."""

    def __init__(self) -> None:
        """Raises `MissingDependency`."""
        try:
            from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
        except ImportError as error:
            raise MissingDependency("prometheus-client", "hub") from error
        self._registry = CollectorRegistry()

        def made(kind: Any, name: str, about: str, *labels: str) -> Any:
            return kind(f"model_opt_hub_{name}", about, labels, registry=self._registry)

        self._requests = made(Counter, "requests", "Requests by what was asked and the answer", "what", "status")
        self._seconds = made(Histogram, "request_seconds", "Time to answer", "what")
        self._refused = made(Counter, "refused", "Requests refused, by reason", "reason")
        self._records = made(Counter, "records", "Records pushed, by decision", "federation", "decision")
        self._bytes = made(Counter, "bytes", "Bytes of bodies", "direction")
        self._kept = made(Gauge, "kept_records", "Records kept", "federation")
        self._quarantined = made(Counter, "quarantined", "Origins put in quarantine", "federation")

    def answered(self, what: str, status: int, seconds: float) -> None:
        """Counts a request."""
        self._requests.labels(what, str(status)).inc()
        self._seconds.labels(what).observe(seconds)

    def refused(self, reason: str) -> None:
        """Counts a refusal; `reason` is one of the codes of `service`."""
        self._refused.labels(reason).inc()

    def pushed(self, federation: str, decisions: Mapping[str, int], kept: int, quarantined: int) -> None:
        """Counts the records of a push, and how many are kept in all."""
        for decision, count in decisions.items():
            self._records.labels(federation, decision).inc(count)
        self._kept.labels(federation).set(kept)
        self._quarantined.labels(federation).inc(quarantined)

    def moved(self, direction: str, count: int) -> None:
        """Counts bytes "in" or "out"."""
        self._bytes.labels(direction).inc(count)

    def text(self) -> bytes:
        """The text format of Prometheus, version 0.0.4."""
        from prometheus_client import generate_latest

        return bytes(generate_latest(self._registry))
