"""The user's constraints, read once and turned into the search's objective."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from model_opt.errors import InvalidInput, UnknownName
from model_opt.search.is_number import is_number
from model_opt.search.objective import Limit, Objective

DEFAULT_MAX_ACCURACY_DROP = 0.01

RANGES: Mapping[str, tuple[float, float, str]] = {
    "max_accuracy_drop": (0.0, 1.0, "a share: 0.02 or 2% is two points"),
    "min_speedup": (0.0, 1e6, "a ratio: 2 is twice as fast"),
    "max_latency_ms": (0.0, 1e9, "milliseconds for one call on the example input"),
    "max_size_mb": (0.0, 1e9, "megabytes (10^6 bytes) of the saved model"),
    "min_compression_ratio": (0.0, 1e6, "a ratio: 4 is a quarter of the bytes"),
}
"""Every constraint, its lowest and highest value, and what it means."""
MUCH = 0.5
"""From this share on, what a search may lose is told."""


@dataclass(frozen=True, kw_only=True)
class Constraints:
    """What the answer must keep. A bound of None is no bound."""

    max_accuracy_drop: float = DEFAULT_MAX_ACCURACY_DROP
    min_speedup: float | None = None
    max_latency_ms: float | None = None
    max_size_mb: float | None = None
    min_compression_ratio: float | None = None

    @classmethod
    def read(cls, given: Mapping[str, float | str] | None) -> "Constraints":
        """The user's mapping, checked; a share may be text, "0.02" or "2%".

        Raises `UnknownName` or `InvalidInput`; an accuracy bound is always there.
        """
        return cls(**{name: _bound(name, value) for name, value in (given or {}).items()})

    @property
    def warning(self) -> str:
        """What a user should know who allows much to be lost; empty otherwise."""
        if self.max_accuracy_drop < MUCH:
            return ""
        what = "all" if self.max_accuracy_drop == 1.0 else f"{self.max_accuracy_drop:.0%}"
        asked = f"max_accuracy_drop = {self.max_accuracy_drop:g}"
        return f"the answer may lose {what} of the accuracy ({asked}); for at most two points say 0.02, or 2%"

    def objective(self, baseline: Mapping[str, float]) -> Objective:
        """The fastest plan within these bounds, ties by size. `baseline` has `latency_ms` and `size_bytes`.

        Latency and size bounds become bounds on ratios to the baseline, which drift less than absolute times.
        """
        ratios = {
            "log_speedup": (self.min_speedup, _ratio(baseline["latency_ms"], self.max_latency_ms)),
            "log_size_ratio": (self.min_compression_ratio, _ratio(baseline["size_bytes"] / 1e6, self.max_size_mb)),
        }
        limits = [Limit(metric="accuracy_drop", bound=self.max_accuracy_drop, at_most=True)]
        for metric, bounds in ratios.items():
            if wanted := [math.log(bound) for bound in bounds if bound is not None]:
                limits.append(Limit(metric=metric, bound=max(wanted), at_most=False))
        return Objective(metric="log_speedup", maximize=True, limits=tuple(limits), tie=("log_size_ratio", True))


def _bound(name: str, value: float | str) -> float:
    if name not in RANGES:
        raise UnknownName("constraint", name, RANGES)
    low, high, meaning = RANGES[name]
    share = name == "max_accuracy_drop"
    number = _share(value) if share and isinstance(value, str) else value
    if isinstance(number, str) or not is_number(number):
        raise InvalidInput(f"constraint {name!r} must be a number ({meaning}), not {value!r}")
    if not low <= number <= high or (not share and number == 0):
        raise InvalidInput(f"constraint {name!r} = {value} is outside {low} … {high:g}: {meaning}")
    return float(number)


def _share(text: str) -> float | str:
    """What "2%" and "0.02" say as 0.02; what is no number as it is."""
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        return text


def _ratio(baseline: float, most: float | None) -> float | None:
    return None if most is None else baseline / most
