"""Many workers against one with the same total budget, B = 104: does searching together cost anything?

python benchmarks/federated_search.py [--resume] [--seeds 30] [--quick] [--plot FILE] [--json]

Workers see one another's measurements a round late, believe what is in flight, and explore only plans that they own
(rendezvous hashing); nothing else keeps them apart, but for leases where leaders are measured again. A score is scaled
so that random search's mean is 0 and the optimum is 1. `loss_8` is how much lower the score of 8 workers with B / 8
measurements each is than that of one worker with B, and `loss_8_upper` the upper end of the paired 95 % interval over
seeds and problems; likewise `loss_32`. `distinct_share` is the least share of explored plans that were not repeated.
`regret_to_apart` is regret of 8 workers as a share of that of 8 searches that know nothing of one another. Also:
unequal speeds, and a worker that ends for good half-way.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from searching.fleet import Fleet, Found, Simulation, apart
from searching.methods import random
from searching.problems import Problem, problem
from searching.runs import DATA, in_turn, kept_lines

BUDGET = 104
PROBLEMS = ("cifar100:fast40", "imagenet:free", "naval_propulsion:fast10", "protein_structure:reverse")
_FLEETS: Mapping[str, Fleet] = {
    "one": Fleet(speeds=(1.0,)),
    "eight": Fleet(speeds=(1.0,) * 8),
    "thirty_two": Fleet(speeds=(1.0,) * 32),
    "eight_unequal": Fleet(speeds=(2.0, 2.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5)),
    "eight_one_ends": Fleet(speeds=(1.0,) * 8, dies_at=BUDGET / 16),
}
WAYS: Mapping[str, Callable[[Problem, int], Found]] = {
    **{n: lambda p, seed, fleet=fleet: Simulation(p, fleet, BUDGET, seed).run() for n, fleet in _FLEETS.items()},
    "eight_apart": lambda p, seed: apart(p, 8, BUDGET, seed),
}


class Kept:
    """Runs in a file, one a line: `{"way", "problem", "seed", "row", "distinct"}`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        kept = kept_lines(path) if path.exists() else []
        self.found = {(raw["way"], raw["problem"], raw["seed"]): raw for raw in kept}

    def add(self, way: str, name: str, seed: int) -> None:
        if (way, name, seed) in self.found:
            return
        found = WAYS[way](problem(name), seed)
        raw = {"way": way, "problem": name, "seed": seed, "row": found.row, "distinct": round(found.distinct, 4)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(raw) + "\n")
        self.found[way, name, seed] = raw

    def pairs(self, way: str, other: str) -> list[tuple[str, int, int]]:
        """(problem, row of `way`, row of `other`) of every seed that both have."""
        return [
            (name, raw["row"], self.found[other, name, seed]["row"])
            for (which, name, seed), raw in self.found.items()
            if which == way and (other, name, seed) in self.found
        ]


@cache
def by_chance(name: str) -> float:
    """Random search's mean regret at the budget, over 200 runs."""
    table = problem(name)
    return float(np.mean([table.regrets[random(table, seed, [BUDGET])[BUDGET]] for seed in range(200)]))


def score(name: str, row: int) -> float:
    return 1.0 - float(problem(name).regrets[row]) / by_chance(name)


def lost(kept: Kept, way: str) -> tuple[float, float, int] | None:
    """Mean loss of score against one worker, the upper end of its paired 95 % interval, and the pairs."""
    pairs = kept.pairs(way, "one")
    if len(pairs) < 2:
        return None
    losses = np.array([score(name, alone) - score(name, row) for name, row, alone in pairs])
    return float(losses.mean()), float(losses.mean() + 1.96 * losses.std(ddof=1) / len(losses) ** 0.5), len(losses)


def figures(kept: Kept) -> dict[str, object]:
    out: dict[str, object] = {}
    for way in _FLEETS:
        if way != "one" and (found := lost(kept, way)) is not None:
            key = {"eight": "loss_8", "thirty_two": "loss_32"}.get(way, f"loss_{way}")
            out |= {key: round(found[0], 4), f"{key}_upper": round(found[1], 4), f"{key}_pairs": found[2]}
    together = [raw["distinct"] for (way, _, _), raw in kept.found.items() if way not in ("one", "eight_apart")]
    if together:
        out |= {"distinct_share": min(together), "distinct_share_mean": round(float(np.mean(together)), 4)}
    shares = {}
    for name in PROBLEMS:
        pairs = [(row, alone) for which, row, alone in kept.pairs("eight", "eight_apart") if which == name]
        if pairs:
            mine, theirs = (problem(name).regrets[list(rows)].mean() for rows in zip(*pairs, strict=True))
            floor = 0.02 * by_chance(name)
            shares[name] = round(float((mine + floor) / (theirs + floor)), 4)
    if shares:
        out |= {"regret_to_apart": round(float(np.exp(np.mean(np.log(list(shares.values()))))), 4)}
        out |= {"regret_to_apart_by_problem": shares}
    return out


def show(kept: Kept) -> None:
    print(f"{'mean score (runs)':28}" + "".join(f"{way:>18}" for way in WAYS))
    for name in PROBLEMS:
        cells = []
        for way in WAYS:
            scores = [score(name, raw["row"]) for (w, n, _), raw in kept.found.items() if (w, n) == (way, name)]
            cells.append(f"{np.mean(scores):.3f} ({len(scores)})" if scores else "-")
        print(f"{name:28}" + "".join(f"{cell:>18}" for cell in cells))
    for key, value in figures(kept).items():
        print(f"{key}: {value}")


def plot(kept: Kept, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for way in WAYS:
        means = []
        for name in PROBLEMS:
            scores = [score(name, raw["row"]) for (w, n, _), raw in kept.found.items() if (w, n) == (way, name)]
            means.append(np.mean(scores) if scores else np.nan)
        axes.plot(range(len(PROBLEMS)), means, marker="o", linestyle="", label=way.replace("_", " "))
    axes.set_xticks(range(len(PROBLEMS)), PROBLEMS, rotation=20, ha="right")
    axes.set(ylabel="score: 0 random, 1 optimum")
    axes.legend()
    figure.savefig(path, bbox_inches="tight")


def run(kept: Kept, seeds: int, ways: Sequence[str], problems: Sequence[str]) -> None:
    for job in in_turn(ways, problems, range(seeds)):
        kept.add(job.method, job.problem, job.seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resume", action="store_true", help="add the runs that are missing up to --seeds")
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--data", type=Path, default=DATA / "federated" / "runs.jsonl", help="where runs are kept")
    parser.add_argument("--quick", action="store_true", help="one problem, two seeds, 8 workers, kept nowhere")
    parser.add_argument("--plot", type=Path, help="write a picture here")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    arguments = parser.parse_args()
    if arguments.quick:
        kept = Kept(Path(tempfile.mkdtemp()) / "runs.jsonl")
        run(kept, 2, ("one", "eight", "eight_apart"), PROBLEMS[:1])
    else:
        kept = Kept(arguments.data)
        if arguments.resume:
            run(kept, arguments.seeds, arguments.ways, PROBLEMS)
        elif not kept.found:
            sys.exit(f"no runs are kept in {arguments.data}: --resume makes them")
    if arguments.plot:
        plot(kept, arguments.plot)
    if arguments.json:
        print(json.dumps(figures(kept)))
    else:
        show(kept)


if __name__ == "__main__":
    main()
