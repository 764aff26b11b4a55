"""How well the model of a metric foretells plans that it has not seen, with a part taken away."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import numpy as np

from model_opt.search import Objective, Searcher
from model_opt.search.hypercube import draw, hypercube
from searching.fleet import description, measured
from searching.problems import Problem
from searching.variants import no_rank_warp, unordered, without_kernel

AFTER = 30
"""Plans measured, drawn at random."""
STARTED = 10
UNSEEN = 400
MODELS: Mapping[str, tuple[Callable[[Problem], Problem], Callable[[], AbstractContextManager[object]]]] = {
    "whole": (lambda problem: problem, nullcontext),
    "only_product": (lambda problem: problem, without_kernel(0)),
    "only_sums": (lambda problem: problem, without_kernel(1)),
    "unordered": (unordered, nullcontext),
    "no_rank_warp": (lambda problem: problem, no_rank_warp),
}
"""Name → what is known of the problem, and what is taken away from the model."""


def foretold(problem: Problem, seed: int) -> dict[str, tuple[float, float]]:
    """Model → log density of the true values of unseen plans (mean, in warped units, in nats) and their rank
    correlation with what is foretold; `hypercube` and `random` are the whole model after a first ten plans. Without
    the warp the units are others, and its density says nothing."""
    problem = replace(problem, objective=Objective(metric=problem.objective.metric))
    rng = np.random.default_rng([seed, 77])
    rows = rng.permutation(problem.table.rows)
    rows = rows[np.isfinite(problem.table.means[problem.objective.metric][rows])]
    found = {}
    for name, (known, patched) in MODELS.items():
        with patched():
            searcher = description(known(problem), seed).searcher(200, {})
            found[name] = _score(known(problem), searcher, rows[:AFTER], rows[AFTER : AFTER + UNSEEN])
    for name, start in (("hypercube", hypercube), ("random", draw)):
        searcher = description(problem, seed).searcher(200, {})
        codes = start(searcher._encoding, STARTED, searcher._prior, rng)
        plans = [searcher._encoding.decode(row) for row in codes]
        first = np.array([problem.table.row_of(plan) for plan in plans])
        found[name] = _score(problem, searcher, first, rows[AFTER : AFTER + UNSEEN])
    return found


def _score(problem: Problem, searcher: Searcher, seen: np.ndarray, unseen: np.ndarray) -> tuple[float, float]:
    metric, space = problem.objective.metric, problem.table.space
    rng = np.random.default_rng(0)
    for row in seen:
        searcher.tell(measured(problem, space.decode(problem.table.codes(int(row))), rng))
    model = searcher._beliefs.model(metric, searcher.objective)
    codes = np.array([problem.table.codes(int(row)) for row in unseen], dtype=np.int16)[:, space.sizes > 1]
    mean, std = model.posterior(codes)
    truth = model._warp.forward(problem.table.means[metric][unseen])
    spread = np.hypot(std, 0.05)
    density = -0.5 * np.log(2 * np.pi * spread**2) - 0.5 * ((truth - mean) / spread) ** 2
    return float(np.maximum(density, -10).mean()), float(np.corrcoef(_ranks(truth), _ranks(mean))[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    return np.argsort(np.argsort(values))
