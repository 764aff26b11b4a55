"""Reading what several origins have measured as one: each counts by its samples, its trust, its age and its hardware.

Nothing here is stored: rows stay as they came, and another reader, or the same one tomorrow, may weigh them otherwise.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_opt.errors import InvalidInput
from model_opt.federation import pool
from model_opt.federation.agreement import agreement
from model_opt.federation.fold import Cell, Folded, fold
from model_opt.federation.moments import Moments
from model_opt.federation.row import Row
from model_opt.federation.similarities import EXACT_METRICS, checked_share, freshness

Floats = NDArray[np.float64]

LEAST_FLOOR = 1e-18
"""The smallest variance that a floor may have."""
LEAST_SAMPLES = 1e-6
"""Whoever counts for fewer effective samples is left out."""
LARGEST = 1e60
"""No metric is larger: such claims are left out and reported."""


class Subject(NamedTuple):
    """What is merged over its origins: a plan of a signature, in one federation."""

    federation: str
    signature: str
    plan: str


@dataclass(frozen=True, kw_only=True)
class Merged:
    """One metric of every plan, over its origins; arrays are `[plans]`, in the order of `subjects`, which is sorted.

    `variance` is that of the merged mean; `low` and `high` hold the truth in about 95 % of cases where nobody lies.
    `n` counts the samples and `origins` the origins that were counted; `sources` are their shares of the mean.
    `outliers` names who was out of line, and so was used little or not at all. `agreed` is false where exact figures
    contradict each other and no majority (by trust) says which is right.
    """

    subjects: tuple[Subject, ...]
    mean: Floats
    variance: Floats
    low: Floats
    high: Floats
    n: NDArray[np.int64]
    origins: NDArray[np.int64]
    sources: tuple[Mapping[str, float], ...]
    outliers: tuple[tuple[str, ...], ...]
    agreed: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.subjects)

    def confidence(self, omega2: Floats | float) -> Floats:
        """ω²/(ω² + V), within 0 and 1; ω² > 0 is the surrogate's leave-one-out error variance."""
        if not (np.asarray(omega2) > 0).all():
            raise InvalidInput("the surrogate's error variance has a floor above 0")
        return np.asarray(omega2 / (omega2 + self.variance))

    def prior(self, predicted: Floats, omega2: Floats | float) -> Floats:
        """What to expect of each plan: confidence·merged + (1 − confidence)·the surrogate's prediction."""
        confidence = self.confidence(omega2)
        return np.asarray(confidence * self.mean + (1 - confidence) * predicted)


def merge_origins(
    rows: Iterable[Row],
    *,
    metric: str,
    floor: float | Mapping[str, float],
    trust: Mapping[str, float] | None = None,
    similarity: Mapping[str, float] | None = None,
    heard_at: Mapping[tuple[str, str], float] | None = None,
    now: float = 0.0,
    half_life_s: float = 180 * 86400.0,
) -> Merged:
    """`metric` of `rows`, merged over origins.

    Of an origin that measured a plan in several contexts only the most similar one is read.

    Parameters
    ----------
    rows
        In any order; of rows with one key the latest counts.
    metric
        Its name.
    floor
        The noise's variance of one sample, at least `LEAST_FLOOR`, or one for each context; exact metrics ignore it.
    trust
        By origin, within 0 and 1; whoever is not named was admitted and counts fully.
    similarity
        By context: those that are not named count for nothing; None means that all rows are of the context asked for.
    heard_at
        When each (origin, epoch) was last heard of, in seconds of the reader's clock; those not named are new.
    now
        In seconds of the same clock.
    half_life_s
        After so many seconds of silence what an epoch says counts half.

    Returns
    -------
    Merged
        Arrays `[plans]`.

    Raises
    ------
    InvalidInput
        For floors, trust or similarities that mean nothing.
    """
    ages = _Ages(heard_at or {}, now, half_life_s)
    entries = _entries(fold(rows, metric), trust or {}, similarity, ages)
    table = _Table(entries, floor)
    if metric in EXACT_METRICS:
        return _merged(table, *agreement(table.mean, table.low, table.high, table.discount))
    absurd = (table.discount > 0) & ((np.abs(table.mean) > LARGEST) | (table.m2 > LARGEST**2))
    discount = np.where(absurd, 0.0, table.discount)
    effective = pool.effective_samples(table.n, discount)
    discount = np.where(effective >= LEAST_SAMPLES, discount, 0.0)
    mean, m2 = np.where(absurd, 0.0, table.mean), np.where(absurd, 0.0, table.m2)
    variance = pool.variance_of_means(table.n, m2, effective, table.floor, discount)
    pooled = pool.pool(mean, variance, discount, table.n)
    out = absurd | ((discount > 0) & (pooled.regard < pool.OUTLIER))
    mean, half = pooled.mean, pooled.half
    agreed = np.ones(len(mean), dtype=np.bool_)
    return _merged(table, mean, pooled.variance, mean - half, mean + half, pooled.weight, out, agreed)


@dataclass(frozen=True, kw_only=True)
class _Entry:
    subject: Subject
    context: str
    origin: str
    moments: Moments
    discount: float


class _Ages:
    def __init__(self, heard_at: Mapping[tuple[str, str], float], now: float, half_life_s: float) -> None:
        freshness(0.0, half_life_s)
        self._heard_at, self._now, self._half_life_s = heard_at, now, half_life_s

    def of(self, origin: str, epochs: Sequence[tuple[str, int]]) -> float:
        """The freshness of an origin's samples, on average."""
        fresh = (n * self._one(origin, epoch) for epoch, n in epochs)
        return math.fsum(fresh) / sum(n for _, n in epochs)

    def _one(self, origin: str, epoch: str) -> float:
        heard = self._heard_at.get((origin, epoch))
        return 1.0 if heard is None else freshness(self._now - heard, self._half_life_s)


def _entries(
    folded: Folded, trust: Mapping[str, float], similarity: Mapping[str, float] | None, ages: _Ages
) -> list[list[_Entry]]:
    """One entry for each subject and origin that count, in the order of their keys, by subject."""
    chosen: dict[Subject, dict[str, tuple[float, int, _Entry]]] = {}
    for cell, moments, epochs in zip(folded.cells, folded.moments.to_list(), folded.epochs, strict=True):
        alike = 1.0 if similarity is None else checked_share("similarity", similarity.get(cell.context, 0.0))
        share = alike * checked_share("trust", trust.get(cell.origin, 1.0)) * ages.of(cell.origin, epochs)
        if share * moments.n < LEAST_SAMPLES:
            continue
        entry = _entry(cell, moments, share)
        of_subject = chosen.setdefault(entry.subject, {})
        known = of_subject.get(cell.origin)
        if known is None or (alike, moments.n) > known[:2]:
            of_subject[cell.origin] = (alike, moments.n, entry)
    return [[by_origin[name][2] for name in sorted(by_origin)] for _, by_origin in sorted(chosen.items())]


def _entry(cell: Cell, moments: Moments, discount: float) -> _Entry:
    subject = Subject(cell.federation, cell.signature, cell.plan)
    return _Entry(subject=subject, context=cell.context, origin=cell.origin, moments=moments, discount=discount)


class _Table:
    """Entries as arrays, `[plans, places]`; `discount` is 0 where no origin is."""

    def __init__(self, entries: list[list[_Entry]], floor: float | Mapping[str, float]) -> None:
        self.entries = entries
        shape = (len(entries), max(map(len, entries), default=1))
        self.n, self.mean, self.m2, self.low, self.high, self.discount, self.floor = np.zeros((7, *shape))
        self.floor += LEAST_FLOOR
        self.n += 1
        for plan, of_plan in enumerate(entries):
            for place, entry in enumerate(of_plan):
                moments = entry.moments
                self.n[plan, place], self.mean[plan, place], self.m2[plan, place] = moments.n, moments.mean, moments.m2
                self.low[plan, place], self.high[plan, place] = moments.min, moments.max
                self.discount[plan, place] = entry.discount
                self.floor[plan, place] = _floor(floor, entry.context)

    def names(self, marked: NDArray[np.bool_]) -> tuple[tuple[str, ...], ...]:
        """The origins at the places that are marked, by plan."""
        rows = zip(self.entries, marked.tolist(), strict=True)
        return tuple(
            tuple(e.origin for e, mark in zip(of_plan, marks, strict=False) if mark) for of_plan, marks in rows
        )


def _floor(floor: float | Mapping[str, float], context: str) -> float:
    value = floor if isinstance(floor, float | int) else floor.get(context)
    if value is None:
        raise InvalidInput(f"no noise floor for context {context}")
    if not LEAST_FLOOR <= value < LARGEST:
        raise InvalidInput(f"a noise floor is a variance of at least {LEAST_FLOOR}, not {value}")
    return float(value)


def _merged(
    table: _Table,
    mean: Floats,
    variance: Floats,
    low: Floats,
    high: Floats,
    weight: Floats,
    out: NDArray[np.bool_],
    agreed: NDArray[np.bool_],
) -> Merged:
    counted = weight > 0
    known = counted.any(axis=1)
    keep = np.flatnonzero(known).tolist()
    names, outliers = table.names(counted), table.names(out)
    shares = [row[mark].tolist() for row, mark in zip(weight, counted, strict=True)]
    samples = np.where(counted, table.n, 0).sum(axis=1)
    return Merged(
        subjects=tuple(table.entries[i][0].subject for i in keep),
        mean=mean[known],
        variance=variance[known],
        low=low[known],
        high=high[known],
        n=samples[known].astype(np.int64),
        origins=counted.sum(axis=1)[known],
        sources=tuple(dict(zip(names[i], shares[i], strict=True)) for i in keep),
        outliers=tuple(outliers[i] for i in keep),
        agreed=agreed[known],
    )
