"""How near a planner comes to the best suggestion there is, by how many estimates it may take."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np

from model_opt.search import Searcher
from model_opt.search.planner import Planner
from model_opt.search.searcher import _incumbent
from searching.fleet import description, measured
from searching.problems import Problem
from searching.variants import LocalSearch, no_look_around

ESTIMATES = (60, 125, 250, 500)
AFTER = (30, 55, 80)
"""Measurements after which a suggestion is planned."""
PLANNERS: Mapping[str, tuple[type[Planner], Callable[[], AbstractContextManager[object]]]] = {
    "tree": (Planner, nullcontext),
    "tree that does not look around": (Planner, no_look_around),
    "local search": (LocalSearch, nullcontext),
}


def below_best(problem: Problem, seed: int) -> dict[tuple[str, int], list[float]]:
    """(planner, estimates) → how far its first plan's log acquisition lies below the best of all plans that are not
    measured, in nats, after each of `AFTER`; all plan from the same search, on a table that can be enumerated."""
    rng = np.random.default_rng([seed, 14])
    searcher = description(problem, seed).searcher(200, {})
    every = np.array([problem.table.codes(int(row)) for row in problem.table.rows], dtype=np.int16)
    found: dict[tuple[str, int], list[float]] = {}
    for settled in range(1, max(AFTER) + 1):
        searcher.tell(measured(problem, searcher.ask().plan, rng))
        if settled in AFTER:
            for key, gap in _gaps(searcher, every, np.random.default_rng([seed, settled])).items():
                found.setdefault(key, []).append(gap)
    return found


def _gaps(searcher: Searcher, every: np.ndarray, rng: np.random.Generator) -> dict[tuple[str, int], float]:
    beliefs, objective = searcher._beliefs, searcher.objective
    beliefs.refresh(objective)
    judged = beliefs.judged(objective)
    score = beliefs.acquisition(objective, _incumbent(judged))
    known = np.unique(searcher._ledger.codes, axis=0)
    seen = {row.tobytes() for row in known}
    fresh = every[[row.tobytes() not in seen for row in every]]
    parts: Sequence[np.ndarray] = np.array_split(fresh, max(1, len(fresh) // 4096))
    best = max(float(score(part).max()) for part in parts)
    gaps = {}
    around = int((searcher._encoding.sizes - 1).sum())  # what looking around costs
    for name, (kind, patched) in PLANNERS.items():
        for estimates in ESTIMATES:
            with patched():
                spared = around if name == "tree" else 0
                ranking = kind(searcher._encoding, evaluations=estimates - spared).rank(
                    score,
                    known=known,
                    incumbents=searcher._incumbents(judged),
                    importance=beliefs.importance(objective),
                    prior=searcher._prior,
                    rng=np.random.default_rng(rng.integers(2**32)),
                )
            gaps[name, estimates] = best - float(ranking.values[0])
    return gaps
