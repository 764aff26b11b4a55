"""How much better one method is than another: ratios of mean regrets, their geometric mean, and intervals for both."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FLOOR = 0.02
"""ε of a ratio, as a share of random search's mean regret at 100 evaluations."""
_RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A ratio with its 95 % interval over seeds."""

    value: float
    low: float
    high: float


def floor(random_at_100: np.ndarray) -> float:
    """ε of a problem."""
    return FLOOR * float(random_at_100.mean())


def ratio(ours: np.ndarray, theirs: np.ndarray, epsilon: float) -> Ratio:
    """(mean of ours + ε) / (mean of theirs + ε); the interval is a percentile bootstrap over the runs of both."""
    return geometric([(ours, theirs, epsilon)])


def geometric(parts: Sequence[tuple[np.ndarray, np.ndarray, float]]) -> Ratio:
    """Geometric mean of the ratios of several problems, each (ours, theirs, ε); its interval."""
    rng = np.random.default_rng(0)
    logs, drawn = 0.0, np.zeros(_RESAMPLES)
    for ours, theirs, epsilon in parts:
        logs += np.log((ours.mean() + epsilon) / (theirs.mean() + epsilon))
        drawn += np.log((_means(ours, rng) + epsilon) / (_means(theirs, rng) + epsilon))
    low, high = np.exp(np.quantile(drawn / len(parts), [0.025, 0.975]))
    return Ratio(value=float(np.exp(logs / len(parts))), low=float(low), high=float(high))


def _means(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Means of resampled runs, `[resamples]`."""
    return values[rng.integers(0, len(values), (_RESAMPLES, len(values)))].mean(axis=1)
