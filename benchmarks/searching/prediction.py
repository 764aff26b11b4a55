"""How well the model of a metric foretells plans that it has not seen, with a part taken away."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

import numpy as np

from model_opt.search import Measurement, Objective, Searcher
from model_opt.search.design import draw, hypercube
from model_opt.search.surrogate import Changes
from searching.problems import Problem
from searching.variants import without_kernel

AFTER = 30
"""Plans measured, drawn at random."""
STARTED = 10
UNSEEN = 400
MODELS: Mapping[str, Callable[[], AbstractContextManager[object]]] = {
    "whole": nullcontext,
    "only_product": without_kernel(0),
    "only_sums": without_kernel(1),
}


def foretold(problem: Problem, seed: int) -> dict[str, tuple[float, float]]:
    """Model → log density of the true values of unseen plans (mean, in warped units, in nats) and their rank
    correlation with what is foretold; `hypercube` and `random` are the whole model after a first ten plans."""
    rng = np.random.default_rng([seed, 77])
    rows = rng.permutation(problem.table.rows)
    rows = rows[np.isfinite(problem.table.means[problem.objective.metric][rows])]
    found = {}
    for name, patched in MODELS.items():
        with patched():
            searcher = _searcher(problem, seed)
            found[name] = _score(problem, searcher, rows[:AFTER], rows[AFTER : AFTER + UNSEEN])
    for name, start in (("hypercube", hypercube), ("random", draw)):
        searcher = _searcher(problem, seed)
        codes = start(searcher._encoding, STARTED, searcher._prior, rng)
        plans = [searcher._encoding.decode(row) for row in codes]
        first = np.array([problem.table.row(problem.table.space.encode(plan)) for plan in plans])
        found[name] = _score(problem, searcher, first, rows[AFTER : AFTER + UNSEEN])
    return found


def _searcher(problem: Problem, seed: int) -> Searcher:
    metric = problem.objective.metric
    noise = {metric: None if problem.table.noisy(metric) else 0.0}
    return Searcher(problem.table.space, Objective(metric=metric), budget=200, seed=seed, noise=noise)


def _score(problem: Problem, searcher: Searcher, seen: np.ndarray, unseen: np.ndarray) -> tuple[float, float]:
    metric, space = problem.objective.metric, problem.table.space
    rng = np.random.default_rng(0)
    for row in seen:
        measured = problem.measure(int(row), rng)
        if measured is not None:
            plan = space.decode(problem.table.codes(int(row)))
            searcher.tell(Measurement(plan=plan, samples={metric: (measured[metric],)}))
    model = searcher._beliefs.model(metric, searcher.objective)
    codes = np.array([problem.table.codes(int(row)) for row in unseen], dtype=np.int16)[:, space.sizes > 1]
    mean, std = model.posterior(Changes.whole(codes))
    truth = model._warp.forward(problem.table.means[metric][unseen])
    spread = np.hypot(std, 0.05)
    density = -0.5 * np.log(2 * np.pi * spread**2) - 0.5 * ((truth - mean) / spread) ** 2
    return float(np.maximum(density, -10).mean()), float(np.corrcoef(_ranks(truth), _ranks(mean))[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    return np.argsort(np.argsort(values))
