"""How much sooner a deployment is done that starts from another's knowledge, and what misleading knowledge costs it.

    python benchmarks/warm_start.py [--quick] [--json] [--seeds 10]

On tables of measured compression plans (`compression_tables.py`). Deployment A searches its network's plans with
`--budget` measurements and shares what it measured. Deployment B has a similar network (as similar as the product asks
for) and searches with A's knowledge (warm), as the product does without any (taught: the family's strategies come
first, options have prior weights), and with nothing at all (cold). A's final quality is the speed-up of its answer
(within the limit of accuracy lost); where B's network cannot be made so fast, the same share of what is attainable. B
is there once its own answer has that, to within the error of the table's figures: the standard deviation of one from
process to process.

`warm_start_ratio`: measured plans until then, warm ÷ cold, medians over seeds, the median over pairs and limits.
`warm_to_taught_ratio`: warm ÷ taught. Strategies are knowledge that comes with the product: where the first of them
is already the best plan there is nothing left to gain.
`warm_start_ratio_by_share`: as the first, where B must always reach the same share of what is attainable.
`foreknowledge_ratio`: the same for one who knows A's whole table as it truly is, and measures B's plans in the order
of A's speed-up, of those that lose at most so much there as lets B be done soonest (in hindsight): not to be had.
`misleading_cost`: ÷ taught, where A's rows are lies: `shuffled` has the figures of other plans, `reversed` calls the
best the worst.
"""

import argparse
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from plan_tables import DATA, NAMES, PlanTable, load

from model_opt.autotuner.engine import original_of, start_with
from model_opt.autotuner.strategies import prior
from model_opt.federation.known import Neighbour
from model_opt.federation.moments import Moments
from model_opt.federation.recall import LEAST_SIMILARITY, TRANSFERRED, Recalled, recalled_from
from model_opt.federation.row import Row
from model_opt.search.evaluator import Measurement
from model_opt.search.objective import Limit, Objective
from model_opt.search.plan import Plan
from model_opt.search.searcher import Searcher

LIMITS = (0.01, 0.02)
LIES = ("shuffled", "reversed")
STARTS = ("cold", "taught", "warm", *LIES)
table_of = cache(load)


@dataclass(frozen=True, kw_only=True)
class Found:
    """One search: the share of the best attainable that its answer had after each measurement, `[measurements]`."""

    shares: tuple[float, ...]
    rows: tuple[Row, ...] = ()

    def until(self, share: float) -> int:
        """After how many measurements the answer had `share`; one more than there were if it never had."""
        return next((n for n, reached in enumerate(self.shares, 1) if reached >= share), len(self.shares) + 1)


def objective(limit: float) -> Objective:
    limits = (Limit(metric="accuracy_drop", bound=limit, at_most=True),)
    return Objective(metric="log_speedup", maximize=True, limits=limits, tie=("log_size_ratio", True))


@cache
def best_of(name: str, limit: float) -> float:
    """The log speed-up of the table's best plan within `limit`."""
    truths = filter(None, map(table_of(name).truth, table_of(name).plans))
    return max(truth["log_speedup"] for truth in truths if truth["accuracy_drop"] <= limit)


def search(
    name: str, limit: float, seed: int, budget: int, known: Recalled | None = None, *, taught: bool = True
) -> Found:
    """Searches table `name` as the product searches a model, from what is `known`; without strategies and prior weights
    unless `taught`."""
    table, wanted = table_of(name), objective(limit)
    known = known or Recalled()
    searcher = Searcher(
        table.space,
        wanted,
        budget=budget,
        seed=seed,
        noise={"log_speedup": table.noise["log_speedup"], "latency_ms": table.noise["latency_ms"]},
        first=start_with(known.plans, table.signature.family, table.space) if taught else (),
        given=(original_of(table.baseline),),
        prior=prior(table.space) if taught else None,
        evidence=known.evidence,
    )
    rng = np.random.default_rng([seed, 1])
    shares: list[float] = []
    while (proposal := searcher.ask()) is not None:
        searcher.tell(table.measure(proposal.plan, rng))
        truth = table.truth(searcher.recommend().plan) or {}
        within = truth.get("accuracy_drop", np.inf) <= limit
        shares.append(truth["log_speedup"] / best_of(name, limit) if within else 0.0)
    return Found(shares=tuple(shares), rows=tuple(rows_of(searcher, table)))


def rows_of(searcher: Searcher, table: PlanTable) -> Iterator[Row]:
    """What the search measured, as A's deployment would send it."""
    samples: dict[Plan, dict[str, list[float]]] = {}
    for outcome in searcher.observations:
        if isinstance(outcome, Measurement) and outcome.plan.choices:
            for metric in TRANSFERRED:
                samples.setdefault(outcome.plan, {}).setdefault(metric, []).extend(outcome.samples[metric])
    for plan, metrics in samples.items():
        yield Row(
            federation="default",
            signature=table.signature.key,
            plan=plan,
            context=table.context.key,
            origin=table.name,
            epoch="0" * 32,
            sequence=0,
            moments={metric: Moments.of(values) for metric, values in metrics.items()},
        )


def lying(rows: Sequence[Row], how: str, seed: int) -> tuple[Row, ...]:
    """`rows` that tell other plans' figures, or that call the best the worst."""
    if how == "shuffled":
        order = np.random.default_rng(seed).permutation(len(rows))
    else:
        ranked = sorted(range(len(rows)), key=lambda i: rows[i].moments["log_speedup"].mean)
        order = np.empty(len(rows), dtype=int)
        order[ranked] = ranked[::-1]
    return tuple(replace(row, moments=rows[other].moments) for row, other in zip(rows, order, strict=True))


def recalled(source: str, rows: Sequence[Row], target: str, limit: float) -> Recalled:
    """What B recalls of A's rows."""
    a, b = table_of(source), table_of(target)
    near = [Neighbour(signature=a.signature, similarity=similarity(source, target), rows=tuple(rows))]
    contexts = {table.context.key: table.context for table in (a, b)}
    return recalled_from(near, b.space, b.context, objective(limit), contexts=contexts, trust={})


def similarity(a: str, b: str) -> float:
    return float(table_of(a).signature.vector @ table_of(b).signature.vector)


def related() -> list[tuple[str, str]]:
    """Ordered pairs of tables that the product would call similar."""
    there = [name for name in NAMES if (DATA / f"{name}.npz").exists()]
    return [(a, b) for a, b in itertools.permutations(there, 2) if similarity(a, b) >= LEAST_SIMILARITY]


def foreknown(source: str, target: str, limit: float, share: float) -> int:
    """How many plans B measures until one has `share`, by the order of A's true figures."""
    a, b, best = table_of(source), table_of(target), best_of(target, limit)
    pairs = [(a.truth(plan), b.truth(plan)) for plan in b.plans if plan in a.places]
    both = [(there, here) for there, here in pairs if there and here]
    there_speed = np.array([there["log_speedup"] for there, _ in both])
    there_drop = np.array([there["accuracy_drop"] for there, _ in both])
    done = [here["log_speedup"] >= share * best and here["accuracy_drop"] <= limit for _, here in both]
    ahead = [(there_speed >= there_speed[i]) & (there_drop <= there_drop[i]) for i in np.flatnonzero(done)]
    return min((int(plans.sum()) for plans in ahead), default=len(both))


def one(task: tuple[str, str, float, int, int]) -> dict[str, int]:
    """For one pair, limit and seed: measurements until B had A's final quality, by where B started from."""
    source, target, limit, seed, budget = task
    a, best = search(source, limit, seed, budget), best_of(target, limit)
    alike = a.shares[-1] - table_of(target).error / best
    share = min(alike, (a.shares[-1] * best_of(source, limit) - table_of(target).error) / best)
    starts: dict[str, Recalled | None] = {"taught": None, "warm": recalled(source, a.rows, target, limit)}
    for how in LIES:
        starts[how] = recalled(source, lying(a.rows, how, seed), target, limit)
    runs = {start: search(target, limit, seed + 1000, budget, known) for start, known in starts.items()}
    runs["cold"] = search(target, limit, seed + 1000, budget, taught=False)
    by_share = {f"{start}_by_share": runs[start].until(alike) for start in ("cold", "warm")}
    counts = {start: run.until(share) for start, run in runs.items()}
    return counts | by_share | {"foreknown": foreknown(source, target, limit, share)}


def compare(seeds: int, budget: int, limits: Sequence[float], processes: int) -> list[dict[str, object]]:
    """For each pair and limit the median counts over seeds."""
    cases = list(itertools.product(related(), limits))
    tasks = [(a, b, limit, seed, budget) for (a, b), limit in cases for seed in range(seeds)]
    if processes > 1:
        with ProcessPoolExecutor(processes) as pool:
            found = list(pool.map(one, tasks))
    else:
        found = list(map(one, tasks))
    table = []
    for number, ((a, b), limit) in enumerate(cases):
        runs = found[number * seeds : (number + 1) * seeds]
        counts = {start: float(np.median([run[start] for run in runs])) for start in runs[0]}
        table.append({"from": a, "to": b, "limit": limit, **counts})
    return table


def summary(table: Sequence[Mapping[str, object]]) -> dict[str, object]:
    """The figures by name: medians over pairs and limits of the ratios to the cold start."""

    def ratio(start: str, to: str) -> float:
        return float(np.median([float(str(row[start])) / float(str(row[to])) for row in table]))

    lies = {start: ratio(start, "taught") for start in LIES}
    return {
        "warm_start_ratio": ratio("warm", "cold"),
        "warm_to_taught_ratio": ratio("warm", "taught"),
        "warm_start_ratio_by_share": ratio("warm_by_share", "cold_by_share"),
        "foreknowledge_ratio": ratio("foreknown", "cold"),
        "misleading_cost": max(lies.values()),
        **{f"{start}_cost": cost for start, cost in lies.items()},
        "pairs": table,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two seeds, one limit")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--budget", type=int, default=60)
    parser.add_argument("--processes", type=int, default=1)
    arguments = parser.parse_args()
    seeds, limits = (2, LIMITS[:1]) if arguments.quick else (arguments.seeds, LIMITS)
    table = compare(seeds, arguments.budget, limits, arguments.processes)
    figures = summary(table)
    if arguments.json:
        print(json.dumps(figures))
        return
    print(f"{'from':18}{'to':18}{'limit':>6}{'cold':>7}{'taught':>8}{'warm':>7}{'shuffled':>10}{'reversed':>10}")
    for row in table:
        counts = "".join(f"{row[name]:>{width}g}" for name, width in zip(STARTS, (7, 8, 7, 10, 10), strict=True))
        print(f"{row['from']:18}{row['to']:18}{row['limit']:>6g}{counts}")
    print(f"warm / cold, median: {figures['warm_start_ratio']:.2f}")
    print(f"warm / taught, median: {figures['warm_to_taught_ratio']:.2f}")
    print(f"warm / cold by share of the attainable: {figures['warm_start_ratio_by_share']:.2f}")
    print(f"knowing A's whole table / cold, median: {figures['foreknowledge_ratio']:.2f}")
    print(f"misleading / taught, median: {figures['misleading_cost']:.2f} (the worse of {' and '.join(LIES)})")


if __name__ == "__main__":
    main()
