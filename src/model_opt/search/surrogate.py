"""The hyperparameters of a Gaussian process over plans, at their maximum a posteriori."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from model_opt.search.gram import gram, gram_gradient, option_tables
from model_opt.search.regression import JITTER, Fitted, lower_inverse

Array = NDArray[np.float64]
Integers = NDArray[np.integer]

_LOG_WEIGHT, _LOG_NUGGET = math.log(0.4), math.log(0.01)
_STD_NUGGET, _STD_NOISE, _STD_GUESS = 1.5, 0.5, 1.5
_TAIL = 2.0  # degrees of freedom of the prior on how unlike a source is


@dataclass(frozen=True)
class Surrogate:
    """One metric's process on warped targets with zero mean: decisions of `sizes` `[decisions]` options, which are
    `ordered` `[decisions]` or not.

    Parameters are logarithms, in one vector: h `[decisions]`, o `[decisions]` (0 where options are not ordered), w
    `[2]`, u `[sources]`, nugget, and the factor on the known noise. Priors: log h, log o ~ N(log(2/D), 1), log w ~
    N(log 0.4, 1), log nugget ~ N(log 0.01, 1.5), log noise factor ~ N(0, 0.5), the last wider where the noise is a
    guess; log u - log unlike ~ Student's t of two degrees of freedom: now and then a source misleads altogether.

    Rows may come from similar problems, the sources 1, 2, …; 0 is the problem itself. Between source s and it the
    covariance of two plans is exp(-u_s) times the usual, between two sources exp(-u_s - u_t): intrinsic
    coregionalisation (Bonilla, Chai and Williams 2008) around the problem. `unlike` `[sources]` is what u is expected
    to be. A source that misleads gets a large u, and is then as good as not there.
    """

    sizes: NDArray[np.int64]
    ordered: NDArray[np.bool_]
    unlike: Array | None = None

    @cached_property
    def prior(self) -> Fitted:
        """The priors' centre."""
        dims = len(self.sizes)
        far = np.zeros(0) if self.unlike is None else np.log(self.unlike)
        near = [np.full(2 * dims, math.log(2 / dims)), np.full(2, _LOG_WEIGHT)]
        return self.at(np.concatenate([*near, far, [_LOG_NUGGET, 0.0]]))

    def at(self, parameters: Array) -> Fitted:
        """What follows of `parameters`."""
        d = len(self.sizes)
        h, o = np.exp(parameters[:d]), np.exp(parameters[d : 2 * d]) * self.ordered
        alike = np.exp(-np.concatenate([[0.0], np.exp(parameters[2 * d + 2 : -2])]))
        kinship = np.outer(alike, alike)
        np.fill_diagonal(kinship, 1.0)
        return Fitted(
            parameters=parameters,
            h=h,
            o=o,
            tables=option_tables(h, o, self.sizes, int(self.sizes.max())),
            weights=np.exp(parameters[2 * d : 2 * d + 2]),
            kinship=kinship,
            nugget=math.exp(parameters[-2]),
            noise_factor=math.exp(parameters[-1]),
        )

    def loss(
        self, parameters: Array, rows: Integers, z: Array, noise: Array, guessed: bool, source: Integers | None = None
    ) -> tuple[float, Array]:
        """Minus the log posterior of `parameters` and its gradient, given `rows` `[decisions, rows]`, targets, noise
        variances and sources `[rows]` (Rasmussen and Williams 2006, equation 5.9)."""
        at, d = self.at(parameters), len(self.sizes)
        plans, products = gram(rows, at.tables, at.weights)
        kin = None if source is None or not source.any() else at.kinship[np.ix_(source, source)]
        covariance = plans.copy() if kin is None else plans * kin
        covariance.flat[:: len(z) + 1] += at.nugget + at.noise_factor * noise + JITTER
        lower, log_determinant = lower_inverse(covariance)
        inverse = lower.T @ lower
        alpha = inverse @ z
        spread = np.append(np.ones(len(parameters) - 2), [_STD_NUGGET, _STD_GUESS if guessed else _STD_NOISE])
        offset = (parameters - self.prior.parameters) / spread
        unlike = slice(2 * d + 2, -2)
        tail = 0.5 * (_TAIL + 1) * np.log1p(offset[unlike] ** 2 / _TAIL) - 0.5 * offset[unlike] ** 2
        value = 0.5 * float(z @ alpha) + 0.5 * log_determinant + 0.5 * float(offset @ offset) + float(tail.sum())
        sensitivity = 0.5 * (inverse - np.outer(alpha, alpha))
        parts = gram_gradient(rows, at.tables, at.weights, sensitivity if kin is None else sensitivity * kin, products)
        diagonal = np.diag(sensitivity)
        gradient = offset / spread
        gradient[unlike] *= (_TAIL + 1) / (_TAIL + offset[unlike] ** 2)
        if kin is not None and source is not None:
            gradient[unlike] += _by_unlike(sensitivity * plans * kin, source, parameters[unlike])
        gradient[:d] += parts[0, :d] * at.h
        gradient[d : 2 * d] += parts[1, :d] * at.o / np.maximum(self.sizes - 1, 1)
        gradient[2 * d : 2 * d + 2] += parts[2, :2] * at.weights
        gradient[-2] += at.nugget * diagonal.sum()
        gradient[-1] += at.noise_factor * float(diagonal @ noise)
        return value, gradient

    def fit(
        self,
        rows: Integers,
        z: Array,
        noise: Array,
        *,
        guessed: bool,
        steps: int,
        source: Integers | None = None,
        start: Fitted | None = None,
    ) -> Fitted:
        """The best that `steps` of iRprop- (Igel and Huesken 2003) see from `start`, or from the prior; data as for
        `loss`."""
        parameters = (start or self.prior).parameters
        best, best_loss = parameters, math.inf
        step, last = np.full(len(parameters), 0.1), np.zeros(len(parameters))
        for _ in range(steps):
            loss, gradient = self.loss(parameters, rows, z, noise, guessed, source)
            if loss < best_loss:
                best, best_loss = parameters, loss
            turn = gradient * last
            step = np.clip(np.where(turn > 0, step * 1.2, np.where(turn < 0, step * 0.5, step)), 1e-3, 0.5)
            gradient = np.where(turn < 0, 0.0, gradient)
            parameters = parameters - np.sign(gradient) * step
            last = gradient
        return self.at(best)


def _by_unlike(weighted: Array, source: Integers, log_unlike: Array) -> Array:
    """Chain rule through exp(-u_s - u_t): the sums of `weighted` `[rows, rows]` over pairs of different sources one of
    which is s, times -u_s, `[sources]`."""
    member = source[None] == np.arange(1, len(log_unlike) + 1)[:, None]  # [sources, rows]
    within = np.einsum("si,ij,sj->s", member, weighted, member)
    return np.asarray(-2 * (member @ weighted.sum(axis=1) - within) * np.exp(log_unlike))
