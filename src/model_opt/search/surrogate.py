"""A Gaussian process over plans, with hyperparameters at their maximum a posteriori and a factor that grows by rows."""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import blas, lapack

from model_opt.search.gram import cross, gram, gram_gradient, one_hot, option_tables

Array = NDArray[np.float64]
Integers = NDArray[np.integer]

_JITTER = 1e-6
_LOG_WEIGHT, _LOG_NUGGET = math.log(0.4), math.log(0.01)
_STD_NUGGET, _STD_NOISE = 1.5, 0.5
_TAIL = 2.0  # degrees of freedom of the prior on how unlike a source is


class Surrogate:
    """One metric's process on warped targets with zero mean.

    Parameters are logarithms, in one vector: h `[decisions]`, o `[decisions]` (0 where options are not ordered), w
    `[2]`, u `[sources]`, nugget, and the factor on the known noise. Priors: log h, log o ~ N(log(2/D), 1), log w ~
    N(log 0.4, 1), log nugget ~ N(log 0.01, 1.5), log noise factor ~ N(0, 0.5), the last wider where the noise is a
    guess; log u - log unlike ~ Student's t of two degrees of freedom: now and then a source misleads altogether.

    Rows may come from similar problems, the sources 1, 2, …; 0 is the problem itself. Between source s and it the
    covariance of two plans is exp(-u_s) times the usual, between two sources exp(-u_s - u_t): intrinsic
    coregionalisation (Bonilla, Chai and Williams 2008) around the problem. `unlike` `[sources]` is what u is expected
    to be. A source that misleads gets a large u, and is then as good as not there.
    """

    def __init__(self, sizes: NDArray[np.int64], ordered: NDArray[np.bool_], unlike: Array | None = None) -> None:
        self._sizes, self._ordered = sizes, ordered
        self._dims, self._widest = len(sizes), int(sizes.max())
        centre = math.log(2 / self._dims)
        far = np.zeros(0) if unlike is None else np.log(unlike)
        self._centre = np.concatenate(
            [np.full(2 * self._dims, centre), np.full(2, _LOG_WEIGHT), far, [_LOG_NUGGET, 0.0]]
        )
        self.parameters: Array = self._centre.copy()
        self.size = 0
        self._capacity = 0
        self._hot: NDArray[np.float32] = np.zeros((self._dims * self._widest, 0), dtype=np.float32)
        self._source: NDArray[np.int16] = np.zeros(0, dtype=np.int16)
        self._noise: Array = np.zeros(0)
        self._lower: Array = np.zeros((0, 0))
        self._lower32: NDArray[np.float32] = np.zeros((0, 0), dtype=np.float32)
        self._inverse_diagonal: Array | None = None

    # hyperparameters ------------------------------------------------------------------------------------------------

    def _unpack(self, parameters: Array) -> tuple[Array, Array, float, float]:
        """Tables `[decisions, widest, widest]`, weights `[2]`, nugget, noise factor."""
        d = self._dims
        h, o = np.exp(parameters[:d]), np.exp(parameters[d : 2 * d]) * self._ordered
        tables = option_tables(h, o, self._sizes, self._widest)
        return tables, np.exp(parameters[2 * d : 2 * d + 2]), math.exp(parameters[-2]), math.exp(parameters[-1])

    def _spread(self, guessed: bool) -> Array:
        """Standard deviations of the priors, `[parameters]`."""
        return np.concatenate([np.ones(len(self._centre) - 2), [_STD_NUGGET, 1.5 if guessed else _STD_NOISE]])

    def _kinship(self, parameters: Array) -> Array:
        """How far two sources are alike, `[1 + sources, 1 + sources]`."""
        alike = np.exp(-np.concatenate([[0.0], np.exp(parameters[2 * self._dims + 2 : -2])]))
        kin = np.outer(alike, alike)
        np.fill_diagonal(kin, 1.0)
        return kin

    def loss(
        self, parameters: Array, rows: Integers, z: Array, noise: Array, guessed: bool, source: Integers | None = None
    ) -> tuple[float, Array]:
        """Minus the log posterior of `parameters` and its gradient, given `rows` `[decisions, rows]`, targets, noise
        variances and sources `[rows]` (Rasmussen and Williams 2006, equation 5.9)."""
        tables, weights, nugget, factor = self._unpack(parameters)
        plans, products = gram(rows, tables, weights)
        kin = None if source is None or not source.any() else self._kinship(parameters)[np.ix_(source, source)]
        covariance = plans.copy() if kin is None else plans * kin
        covariance.flat[:: len(z) + 1] += nugget + factor * noise + _JITTER
        inverse, log_determinant = _inverse(covariance)
        alpha = inverse @ z
        spread = self._spread(guessed)
        offset = (parameters - self._centre) / spread
        d = self._dims
        unlike = slice(2 * d + 2, -2)
        tail = 0.5 * (_TAIL + 1) * np.log1p(offset[unlike] ** 2 / _TAIL) - 0.5 * offset[unlike] ** 2
        value = 0.5 * float(z @ alpha) + 0.5 * log_determinant + 0.5 * float(offset @ offset) + float(tail.sum())
        sensitivity = 0.5 * (inverse - np.outer(alpha, alpha))
        parts = gram_gradient(rows, tables, weights, sensitivity if kin is None else sensitivity * kin, products)
        diagonal = np.diag(sensitivity)
        gradient = offset / spread
        gradient[unlike] *= (_TAIL + 1) / (_TAIL + offset[unlike] ** 2)
        if kin is not None and source is not None:
            gradient[unlike] += _by_unlike(sensitivity * plans * kin, source, parameters[unlike])
        gradient[:d] += parts[0, :d] * np.exp(parameters[:d])
        gradient[d : 2 * d] += (
            parts[1, :d] * np.exp(parameters[d : 2 * d]) * self._ordered / np.maximum(self._sizes - 1, 1)
        )
        gradient[2 * d : 2 * d + 2] += parts[2, :2] * weights
        gradient[-2] += nugget * diagonal.sum()
        gradient[-1] += factor * float(diagonal @ noise)
        return value, gradient

    def fit(
        self, rows: Integers, z: Array, noise: Array, *, guessed: bool, steps: int, source: Integers | None = None
    ) -> None:
        """Moves the parameters by `steps` of iRprop- (Igel and Huesken 2003), and keeps the best seen."""
        parameters, step = self.parameters.copy(), np.full(len(self.parameters), 0.1)
        best, best_loss, last = parameters, math.inf, np.zeros(len(parameters))
        for _ in range(steps):
            loss, gradient = self.loss(parameters, rows, z, noise, guessed, source)
            if loss < best_loss:
                best, best_loss = parameters.copy(), loss
            turn = gradient * last
            step = np.clip(np.where(turn > 0, step * 1.2, np.where(turn < 0, step * 0.5, step)), 1e-3, 0.5)
            gradient = np.where(turn < 0, 0.0, gradient)
            parameters = parameters - np.sign(gradient) * step
            last = gradient
        self.parameters = best

    def trust_noise(self) -> None:
        """Takes noise variances as they are said to be from now on: what they were corrected by was for a guess."""
        self.parameters = np.append(self.parameters[:-1], 0.0)

    @property
    def importance(self) -> Array:
        """How much each decision moves the metric: h_d + o_d / 2, `[decisions]`."""
        d = self._dims
        return np.exp(self.parameters[:d]) + 0.5 * np.exp(self.parameters[d : 2 * d]) * self._ordered

    @property
    def alike(self) -> Array:
        """exp(-u_s): what is left of a covariance between a source and the problem, `[sources]`."""
        return self._kinship(self.parameters)[0, 1:]

    # factor ---------------------------------------------------------------------------------------------------------

    def factor(self, rows: Integers, noise: Array, source: Integers | None = None) -> None:
        """Conditions on `rows`, `[decisions, rows]`, with noise variances and sources `[rows]`: O(rows^3)."""
        self._tables, self._weights, self._nugget, self._factor = self._unpack(self.parameters)
        n = rows.shape[1]
        covariance, _ = gram(rows, self._tables, self._weights)
        kin = self._kinship(self.parameters)
        self._alike = kin[0].astype(np.float32)
        if source is not None and source.any():
            covariance *= kin[np.ix_(source, source)]
        covariance.flat[:: n + 1] += self._nugget + self._factor * noise + _JITTER
        self._reserve(n)
        self._hot[:, :n], self._noise[:n] = one_hot(rows, self._widest), self._factor * noise
        self._source[:n] = 0 if source is None else source
        self._lower[:n, :n] = _lower_inverse(covariance)[0]
        self._lower32[:n, :n] = self._lower[:n, :n]
        self.size = n
        self._inverse_diagonal = None

    def append(self, row: Integers, noise: float) -> None:
        """Conditions on one more row of the problem itself, `[decisions]`: O(rows^2)."""
        n = self.size
        self._reserve(n + 1)
        lower = self._lower[:n, :n] @ self._covariance(row[None])[0].astype(np.float64)
        pivot = self._prior + self._factor * noise + _JITTER - float(lower @ lower)
        scale = 1 / math.sqrt(max(pivot, _JITTER))
        self._lower[n, :n], self._lower[n, n] = -scale * (lower @ self._lower[:n, :n]), scale
        self._lower32[n, : n + 1] = self._lower[n, : n + 1]
        self._hot[:, n] = one_hot(row[:, None], self._widest)[:, 0]
        self._noise[n], self._source[n] = self._factor * noise, 0
        self.size = n + 1
        self._inverse_diagonal = None

    def truncate(self, size: int) -> None:
        """Forgets the rows after the first `size`."""
        self.size = size
        self._inverse_diagonal = None

    def target(self, z: Array) -> None:
        """Sets the targets of all rows, `[rows]`."""
        lower = self._lower[: self.size, : self.size]
        self._whitened = lower @ z
        self._targets, self._alpha = z, lower.T @ self._whitened

    @property
    def targets(self) -> Array:
        """What `target` was given, `[rows]`."""
        return self._targets

    def posterior(self, codes: Integers) -> tuple[Array, Array]:
        """Mean and standard deviation of the noise-free metric of plans that are not among the rows, `[candidates]`;
        `codes` are `[candidates, decisions]`."""
        covariance = self._covariance(codes)
        projected = blas.strmm(1.0, self._lower32.T, covariance.T, trans_a=1)  # L^-1 k, [rows, candidates]
        variance = self._prior - np.einsum("ij,ij->j", projected, projected).astype(np.float64)
        mean = covariance @ self._alpha.astype(np.float32)
        return mean.astype(np.float64), np.sqrt(np.maximum(variance, 1e-6))

    def _covariance(self, codes: Integers) -> NDArray[np.float32]:
        """With all rows, `[candidates, rows]`."""
        found = cross(codes, self._tables, self._weights, self._hot[:, : self.size])
        if len(self._alike) > 1:
            found *= self._alike[self._source[: self.size]]
        return found

    def left_out(self) -> Array:
        """By how much each row's target is missed by what the others say, `[rows]` (Rasmussen and Williams 2006,
        equation 5.12)."""
        return np.asarray(self._alpha / self._precision())

    def at_rows(self) -> tuple[Array, Array]:
        """Mean and standard deviation of the noise-free metric of the rows themselves, `[rows]`.

        f = z - N K^-1 z, var = N - N K^-1 N with N the noise: the nugget belongs to the plan, and is not averaged away.
        """
        noise = self._noise[: self.size]
        left = noise - noise**2 * self._precision()
        return self._targets - noise * self._alpha, np.sqrt(np.maximum(left, 0.0))

    def _precision(self) -> Array:
        """The diagonal of K^-1, `[rows]`."""
        if self._inverse_diagonal is None:
            lower = self._lower[: self.size, : self.size]
            self._inverse_diagonal = np.einsum("ij,ij->j", lower, lower)
        return self._inverse_diagonal

    @property
    def _prior(self) -> float:
        """Variance of an unseen plan before any data."""
        return float(self._weights.sum()) + self._nugget

    def _reserve(self, size: int) -> None:
        if size <= self._capacity:
            return
        old, many = self.size, max(64, int(size * 1.5))
        hot = np.zeros((len(self._hot), many), dtype=np.float32)
        noise, lower = np.zeros(many), np.zeros((many, many))
        self._source = np.concatenate([self._source, np.zeros(many - len(self._source), dtype=np.int16)])
        hot[:, :old], noise[:old], lower[:old, :old] = self._hot[:, :old], self._noise[:old], self._lower[:old, :old]
        self._hot, self._noise, self._lower, self._lower32 = hot, noise, lower, lower.astype(np.float32)
        self._capacity = many


def _by_unlike(weighted: Array, source: Integers, log_unlike: Array) -> Array:
    """Chain rule through exp(-u_s - u_t): the sums of `weighted` `[rows, rows]` over pairs of different sources one of
    which is s, times -u_s, `[sources]`."""
    member = source[None] == np.arange(1, len(log_unlike) + 1)[:, None]  # [sources, rows]
    within = np.einsum("si,ij,sj->s", member, weighted, member)
    return np.asarray(-2 * (member @ weighted.sum(axis=1) - within) * np.exp(log_unlike))


def _lower_inverse(covariance: Array) -> tuple[Array, float]:
    """The inverse of the Cholesky factor, and the log determinant; the diagonal grows until it is positive definite."""
    for extra in (0.0, 1e-5, 1e-3, 1e-1):
        lower, failed = lapack.dpotrf(covariance + extra * np.eye(len(covariance)) if extra else covariance, lower=1)
        if not failed:
            break
    inverse, _ = lapack.dtrtri(lower, lower=1)
    return np.tril(inverse), 2 * float(np.log(np.diag(lower)).sum())


def _inverse(covariance: Array) -> tuple[Array, float]:
    lower, log_determinant = _lower_inverse(covariance)
    return lower.T @ lower, log_determinant
