"""How much a measurement of a plan is worth: log expected improvement plus the log probability of being feasible."""

import numpy as np
from numpy.typing import NDArray
from scipy.special import erfcx, log_ndtr

Array = NDArray[np.float64]

_LEAST = -1e300


def log_expected_improvement(mean: Array, std: Array, incumbent: float) -> Array:
    """Log of E[max(0, incumbent - f)], f ~ N(mean, std^2), to minimise; finite arbitrarily far from improvement.

    Ament, Daulton, Eriksson, Balandat and Bakshy 2023 ("Unexpected Improvements to Expected Improvement"), equation 9:
    log h(z) with h(z) = phi(z) + z Phi(z), by erfcx where z is below -1 and by -2 log|z| in the far tail.
    """
    std = np.maximum(std, 1e-12)
    return np.asarray(np.log(std) + _log_h((incumbent - mean) / std))


def _log_h(z: Array) -> Array:
    near = np.maximum(z, -1.0)
    density = np.exp(-(near**2) / 2) / np.sqrt(2 * np.pi)
    direct = np.log(density + near * np.exp(log_ndtr(near)))
    tail = np.minimum(z, -1.0)
    scaled = np.sqrt(np.pi / 2) * erfcx(-np.maximum(tail, -1e5) / np.sqrt(2)) * np.abs(np.maximum(tail, -1e5))
    middle = np.log1p(-np.minimum(scaled, 1.0 - 1e-15))
    far = -2 * np.log(np.abs(tail))
    below = -(tail**2) / 2 - np.log(2 * np.pi) / 2 + np.where(tail > -1e3, middle, far)
    return np.asarray(np.where(z > -1.0, direct, below))


def log_feasible(mean: Array, std: Array, bound: float, at_most: bool) -> Array:
    """Log of P(f <= bound), or >= where not `at_most`; finite, for a plan is worth measuring however unlikely."""
    z = (bound - mean) / np.maximum(std, 1e-12)
    return np.asarray(np.maximum(log_ndtr(z if at_most else -z), _LEAST))
