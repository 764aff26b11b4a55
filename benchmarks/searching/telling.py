"""How true it is what a search says of its answer, with and without verification."""

import numpy as np

from searching.fleet import description
from searching.methods import go_on
from searching.problems import Problem


def told(problem: Problem, seed: int, budget: int, *, verify: bool) -> dict[str, tuple[float, bool]]:
    """Noisy metric → how far what is said of the answer is from its true mean, and whether the 95 % interval that goes
    with it holds the truth."""
    searcher = description(problem, seed).searcher(budget, {})
    searcher.verify = verify
    go_on(searcher, problem, np.random.default_rng([seed, 14]), until=budget)
    answer = searcher.recommend()
    row = problem.table.row_of(answer.plan)
    found = {}
    for metric in filter(problem.table.noisy, problem.objective.metrics):
        said = answer.estimates[metric]
        error = abs(said.mean - problem.table.means[metric][row])
        found[metric] = (float(error), bool(error < 1.96 * said.std))
    return found
