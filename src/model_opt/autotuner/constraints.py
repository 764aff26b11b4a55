"""The user's constraints, read once and turned into the search's objective."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

from model_opt.errors import InvalidInput, UnknownName
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
            if not _is_number(value):
                raise InvalidInput(f"constraint {name!r} must be a number ({meaning}), not {value!r}")
            positive = name != "max_accuracy_drop"
            if not low <= value <= high or (positive and value == 0):
                raise InvalidInput(f"constraint {name!r} = {value} is outside {low} … {high:g}: {meaning}")
        return cls(**{name: float(value) for name, value in (given or {}).items()})

    def objective(self, baseline: Mapping[str, float]) -> Objective:
        """The fastest plan within these bounds, ties by size. `baseline` has `latency_ms` and `size_bytes`.

        Latency and size bounds become bounds on ratios to the baseline, which drift less than absolute times.
        """
        speedup = max(self._ratios("min_speedup", self.max_latency_ms, baseline["latency_ms"]), default=None)
        size_mb = baseline["size_bytes"] / 1e6
        size = max(self._ratios("min_compression_ratio", self.max_size_mb, size_mb), default=None)
        limits = [Limit(metric="accuracy_drop", bound=self.max_accuracy_drop, at_most=True)]
        if speedup is not None:
            limits.append(Limit(metric="log_speedup", bound=math.log(speedup), at_most=False))
        if size is not None:
            limits.append(Limit(metric="log_size_ratio", bound=math.log(size), at_most=False))
        return Objective(metric="log_speedup", maximize=True, limits=tuple(limits), tie=("log_size_ratio", True))

    def least(self, size_bytes: float) -> Mapping[str, float]:
        """The least log ratios that are known before anything is timed, by metric; `size_bytes` of the original."""
        size = max(self._ratios("min_compression_ratio", self.max_size_mb, size_bytes / 1e6), default=None)
        wanted = {"log_size_ratio": size, "log_speedup": self.min_speedup}
        return {metric: math.log(ratio) for metric, ratio in wanted.items() if ratio is not None}

    def _ratios(self, name: str, most: float | None, baseline: float) -> list[float]:
        """The lower bounds on baseline ÷ plan: the one given as a ratio, and the one given as an absolute value."""
        ratio = getattr(self, name)
        return [*([ratio] if ratio is not None else []), *([baseline / most] if most is not None else [])]


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)
