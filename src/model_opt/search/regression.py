"""A Gaussian process whose hyperparameters are known: on rows, with a factor that grows by them, and on their targets.

Three values, each made from the one before: `Fitted` → `Conditioned` → `Regression`.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import blas, lapack

from model_opt.search.gram import cross, gram, one_hot

Array = NDArray[np.float64]
Singles = NDArray[np.float32]
Integers = NDArray[np.integer]

JITTER = 1e-6


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """Hyperparameters: `parameters`, logarithms in the order of `Surrogate`, and what follows of them.

    `h` and `o` `[decisions]` (o is 0 where options are not ordered), `tables` `[decisions, widest, widest]` and
    `weights` `[2]` as in `gram`, `kinship` `[1 + sources, 1 + sources]`: how far two sources are alike, `nugget`, and
    `noise_factor`, which noise variances are multiplied by.
    """

    parameters: Array
    h: Array
    o: Array
    tables: Array
    weights: Array
    kinship: Array
    nugget: float
    noise_factor: float

    @property
    def importance(self) -> Array:
        """How much each decision moves the metric: h_d + o_d / 2, `[decisions]`."""
        return self.h + 0.5 * self.o

    @property
    def alike(self) -> Array:
        """exp(-u_s): what is left of a covariance between a source and the problem, `[sources]`."""
        return self.kinship[0, 1:]

    @cached_property
    def variance(self) -> float:
        """That of an unseen plan before any data."""
        return float(self.weights.sum()) + self.nugget

    def trusting_noise(self) -> Self:
        """The same with noise variances as they are said to be: what they were corrected by was for a guess."""
        return replace(self, parameters=np.append(self.parameters[:-1], 0.0), noise_factor=1.0)

    def conditioned(self, rows: Integers, noise: Array, source: Integers | None = None) -> "Conditioned":
        """On `rows`, `[decisions, rows]`, with noise variances and sources `[rows]`: O(rows^3)."""
        n, widest = rows.shape[1], self.tables.shape[1]
        covariance, _ = gram(rows, self.tables, self.weights)
        if source is not None and source.any():
            covariance *= self.kinship[np.ix_(source, source)]
        covariance.flat[:: n + 1] += self.nugget + self.noise_factor * noise + JITTER
        buffer = _Buffer(n, len(rows) * widest)
        buffer.hot[:, :n], buffer.noise[:n] = one_hot(rows, widest), self.noise_factor * noise
        buffer.source[:n] = 0 if source is None else source
        buffer.lower[:n, :n] = lower_inverse(covariance)[0]
        buffer.lower32[:n, :n] = buffer.lower[:n, :n]
        return Conditioned(fitted=self, buffer=buffer, size=n)


class _Buffer:
    """Rows and their factor, with room for more; whoever shares it reads the first rows only, and those stay as they
    are. `hot` `[decisions * widest, room]`, `source` `[room]`, `noise` `[room]`, the inverse of the Cholesky factor
    `lower` `[room, room]` and the same in single precision; `used` rows are taken. For one thread at a time."""

    def __init__(self, size: int, height: int) -> None:
        room = max(64, int(size * 1.5))
        self.hot: Singles = np.zeros((height, room), dtype=np.float32)
        self.source: NDArray[np.int16] = np.zeros(room, dtype=np.int16)
        self.noise: Array = np.zeros(room)
        self.lower: Array = np.zeros((room, room))
        self.lower32: Singles = np.zeros((room, room), dtype=np.float32)
        self.used = size

    def take(self, n: int) -> "_Buffer":
        """Where row `n` can be written: here if it is the next one and there is room, else in a copy of those before
        it."""
        if n == self.used < len(self.noise):
            self.used += 1
            return self
        copy = _Buffer(n + 1, len(self.hot))
        copy.hot[:, :n], copy.source[:n], copy.noise[:n] = self.hot[:, :n], self.source[:n], self.noise[:n]
        copy.lower[:n, :n], copy.lower32[:n, :n] = self.lower[:n, :n], self.lower32[:n, :n]
        return copy


@dataclass(frozen=True, kw_only=True)
class Conditioned:
    """The process on rows, whatever their targets: the first `size` of `buffer`."""

    fitted: Fitted
    buffer: _Buffer
    size: int

    @property
    def noise(self) -> Array:
        """Noise variances as they are believed, `[rows]`."""
        return self.buffer.noise[: self.size]

    @property
    def _lower(self) -> Array:
        """Inverse of the Cholesky factor, `[rows, rows]`."""
        return self.buffer.lower[: self.size, : self.size]

    @cached_property
    def precision(self) -> Array:
        """The diagonal of K^-1, `[rows]`."""
        return np.asarray(np.einsum("ij,ij->j", self._lower, self._lower))

    def covariance(self, codes: Integers) -> Singles:
        """Of plans, `[candidates, decisions]`, with all rows, `[candidates, rows]`."""
        fitted = self.fitted
        found = cross(codes, fitted.tables, fitted.weights, self.buffer.hot[:, : self.size])
        if len(fitted.kinship) > 1:
            found *= fitted.kinship[0].astype(np.float32)[self.buffer.source[: self.size]]
        return found

    def deviation(self, covariance: Singles) -> Array:
        """Standard deviation of the noise-free metric of plans that are not among the rows, `[candidates]`, by their
        `covariance` with them `[candidates, rows]`."""
        projected = blas.strmm(1.0, self.buffer.lower32.T, covariance.T, trans_a=1)  # L^-1 k, [rows, candidates]
        variance = self.fitted.variance - np.einsum("ij,ij->j", projected, projected).astype(np.float64)
        return np.asarray(np.sqrt(np.maximum(variance, 1e-6)))

    def appended(self, row: Integers, noise: float) -> Self:
        """On one more row of the problem itself, `[decisions]`: O(rows^2)."""
        n, noise = self.size, self.fitted.noise_factor * noise
        buffer = self.buffer.take(n)
        lower = self._lower @ self.covariance(row[None])[0].astype(np.float64)
        pivot = self.fitted.variance + noise + JITTER - float(lower @ lower)
        scale = 1 / math.sqrt(max(pivot, JITTER))
        buffer.lower[n, :n], buffer.lower[n, n] = -scale * (lower @ self._lower), scale
        buffer.lower32[n, : n + 1] = buffer.lower[n, : n + 1]
        buffer.hot[:, n] = one_hot(row[:, None], self.fitted.tables.shape[1])[:, 0]
        buffer.noise[n] = noise
        return replace(self, buffer=buffer, size=n + 1)

    def with_targets(self, targets: Array) -> "Regression":
        """With the targets of all rows, `[rows]`."""
        return Regression(conditioned=self, targets=targets, alpha=self._lower.T @ (self._lower @ targets))


@dataclass(frozen=True, kw_only=True)
class Regression:
    """What is believed once rows have `targets` `[rows]`; `alpha` `[rows]` is K^-1 times those (Rasmussen and Williams
    2006, algorithm 2.1)."""

    conditioned: Conditioned
    targets: Array
    alpha: Array

    def posterior(self, codes: Integers) -> tuple[Array, Array]:
        """Mean and standard deviation of the noise-free metric of plans that are not among the rows, `[candidates]`;
        `codes` are `[candidates, decisions]`."""
        covariance = self.conditioned.covariance(codes)
        std = self.conditioned.deviation(covariance)
        mean = covariance @ self.alpha.astype(np.float32)
        return mean.astype(np.float64), std

    def at_rows(self) -> tuple[Array, Array]:
        """Mean and standard deviation of the noise-free metric of the rows themselves, `[rows]`.

        f = z - N K^-1 z, var = N - N K^-1 N with N the noise: the nugget belongs to the plan, and is not averaged away.
        """
        noise = self.conditioned.noise
        left = noise - noise**2 * self.conditioned.precision
        return self.targets - noise * self.alpha, np.sqrt(np.maximum(left, 0.0))

    def left_out(self) -> Array:
        """By how much each row's target is missed by what the others say, `[rows]` (Rasmussen and Williams 2006,
        equation 5.12)."""
        return np.asarray(self.alpha / self.conditioned.precision)


def lower_inverse(covariance: Array) -> tuple[Array, float]:
    """The inverse of the Cholesky factor, and the log determinant; the diagonal grows until it is positive definite."""
    for extra in (0.0, 1e-5, 1e-3, 1e-1):
        lower, failed = lapack.dpotrf(covariance + extra * np.eye(len(covariance)) if extra else covariance, lower=1)
        if not failed:
            break
    inverse, _ = lapack.dtrtri(lower, lower=1)
    return np.tril(inverse), 2 * float(np.log(np.diag(lower)).sum())
