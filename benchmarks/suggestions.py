"""Milliseconds that the search takes to suggest the next plan, by how many observations it has.

    python benchmarks/suggestions.py [--quick] [--json]

Ten decisions of six options (60 million plans), a noisy metric to minimise and another that is limited. The first
observations are of random plans, then every suggestion is measured. `median_ms` is that of 25 suggestions in a row,
`longest_ms` the longest of them, with a model fitted anew where one falls due.
"""

import argparse
import json
import time

import numpy as np

from model_opt.search import Decision, Limit, Measurement, Objective, Searcher, SearchSpace
from model_opt.search.plan import Plan

DECISIONS, OPTIONS, IN_A_ROW = 10, 6, 25
COUNTS = (100, 500, 1000, 3000)
GOAL_MS = {500: 25.0}


class Problem:
    """Additive effects and some interactions of neighbouring decisions."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        options = [str(option) for option in range(OPTIONS)]
        self.space = SearchSpace([Decision(f"d{i}", options, ordered=i % 2 == 0) for i in range(DECISIONS)])
        self._main = self.rng.normal(size=(2, DECISIONS, OPTIONS))
        self._pairs = 0.5 * self.rng.normal(size=(2, DECISIONS - 1, OPTIONS, OPTIONS))

    def measure(self, plan: Plan) -> Measurement:
        """One noisy measurement of a plan."""
        codes, decisions = np.array(self.space.encode(plan)), np.arange(DECISIONS)
        value = self._main[:, decisions, codes].sum(axis=1)
        value += self._pairs[:, decisions[:-1], codes[:-1], codes[1:]].sum(axis=1)
        loss, cost = value + 0.1 * self.rng.normal(size=2)
        return Measurement(plan=plan, samples={"loss": (float(loss),), "cost": (float(cost),)})

    def drawn(self) -> Plan:
        """A plan drawn uniformly."""
        return self.space.decode(self.rng.integers(0, OPTIONS, DECISIONS).astype(np.int16))


def suggestions(observations: int) -> tuple[float, float]:
    """Median and longest milliseconds of a suggestion after so many `observations`."""
    problem = Problem()
    objective = Objective(metric="loss", limits=(Limit(metric="cost", bound=0.0, at_most=True),))
    noise = {"loss": 0.01, "cost": 0.01}
    searcher = Searcher(problem.space, objective, budget=10 * observations, noise=noise)
    for _ in range(observations):
        searcher.tell(problem.measure(problem.drawn()))
    spent = []
    for _ in range(IN_A_ROW + 1):
        began = time.perf_counter()
        proposal = searcher.ask()
        spent.append((time.perf_counter() - began) * 1e3)
        if proposal is not None:
            searcher.tell(problem.measure(proposal.plan))
    later = spent[1:]  # the first one fits the models to all that was told at once
    return float(np.median(later)), max(later)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="up to 500 observations")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    arguments = parser.parse_args()
    found = {}
    for count in COUNTS[:2] if arguments.quick else COUNTS:
        median, longest = suggestions(count)
        found |= {f"median_ms_at_{count}": round(median, 2), f"longest_ms_at_{count}": round(longest, 2)}
        if not arguments.json:
            goal = f"   goal {GOAL_MS[count]:g}" if count in GOAL_MS else ""
            print(f"{count:>6} observations: median {median:6.1f} ms, longest {longest:7.1f} ms{goal}", flush=True)
    if arguments.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
