"""Pooling one quantity over origins that differ, some of which may be wrong: arrays in, arrays out.

All arrays are `[plans, places]`: a plan's origins come first, in any order, and `there` says which places are taken.
Between-origin variance: Paule and Mandel, "Consensus values and weighting factors", 1982, by the Newton steps of
DerSimonian and Kacker, 2007. Standard error: Hartung and Knapp, 2001, never less than the ordinary one. Outliers:
Tukey's biweight around the median, in units of the median deviation corrected for few origins (Croux and Rousseeuw,
1992). What it takes from the voices widens the interval: by (origins/voices)³ where they disagree.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

MANY = 4
"""From so many origins on it can be told who is out of line."""
BIWEIGHT = 6.0
"""An origin this many deviations from the median counts for nothing, at half of it for 0.56."""
OUTLIER = 0.25
"""Who counts for less than this is reported: 4.2 deviations or more."""
PRIOR_SAMPLES = 4
"""With how many samples' weight an origin's variance is drawn to what all say of it."""
COVERED = 0.975

_SMALL_SAMPLE = np.array([1.0, 1.0, 1.196, 1.495, 1.363, 1.206, 1.200, 1.140, 1.129, 1.107])
_STEPS = 100


@dataclass(frozen=True, kw_only=True)
class Pooled:
    """`[plans]` each, but `weight`, `[plans, places]`: shares that sum to one; and `regard`, how far each was used.

    `half` is half the width of the 95 % interval. A plan without origins has mean 0 and variance infinite.
    """

    mean: Floats
    variance: Floats
    half: Floats
    weight: Floats
    regard: Floats


def weighted_median(values: Floats, weights: Floats) -> Floats:
    """The weighted median of each row; weightless places do not count, rows without weight give 0."""
    counted = np.where(weights > 0, values, np.inf)
    order = np.argsort(counted, axis=1, kind="stable")
    ranked = np.take_along_axis(counted, order, axis=1)
    below = np.cumsum(np.take_along_axis(weights, order, axis=1), axis=1)
    half = below[:, -1:] / 2
    lower = np.argmax(below >= half * (1 - 1e-9), axis=1)[:, None]
    upper = np.argmax(below > half * (1 + 1e-9), axis=1)[:, None]
    middle = np.take_along_axis(ranked, lower, axis=1) / 2 + np.take_along_axis(ranked, upper, axis=1) / 2
    return np.where(half[:, 0] > 0, np.where(np.isfinite(middle[:, 0]), middle[:, 0], 0.0), 0.0)


def effective_samples(n: Floats, discount: Floats) -> Floats:
    """min(n, 3·median n)·discount: nobody counts by the mere number of samples that they claim."""
    most = 3 * weighted_median(n, discount)[:, None]
    return np.minimum(n, most) * discount


def variance_of_means(n: Floats, m2: Floats, effective: Floats, floor: Floats, discount: Floats) -> Floats:
    """The variance of every origin's mean, drawn towards what is usual, so that none can claim certainty."""
    repeated = discount * (n > 1)
    usual = weighted_median(m2 / np.maximum(n - 1, 1), repeated)[:, None]
    usual = np.maximum(usual, floor)
    own = np.maximum((m2 + PRIOR_SAMPLES * usual) / (n + PRIOR_SAMPLES - 1), usual / 4)
    return np.asarray(own / np.where(effective > 0, effective, 1.0))


def regard(mean: Floats, variance: Floats, discount: Floats) -> Floats:
    """How far each origin is regarded, within 0 and 1: fully where fewer than `MANY` could say who is out of line."""
    there = discount > 0
    count = there.sum(axis=1)
    centre = weighted_median(mean, discount)[:, None]
    away = np.abs(mean - centre) * there
    few = _SMALL_SAMPLE[np.minimum(count, 9)]
    few = np.where(count > 9, count / np.maximum(count - 0.8, 1), few)
    spread = np.maximum(1.4826 * few * weighted_median(away, discount), np.sqrt(weighted_median(variance, discount)))
    far = away / np.where(spread > 0, spread, 1.0)[:, None]
    regarded = np.clip(1 - (far / BIWEIGHT) ** 2, 0, 1) ** 2
    return np.where(there, np.where(count[:, None] >= MANY, regarded, 1.0), 0.0)


def pool(mean: Floats, variance: Floats, discount: Floats, samples: Floats) -> Pooled:
    """The random-effects mean of each plan. `variance` is of the means, `discount` > 0 where an origin is there.

    `samples` are each origin's n: they make the interval of a plan that only one origin knows.
    """
    there = discount > 0
    regarded = regard(mean, variance, discount)
    # Weights are taken in units of the smallest variance, and values around the first: no overflow, no cancellation.
    unit = np.min(np.where(there, variance, np.inf), axis=1, initial=np.inf)
    unit = np.where(np.isfinite(unit), unit, 1.0)[:, None]
    offset = weighted_median(mean, discount)[:, None]
    moved = np.where(there, mean - offset, 0.0) / np.sqrt(unit)
    scaled = np.where(there, variance, unit) / unit
    weight = regarded / (scaled + _between(moved, scaled, regarded)[:, None])
    total, centre = _centre(moved, weight)
    count, voices = there.sum(axis=1), regarded.sum(axis=1)
    freedom = np.maximum(voices - 1, 1.0)
    misfit = (weight * (moved - centre[:, None]) ** 2).sum(axis=1) / freedom
    factor = np.maximum(misfit * (count / np.maximum(voices, 1.0)) ** 3, 1.0)
    known = total > 0
    error = np.where(known, np.where(count > 1, factor, 1.0) / np.where(known, total, 1.0), np.inf)
    alone = np.where(there, samples, 0.0).sum(axis=1) + PRIOR_SAMPLES - 1
    quantile = stdtrit(np.where(count > 1, np.maximum(count - 1.0, 1.0), alone), COVERED)
    squared = error * unit[:, 0]
    return Pooled(
        mean=np.where(known, offset[:, 0] + centre * np.sqrt(unit[:, 0]), 0.0),
        variance=squared,
        half=quantile * np.sqrt(squared),
        weight=weight / np.where(known, total, 1.0)[:, None],
        regard=regarded,
    )


def _centre(mean: Floats, weight: Floats) -> tuple[Floats, Floats]:
    total = weight.sum(axis=1)
    return total, (weight * mean).sum(axis=1) / np.where(total > 0, total, 1.0)


def _between(mean: Floats, variance: Floats, regarded: Floats) -> Floats:
    """τ² of each plan: where the misfit equals its expectation. The misfit is convex in τ², so Newton climbs from 0."""
    wanted = regarded.sum(axis=1) - 1
    # Were all variances as the largest, the root would be here; it is no less, and close where the misfit is large.
    total, centre = _centre(mean, regarded)
    spread = (regarded * (mean - centre[:, None]) ** 2).sum(axis=1) / np.where(wanted > 0, wanted, 1.0)
    found = np.where(
        (wanted > 0) & (total > 0), spread - np.where(regarded > 0, variance, 0.0).max(axis=1, initial=0.0), 0
    )
    found = np.maximum(found, 0.0)
    for _ in range(_STEPS):
        inverse = 1 / (variance + found[:, None])
        weight = regarded * inverse
        _, centre = _centre(mean, weight)
        squares = weight * (mean - centre[:, None]) ** 2
        excess, slope = squares.sum(axis=1) - wanted, (squares * inverse).sum(axis=1)
        rising = (excess > 1e-9 * np.maximum(wanted, 1.0)) & (wanted > 0) & (slope > 0)
        if not rising.any():
            break
        found += np.where(rising, excess / np.where(rising, slope, 1.0), 0.0)
    return found
