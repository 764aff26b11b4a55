"""The plans of a search that no other beats in speed, size and accuracy at once."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from model_opt.search.plan import Plan, read_plan


@dataclass(frozen=True, kw_only=True)
class ParetoPoint:
    """A plan that no other measured plan beats in speed, size and accuracy at once.

    `intervals` are 95 % intervals (low, high) by name, where they are known: `speedup` for a fresh process,
    `accuracy_drop` for other data of the same kind.
    """

    plan: Plan
    speedup: float
    compression_ratio: float
    accuracy_drop: float
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def from_fields(cls, raw: Mapping[str, Any]) -> "ParetoPoint":
        """Reads what `asdict` made of one, also by way of JSON."""
        intervals = {name: (float(low), float(high)) for name, (low, high) in raw.get("intervals", {}).items()}
        return cls(**dict(raw) | {"plan": read_plan(raw["plan"]), "intervals": intervals})


def pareto_points(observed: Mapping[Plan, Mapping[str, float]]) -> tuple[ParetoPoint, ...]:
    """The plans of `observed` that no other beats in speed, size and accuracy at once, fastest first."""
    points = [
        ParetoPoint(
            plan=plan,
            speedup=math.exp(metrics["log_speedup"]),
            compression_ratio=math.exp(metrics["log_size_ratio"]),
            accuracy_drop=metrics["accuracy_drop"],
        )
        for plan, metrics in observed.items()
        if {"log_speedup", "log_size_ratio", "accuracy_drop"} <= metrics.keys()
    ]
    kept = [point for point in points if not any(_beats(other, point) for other in points)]
    return tuple(sorted(kept, key=lambda point: -point.speedup))


def _beats(a: ParetoPoint, b: ParetoPoint) -> bool:
    at_least = a.speedup >= b.speedup and a.compression_ratio >= b.compression_ratio
    at_least = at_least and a.accuracy_drop <= b.accuracy_drop
    return at_least and (a.speedup, a.compression_ratio, a.accuracy_drop) != (
        b.speedup,
        b.compression_ratio,
        b.accuracy_drop,
    )
