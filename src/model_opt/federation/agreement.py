"""Exact metrics: not pooled. Origins tell the same figure, or somebody is wrong."""

import numpy as np

from model_opt.federation.pool import Bools, Floats

TOLERANCE = 1e-4
"""How far exact figures may lie apart: a hundredth of a percent, the headers of other library versions."""


def agreement(
    mean: Floats, low: Floats, high: Floats, discount: Floats
) -> tuple[Floats, Floats, Floats, Floats, Floats, Bools, Bools]:
    """(mean, variance, low, high, weight, out, agreed) of each plan; arguments are `[plans, places]`.

    The figure is the one that most trust stands behind (of equals the smallest). With more than half of all trust it
    is agreed, its variance is 0, and who tells another is out of line. With less nothing is agreed: the interval
    spans all that is told, the variance is a quarter of its square. Who contradicts themself is never followed.
    """
    there = discount > 0
    honest = there & (high - low <= TOLERANCE)
    trust = np.where(honest, discount, 0.0)
    # [plans, places, places]: whether the second tells what the first does.
    same = (np.abs(mean[:, :, None] - mean[:, None, :]) <= TOLERANCE) & honest[:, :, None] & honest[:, None, :]
    behind = (same * trust[:, None, :]).sum(axis=2)
    best = behind.max(axis=1, initial=0.0)[:, None]
    leading = honest & (behind >= best * (1 - 1e-12))
    told = np.where(leading, mean, np.inf).min(axis=1, initial=np.inf)
    told = np.where(np.isfinite(told), told, np.where(there, mean, np.inf).min(axis=1, initial=np.inf))
    told = np.where(np.isfinite(told), told, 0.0)
    with_it = honest & (np.abs(mean - told[:, None]) <= TOLERANCE)
    agreed = np.where(with_it, discount, 0.0).sum(axis=1) > discount.sum(axis=1) / 2
    counted = np.where(agreed[:, None], with_it, there)
    least = np.where(agreed, told, np.where(there, low, np.inf).min(axis=1, initial=np.inf))
    most = np.where(agreed, told, np.where(there, high, -np.inf).max(axis=1, initial=-np.inf))
    some = there.any(axis=1)
    least, most = np.where(some, least, 0.0), np.where(some, most, 0.0)
    shares = np.where(counted, discount, 0.0)
    weight = shares / np.where(some, shares.sum(axis=1), 1.0)[:, None]
    spread = np.minimum(most / 2 - least / 2, 1e150)
    return told, spread**2, least, most, weight, there & ~with_it, agreed
