"""What similar problems say of a metric, brought to the scale of the problem at hand before it is believed.

The same plans rank alike on two networks far better than they agree in value: a wide network loses a quarter of the
accuracy that a narrow one loses to the same pruning. So the values of a source are moved and stretched by what its own
model says of the plans that were measured here; a source that does not fit is flattened.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from model_opt.search.encoding import Encoding
from model_opt.search.plan import Plan
from model_opt.search.surrogate import Surrogate
from model_opt.search.warp import RankWarp

Array = NDArray[np.float64]

OFFSET, STRETCH, MISFIT = 0.5, 0.5, 0.4
"""Standard deviations, in units of a source's own spread: of the offset, of the stretch around 1, and of what is left
between the two problems once both are known."""
LEAST_STRETCH = 0.05
_SMOOTH = 0.02  # noise variance of a source's rows in warped units


class Sources:
    """The models of one metric's sources: each is fitted once, to `codes` `[rows, decisions]` and `mean` `[rows]`, with
    `source` `[rows]` counting from 1; 0 is the problem itself, and is left out."""

    def __init__(
        self,
        sizes: NDArray[np.int64],
        ordered: NDArray[np.bool_],
        codes: NDArray[np.int16],
        mean: Array,
        source: NDArray[np.int16],
    ) -> None:
        self._models = {
            int(number): _Source(sizes, ordered, codes[source == number], mean[source == number])
            for number in np.unique(source[source > 0])
        }

    def calibrated(self, codes: NDArray[np.int16], mean: Array, source: NDArray[np.int16]) -> Array:
        """`mean` with the rows of each source moved and stretched to what was measured here, `[rows]`."""
        own = source == 0
        out = mean.copy()
        for number, model in self._models.items():
            rows = source == number
            out[rows] = model.calibrated(mean[rows], codes[own], mean[own])
        return out


class _Source:
    def __init__(
        self, sizes: NDArray[np.int64], ordered: NDArray[np.bool_], codes: NDArray[np.int16], mean: Array
    ) -> None:
        self._warp = RankWarp(mean)
        self._centre, self._spread = float(mean.mean()), float(mean.std())
        noise = np.full(len(mean), _SMOOTH)
        rows, z = np.ascontiguousarray(codes.T), self._warp.targets
        fitted = Surrogate(sizes, ordered).fit(rows, z, noise, guessed=True, steps=20)
        self._regression = fitted.conditioned(rows, noise).with_targets(z)
        self._told: dict[bytes, float] = {}

    def calibrated(self, mean: Array, codes: NDArray[np.int16], measured: Array) -> Array:
        """`mean` `[rows]` on the scale of `measured` `[plans]`, of the plans `codes` `[plans, decisions]`.

        Bayesian linear regression of what was measured on what the source predicts (Bishop 2006, equation 3.50).
        """
        if not len(measured) or self._spread == 0.0:
            return mean
        x = (self._predict(codes) - self._centre) / self._spread
        y = (measured - self._centre) / self._spread - x  # what the prior, offset 0 and stretch 1, leaves over
        design = np.stack([np.ones(len(x)), x], axis=1)
        precision = design.T @ design / MISFIT**2 + np.diag([OFFSET**-2, STRETCH**-2])
        offset, more = np.linalg.solve(precision, design.T @ y / MISFIT**2)
        stretch = max(1.0 + float(more), LEAST_STRETCH)
        return np.asarray(self._centre + self._spread * float(offset) + stretch * (mean - self._centre))

    def _predict(self, codes: NDArray[np.int16]) -> Array:
        fresh = [row for row in codes if row.tobytes() not in self._told]
        if fresh:
            scores, _ = self._regression.posterior(np.array(fresh, dtype=np.int16))
            self._told |= {row.tobytes(): float(v) for row, v in zip(fresh, self._warp.backward(scores), strict=True)}
        return np.array([self._told[row.tobytes()] for row in codes])


def leave_one_out(encoding: Encoding, plans: Sequence[Plan], mean: Array, variance: Array) -> float:
    """The variance of the surrogate's error at a plan that is left out of `plans`, in the metric's unit squared.

    `mean` and `variance` `[plans]` are what was measured. Of fewer than three plans it is the variance of `mean`.
    """
    spread = float(np.std(mean))
    if len(plans) < 3 or spread == 0.0:
        return spread**2
    rows = np.ascontiguousarray(encoding.encode(plans).T)
    z, noise = (mean - mean.mean()) / spread, variance / spread**2
    fitted = Surrogate(encoding.sizes, encoding.ordered).fit(rows, z, noise, guessed=False, steps=20)
    missed = fitted.conditioned(rows, noise).with_targets(z).left_out()
    return float(np.mean(missed**2)) * spread**2
