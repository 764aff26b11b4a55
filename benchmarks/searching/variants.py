"""Our search with one part taken away, to see what the part earns."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from model_opt.search import Decision, SearchSpace, metric_model, planner, searcher, surrogate
from model_opt.search.hypercube import draw
from model_opt.search.planner import Planner, Ranking, Score
from model_opt.search.regression import Fitted
from searching.methods import Answers, ours
from searching.problems import Problem

Array = NDArray[np.float64]


class Standardised:
    """Targets by mean and standard deviation, in place of `RankWarp`."""

    def __init__(self, values: Array) -> None:
        self._mean, self._std = float(values.mean()), float(values.std()) or 1.0
        self.targets = self.forward(values)

    def forward(self, values: Array) -> Array:
        return (values - self._mean) / self._std

    def limit(self, bound: float, at_most: bool) -> float:
        return (bound - self._mean) / self._std

    def noise(self, values: Array, variance: Array) -> Array:
        return variance / self._std**2

    def raw(self, mean: Array, std: Array) -> tuple[Array, Array]:
        return self._mean + self._std * mean, self._std * std


class LocalSearch(Planner):
    """First-improvement climbs from the incumbents with redrawn decisions, and no tree: as many estimates."""

    def rank(
        self,
        score: Score,
        *,
        known: NDArray[np.int16],
        incumbents: NDArray[np.int16],
        importance: Array,
        prior: Array,
        rng: np.random.Generator,
    ) -> Ranking:
        sizes, seen = self._encoding.sizes, {row.tobytes() for row in known}
        met: dict[bytes, tuple[float, NDArray[np.int16]]] = {}
        pairs = np.array([(d, o) for d, size in enumerate(sizes) for o in range(size)], dtype=np.int16)
        while len(met) < self._evaluations:
            here = incumbents[0 if rng.random() < 0.5 else int(rng.integers(len(incumbents)))].copy()
            again = rng.random(len(sizes)) < 0.2
            redrawn = draw(self._encoding, 1, prior, rng)
            if len(redrawn):  # it was allowed
                here[again] = redrawn[0][again]
            before = len(met)
            self._climb(here, pairs, score, seen, met, rng)
            if len(met) == before and rng.random() < 0.02:
                break
        values = np.array([value for value, _ in met.values()])
        order = np.argsort(-values, kind="stable")
        codes = np.array([codes for _, codes in met.values()], dtype=np.int16)
        return Ranking(codes=codes[order], values=values[order], tree=None)

    def _climb(
        self,
        here: NDArray[np.int16],
        pairs: NDArray[np.int16],
        score: Score,
        seen: set[bytes],
        met: dict[bytes, tuple[float, NDArray[np.int16]]],
        rng: np.random.Generator,
    ) -> None:
        """Moves to the best of eight changes at a time while that is better."""
        value, moves = -np.inf, rng.permutation(pairs)
        while len(moves) and len(met) < self._evaluations:
            some, moves = moves[:8], moves[8:]
            codes = np.tile(here, (len(some), 1))
            codes[np.arange(len(some)), some[:, 0]] = some[:, 1]
            codes = codes[self._encoding.allowed(codes)]
            codes = codes[[row.tobytes() not in seen for row in codes]] if len(codes) else codes
            fresh = [row for row in codes if row.tobytes() not in met]
            if fresh:
                for row, found in zip(fresh, score(np.array(fresh)), strict=True):
                    met[row.tobytes()] = (float(found), row)
            if len(codes):
                best = max((met[row.tobytes()] for row in codes), key=lambda pair: pair[0])
                if best[0] > value + 1e-9:
                    (value, here), moves = best, rng.permutation(pairs)


def without_kernel(*parts: int) -> Callable[[], AbstractContextManager[object]]:
    """Takes parts of the kernel away: their weights are zero."""
    kept = np.array([part not in parts for part in range(2)], dtype=np.float64)
    at = surrogate.Surrogate.at

    def less(self: surrogate.Surrogate, parameters: Array) -> Fitted:
        whole = at(self, parameters)
        return replace(whole, weights=whole.weights * kept)

    return lambda: patch.object(surrogate.Surrogate, "at", less)


def _no_verification() -> AbstractContextManager[object]:
    return patch.object(searcher.Searcher, "verifications", property(lambda _: 0))


def _observed_answer() -> AbstractContextManager[object]:
    """The best plan as observed, in place of the best as believed."""

    def recommend(self: searcher.Searcher) -> searcher.Recommendation:
        records = [r for r in self._ledger.records.values() if set(self.objective.metrics) <= r.means.keys()]
        best = min(records, key=lambda record: self.objective.order(record.means))
        return searcher.Recommendation(plan=best.plan, feasible=True, probability_feasible=1.0, estimates={})

    return patch.object(searcher.Searcher, "recommend", recommend)


def no_rank_warp() -> AbstractContextManager[object]:
    """Targets are standardised."""
    return patch.object(metric_model, "RankWarp", Standardised)


def no_look_around() -> AbstractContextManager[object]:
    """The one-option changes of the incumbent are not estimated before the tree begins."""
    return patch.object(Planner, "_look_around", lambda *_: None)


_PATCHES: Mapping[str, Callable[[], AbstractContextManager[object]]] = {
    "whole": contextlib.nullcontext,
    "no_tree": lambda: patch.object(searcher, "Planner", LocalSearch),
    "no_look_around": no_look_around,
    "quarter_of_estimates": lambda: patch.object(searcher.Searcher.__init__, "__kwdefaults__", _fewer()),
    "no_rank_warp": no_rank_warp,
    "only_product": without_kernel(0),
    "only_sums": without_kernel(1),
    "no_verification": _no_verification,
    "observed_answer": _observed_answer,
    "random_start": lambda: patch.object(searcher, "hypercube", draw),
}


def _fewer() -> dict[str, object]:
    given = dict(searcher.Searcher.__init__.__kwdefaults__ or {})
    return given | {"evaluations": planner.EVALUATIONS // 4}


def _variant(name: str) -> Callable[[Problem, int, Sequence[int]], Answers]:
    def run(problem: Problem, seed: int, checkpoints: Sequence[int]) -> Answers:
        with _PATCHES[name]():
            return ours(problem, seed, checkpoints)

    return run


def unordered(problem: Problem) -> Problem:
    """Nothing is known of which options are neighbours."""
    decisions = [Decision(d.name, d.options) for d in problem.table.space.decisions]
    space = SearchSpace(decisions, problem.table.space.forbidden)
    return replace(problem, table=replace(problem.table, space=space))


VARIANTS: Mapping[str, Callable[[Problem, int, Sequence[int]], Answers]] = {
    **{name: _variant(name) for name in _PATCHES},
    "unordered": lambda problem, seed, checkpoints: ours(unordered(problem), seed, checkpoints),
}
"""By what is missing."""
