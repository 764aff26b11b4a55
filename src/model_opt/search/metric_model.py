"""What is believed about one metric: raw rows, the warp by ranks, and the surrogate, kept in step as rows arrive."""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from model_opt.search.expected_improvement import log_feasible
from model_opt.search.objective import Limit
from model_opt.search.regression import Fitted, Regression
from model_opt.search.sources import Sources
from model_opt.search.surrogate import Surrogate
from model_opt.search.warp import RankWarp

Array = NDArray[np.float64]

LARGEST = 1000
"""Rows that a surrogate is conditioned on; of more than that it takes three quarters: the leaders, the rest spread
out."""
_FITTED = 400
_GUESS = 0.02  # noise variance of an unknown metric in warped units, before there are repeats


@dataclass(frozen=True, kw_only=True)
class Rows:
    """All that is known of a metric: `codes` `[rows, decisions]`, `mean` `[rows]`, `variance` `[rows]` of that mean,
    raw (NaN: unknown), `count` `[rows]` samples behind it, `rank` `[rows]`: small is worth keeping, `source` `[rows]`:
    0 was measured here, others are similar problems. Rows keep their places."""

    codes: NDArray[np.int16]
    mean: Array
    variance: Array
    count: Array
    rank: Array
    source: NDArray[np.int16]


class MetricModel:
    """The surrogate of one metric; `update` before anything is read."""

    def __init__(self, sizes: NDArray[np.int64], ordered: NDArray[np.bool_], unlike: Array | None = None) -> None:
        """`unlike` `[sources]` says how unlike the problem each source of rows is expected to be."""
        self._surrogate = Surrogate(sizes, ordered, unlike)
        self._fitted = self._surrogate.prior
        self._known: Regression
        self._with_pending: Regression
        self._sources: Sources | None = None
        self._fitted_at: int | None = None
        self._guessed = False
        self._index = np.zeros(0, dtype=np.int64)
        self._seen = 0
        self._scores: dict[Limit, float] = {}

    @property
    def importance(self) -> Array:
        """How much each decision moves the metric, `[decisions]`."""
        return self._fitted.importance

    @property
    def alike(self) -> Array:
        """How far each source of rows is believed, `[sources]`."""
        return self._fitted.alike

    def update(self, rows: Rows, *, repeated: bool) -> None:
        """Takes in `rows`; those at the old places are unchanged unless `repeated` says that samples were added."""
        if rows.source.any():
            if self._sources is None:
                sizes, ordered = self._surrogate.sizes, self._surrogate.ordered
                self._sources = Sources(sizes, ordered, rows.codes, rows.mean, rows.source)
            rows = replace(rows, mean=self._sources.calibrated(rows.codes, rows.mean, rows.source))
        self._warp = RankWarp(rows.mean)
        self._scores.clear()
        self._rows = rows
        z, noise, many = self._warp.targets, self._noise(rows), len(rows.mean)
        own = int((rows.source == 0).sum())  # what sources are worth is told by what was measured here
        guessed = bool(np.isnan(rows.variance).any())
        due = (
            self._fitted_at is None
            or guessed != self._guessed
            or own >= max(1.25 * self._fitted_at, self._fitted_at + 3)
            or len(self._index) >= 1.25 * LARGEST
        )
        if due:
            self._index = np.arange(many) if many <= LARGEST else _leaders_and_rest(rows.rank, LARGEST * 3 // 4)
            self._fitted = self._refitted(z, noise, guessed)
            self._fitted_at, self._guessed = own, guessed
        else:
            self._index = np.concatenate([self._index, np.arange(self._seen, many)])
        if due or repeated:
            some = self._index
            conditioned = self._fitted.conditioned(rows.codes[some].T, noise[some], rows.source[some])
        else:
            conditioned = self._known.conditioned
            for row in range(self._seen, many):
                conditioned = conditioned.appended(rows.codes[row], float(noise[row]))
        self._seen = many
        self._known = self._with_pending = conditioned.with_targets(z[self._index])

    def _refitted(self, z: Array, noise: Array, guessed: bool) -> Fitted:
        rows, start = self._rows, self._fitted
        some = self._index[np.linspace(0, len(self._index) - 1, min(len(self._index), _FITTED)).astype(int)]
        return self._surrogate.fit(
            np.ascontiguousarray(rows.codes[some].T),
            z[some],
            noise[some],
            guessed=guessed,
            steps=30 if self._fitted_at is None else 12,
            source=rows.source[some],
            start=start.trusting_noise() if self._guessed and not guessed else start,
        )

    def _noise(self, rows: Rows) -> Array:
        """Noise variances in warped units, `[rows]`."""
        known = np.nan_to_num(rows.variance, nan=0.0)
        carried = np.minimum(self._warp.noise(rows.mean, known), 4.0)
        return np.where(np.isnan(rows.variance), _GUESS / rows.count, carried)

    def add_pending(self, codes: NDArray[np.int16]) -> None:
        """Takes plans in flight, `[plans, decisions]`, as if measured at their posterior mean, until `forget`.

        The kriging believer of Ginsbourger, Le Riche and Carraro 2010.
        """
        for row in codes:
            mean, _ = self._with_pending.posterior(row[None])
            targets = np.append(self._with_pending.targets, mean)
            self._with_pending = self._with_pending.conditioned.appended(row, 0.0).with_targets(targets)

    def forget(self) -> None:
        """Drops what was believed."""
        self._with_pending = self._known

    def posterior(self, codes: NDArray[np.int16]) -> tuple[Array, Array]:
        """Mean and standard deviation in warped units of plans that are not among the rows, `[plans, decisions]`."""
        return self._with_pending.posterior(codes)

    def at_rows(self) -> tuple[Array, Array]:
        """Mean and standard deviation in warped units of every row given, `[rows]`."""
        own_mean, own_std = self._with_pending.at_rows()
        own = len(self._index)
        if own == self._seen:
            return own_mean[:own], own_std[:own]
        mean, std = self._warp.targets.copy(), np.sqrt(self._noise(self._rows))  # rows left out: as they were measured
        mean[self._index], std[self._index] = own_mean[:own], own_std[:own]
        return mean, std

    def estimates_at_rows(self) -> tuple[Array, Array]:
        """Mean and standard deviation in raw units of every row given, `[rows]`; rows without noise as measured."""
        mean, std = self._warp.raw(*self.at_rows())
        exact = self._rows.variance == 0
        return np.where(exact, self._rows.mean, mean), np.where(exact, 0.0, std)

    def estimates(self, codes: NDArray[np.int16]) -> tuple[Array, Array]:
        """Mean and standard deviation in raw units of plans that are not among the rows, `[plans, decisions]`."""
        return self._warp.raw(*self.posterior(codes))

    def score(self, limit: Limit) -> float:
        """The limit in warped units."""
        if limit not in self._scores:
            self._scores[limit] = self._warp.limit(limit.bound, limit.at_most)
        return self._scores[limit]

    def log_feasible(self, limit: Limit, mean: Array, std: Array) -> Array:
        """Log of P(limit holds) from a posterior in warped units."""
        return log_feasible(mean, std, self.score(limit), limit.at_most)

    def feasible_at_rows(self, limit: Limit) -> Array:
        """P(limit holds) of every row given, `[rows]`; zero or one where there is no noise."""
        mean, std = self.at_rows()
        sign = 1.0 if limit.at_most else -1.0
        with np.errstate(over="ignore"):  # a limit far beyond reach
            noisy = ndtr(sign * (self.score(limit) - mean) / np.maximum(std, 1e-12))
        holds = sign * (limit.bound - self._rows.mean) >= 0
        return np.where(self._rows.variance == 0, holds, noisy)


def _leaders_and_rest(rank: Array, many: int) -> NDArray[np.int64]:
    """The best half of `many` rows by `rank`, and as many of the others at even distances, in their order."""
    order = np.argsort(rank, kind="stable")
    leaders, others = order[: many // 2], np.sort(order[many // 2 :])
    spread = others[np.linspace(0, len(others) - 1, many - len(leaders)).astype(int)]
    return np.sort(np.concatenate([leaders, np.unique(spread)]))


def pooled_variance(samples: list[tuple[float, ...]]) -> float:
    """Variance within plans over their repeats, a variance of one sample; NaN below five degrees of freedom."""
    freedom = sum(len(values) - 1 for values in samples)
    if freedom < 5:
        return math.nan
    return sum(float(np.var(values)) * len(values) for values in samples) / freedom
