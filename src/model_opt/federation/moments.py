"""Moments of samples that merge exactly (Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for
computing sample variances", 1979)."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from model_opt.errors import InvalidInput

MOST_SAMPLES = 2**53
"""The largest n: beyond it a float64 no longer counts exactly."""


@dataclass(frozen=True, kw_only=True)
class Moments:
    """What is kept of the samples of one metric: their number, mean, sum of squared deviations, and extremes.

    1 ≤ n ≤ 2⁵³, m2 ≥ 0, min ≤ mean ≤ max, all finite.
    """

    n: int
    mean: float
    m2: float
    min: float
    max: float

    def __post_init__(self) -> None:
        finite = all(map(math.isfinite, (self.mean, self.m2, self.min, self.max)))
        if not (finite and 1 <= self.n <= MOST_SAMPLES and self.m2 >= 0 and self.min <= self.mean <= self.max):
            raise InvalidInput(f"moments that no samples have: {self._text()}")

    def _text(self) -> str:
        return f"n={self.n}, mean={self.mean}, m2={self.m2}, min={self.min}, max={self.max}"

    @classmethod
    def of(cls, samples: Iterable[float]) -> Self:
        """The moments of at least one finite sample; raises `InvalidInput` for none."""
        values = np.asarray(tuple(samples), dtype=np.float64)
        if not len(values):
            raise InvalidInput("moments need at least one sample")
        low, high = float(values.min()), float(values.max())
        mean = min(max(float(values.mean()), low), high)
        return cls(n=len(values), mean=mean, m2=float(((values - mean) ** 2).sum()), min=low, max=high)

    @property
    def variance(self) -> float:
        """The unbiased variance of one sample; zero where n = 1, which says nothing about the noise."""
        return self.m2 / (self.n - 1) if self.n > 1 else 0.0


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of the samples of `a` and `b` together."""
    n = a.n + b.n
    delta = b.mean - a.mean
    low, high = min(a.min, b.min), max(a.max, b.max)
    # The weighted sum rather than mean + delta·n_b/n: it gives the same bits for (a, b) and (b, a).
    mean = a.mean * (a.n / n) + b.mean * (b.n / n)
    m2 = a.m2 + b.m2 + delta * delta * (a.n * b.n / n)
    return Moments(n=n, mean=min(max(mean, low), high), m2=m2, min=low, max=high)


@dataclass(frozen=True, kw_only=True)
class MomentColumns:
    """The moments of many rows, each field `[rows]`: n int64, the others float64."""

    n: NDArray[np.int64]
    mean: NDArray[np.float64]
    m2: NDArray[np.float64]
    min: NDArray[np.float64]
    max: NDArray[np.float64]

    @classmethod
    def of(cls, moments: Iterable[Moments]) -> Self:
        """The columns of `moments`, in their order."""
        table = np.array([(m.n, m.mean, m.m2, m.min, m.max) for m in moments], dtype=np.float64).reshape(-1, 5)
        return cls(n=table[:, 0].astype(np.int64), mean=table[:, 1], m2=table[:, 2], min=table[:, 3], max=table[:, 4])

    def __len__(self) -> int:
        return len(self.n)

    def row(self, index: int) -> Moments:
        """The moments of one row."""
        return Moments(
            n=int(self.n[index]),
            mean=float(self.mean[index]),
            m2=float(self.m2[index]),
            min=float(self.min[index]),
            max=float(self.max[index]),
        )

    def to_list(self) -> list[Moments]:
        """The moments of every row."""
        columns = (self.n.tolist(), self.mean.tolist(), self.m2.tolist(), self.min.tolist(), self.max.tolist())
        return [Moments(n=n, mean=mean, m2=m2, min=a, max=b) for n, mean, m2, a, b in zip(*columns, strict=True)]

    @property
    def variance(self) -> NDArray[np.float64]:
        """The unbiased variances, `[rows]`; zero where n = 1."""
        return np.asarray(np.where(self.n > 1, self.m2 / np.maximum(self.n - 1, 1), 0.0))

    def faults(self) -> str | None:
        """Which rule some row breaks, or None: finite, 1 ≤ n ≤ 2⁵³, m2 ≥ 0, min ≤ mean ≤ max."""
        if not all(np.isfinite(column).all() for column in (self.mean, self.m2, self.min, self.max)):
            return "a value is not finite"
        if self.n.min(initial=1) < 1 or self.n.max(initial=1) > MOST_SAMPLES:
            return "n is not within 1 and 2**53"
        if self.m2.min(initial=0.0) < 0:
            return "m2 is negative"
        if not ((self.min <= self.mean) & (self.mean <= self.max)).all():
            return "the mean is not between min and max"
        return None


def merge_columns(a: MomentColumns, b: MomentColumns) -> MomentColumns:
    """`merge` row by row: `a` and `b` have the same length."""
    n = a.n + b.n
    share_a, share_b = a.n.astype(np.float64), b.n.astype(np.float64)
    delta = b.mean - a.mean
    low, high = np.minimum(a.min, b.min), np.maximum(a.max, b.max)
    mean = np.clip(a.mean * (share_a / n) + b.mean * (share_b / n), low, high)
    return MomentColumns(n=n, mean=mean, m2=a.m2 + b.m2 + delta * delta * (share_a * share_b / n), min=low, max=high)
