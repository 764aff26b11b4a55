"""The user's constraints, read once and turned into the search's objective."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from model_opt.errors import InvalidInput, UnknownName
from model_opt.search.checks import is_number
from model_opt.search.objective import Limit, Objective

DEFAULT_MAX_ACCURACY_DROP = 0.01

RANGES: Mapping[str, tuple[float, float, str]] = {
    "max_accuracy_drop": (0.0, 1.0, "a share: 0.02 is two points"),
    "min_speedup": (0.0, 1e6, "a ratio: 2 is twice as fast"),
    "max_latency_ms": (0.0, 1e9, "milliseconds for one call on the example input"),
    "max_size_mb": (0.0, 1e9, "megabytes (10^6 bytes) of the saved model"),
    "min_compression_ratio": (0.0, 1e6, "a ratio: 4 is a quarter of the bytes"),
}
"""Every constraint, its lowest and highest value, and what it means."""


@dataclass(frozen=True, kw_only=True)
class Constraints:
    """What the answer must keep. A bound of None is no bound."""

    max_accuracy_drop: float = DEFAULT_MAX_ACCURACY_DROP
    min_speedup: float | None = None
    max_latency_ms: float | None = None
    max_size_mb: float | None = None
    min_compression_ratio: float | None = None

    @classmethod
    def read(cls, given: Mapping[str, float] | None) -> "Constraints":
        """The user's mapping, checked. Raises `UnknownName` or `InvalidInput`; an accuracy bound is always there."""
        for name, value in (given or {}).items():
            if name not in RANGES:
                raise UnknownName("constraint", name, RANGES)
            low, high, meaning = RANGES[name]
            if not is_number(value):
                raise InvalidInput(f"constraint {name!r} must be a number ({meaning}), not {value!r}")
            positive = name != "max_accuracy_drop"
            if not low <= value <= high or (positive and value == 0):
                raise InvalidInput(f"constraint {name!r} = {value} is outside {low} … {high:g}: {meaning}")
        return cls(**{name: float(value) for name, value in (given or {}).items()})

    def objective(self, baseline: Mapping[str, float]) -> Objective:
        """The fastest plan within these bounds, ties by size. `baseline` has `latency_ms` and `size_bytes`.

        Latency and size bounds become bounds on ratios to the baseline, which drift less than absolute times.
        """
        least = self.least(size_mb=baseline["size_bytes"] / 1e6, latency_ms=baseline["latency_ms"])
        limits = [Limit(metric="accuracy_drop", bound=self.max_accuracy_drop, at_most=True)]
        limits += [Limit(metric=metric, bound=bound, at_most=False) for metric, bound in least.items()]
        return Objective(metric="log_speedup", maximize=True, limits=tuple(limits), tie=("log_size_ratio", True))

    def least(self, *, size_mb: float | None = None, latency_ms: float | None = None) -> Mapping[str, float]:
        """The least log ratios of the original's figures to a plan's, by metric; without a figure of the original its
        absolute bound is left out."""
        ratios = {
            "log_speedup": (self.min_speedup, _ratio(latency_ms, self.max_latency_ms)),
            "log_size_ratio": (self.min_compression_ratio, _ratio(size_mb, self.max_size_mb)),
        }
        bounds = {metric: [math.log(bound) for bound in of if bound is not None] for metric, of in ratios.items()}
        return {metric: max(found) for metric, found in bounds.items() if found}


def _ratio(baseline: float | None, most: float | None) -> float | None:
    return None if baseline is None or most is None else baseline / most
