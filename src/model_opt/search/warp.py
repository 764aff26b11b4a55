"""Targets by rank: the monotone map from a metric's raw values to normal scores, and back."""

from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

Array = NDArray[np.float64]


class RankWarp:
    """Normal scores of the ranks of `values`, ties at the mean rank; linear between neighbours and beyond the ends.

    The rank-based inverse normal transform (Blom 1958: (r - 3/8) / (n + 1/4)). A constant metric maps to 0, with unit
    slope per unit of its magnitude.
    """

    def __init__(self, values: Array) -> None:
        knots, place, counts = np.unique(values, return_inverse=True, return_counts=True)
        ranks = np.cumsum(counts) - (counts - 1) / 2  # mean rank of each knot, from 1
        scores = ndtri((ranks - 0.375) / (len(values) + 0.25))
        if len(knots) == 1:
            step = abs(float(knots[0])) or 1.0
            knots = knots[0] + step * np.array([-1.0, 0.0, 1.0])
            scores, place = np.array([-1.0, 0.0, 1.0]), place + 1
        self._knots = knots
        self._scores = scores
        self.targets: Array = scores[place]

    @cached_property
    def _ends(self) -> tuple[float, float]:
        """Slopes beyond the first and the last knot: those of the outer fifth, as single gaps may be tiny."""
        reach = max(1, len(self._knots) // 5)
        low = (self._scores[reach] - self._scores[0]) / (self._knots[reach] - self._knots[0])
        high = (self._scores[-1] - self._scores[-1 - reach]) / (self._knots[-1] - self._knots[-1 - reach])
        return float(low), float(high)

    def forward(self, values: Array) -> Array:
        """Raw values to scores."""
        low, high = self._ends
        inside = np.interp(values, self._knots, self._scores)
        below, above = np.minimum(values - self._knots[0], 0.0), np.maximum(values - self._knots[-1], 0.0)
        return np.asarray(inside + low * below + high * above)

    def backward(self, scores: Array) -> Array:
        """Scores to raw values."""
        low, high = self._ends
        inside = np.interp(scores, self._scores, self._knots)
        below, above = np.minimum(scores - self._scores[0], 0.0), np.maximum(scores - self._scores[-1], 0.0)
        return np.asarray(inside + below / low + above / high)

    def limit(self, bound: float, at_most: bool) -> float:
        """The score of a limit. Limits are inclusive, so one that equals a knot lies half-way to the next beyond."""
        at = int(np.searchsorted(self._knots, bound))
        if at < len(self._knots) and self._knots[at] == bound:
            beyond = at + 1 if at_most else at - 1
            if 0 <= beyond < len(self._knots):
                return float(self._scores[at] + self._scores[beyond]) / 2
            return float(self._scores[at]) + (0.5 if at_most else -0.5)
        return float(self.forward(np.array([bound]))[0])

    def noise(self, values: Array, variance: Array) -> Array:
        """Variances carried through the map, by its slope over one standard deviation to either side."""
        spread = np.sqrt(variance)
        safe = np.where(spread > 0, spread, 1.0)
        slope = (self.forward(values + safe) - self.forward(values - safe)) / (2 * safe)
        return np.asarray(np.where(spread > 0, variance * slope**2, 0.0))

    def raw(self, mean: Array, std: Array) -> tuple[Array, Array]:
        """Posterior mean and standard deviation in scores, as raw values: the median, and half the central interval."""
        high, low = self.backward(mean + std), self.backward(mean - std)
        return self.backward(mean), np.abs(high - low) / 2
