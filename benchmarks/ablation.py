"""What each part of the search earns: regret at 100 evaluations with the part taken away, as a ratio to the whole; and
how near the tree comes to the best suggestion there is, beside a local search.

python benchmarks/ablation.py [--resume] [--seeds 20] [--quick] [--plot FILE] [--json]

A ratio above 1 is what the part earns; one whose 95 % interval holds 1 earns nothing that shows on these problems. Runs
are kept in benchmarks/data/search/ablation; without --resume the kept ones are read. `planning` is, by planner and by
estimates of the model that it may take, how far its suggestion lies below the best of all plans, in nats of acquisition
(mean over suggestions on tables of 15,625 and 62,208 plans; the share that is the very best in brackets).
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from searching.methods import random
from searching.planning import ESTIMATES, below_best
from searching.problems import problem
from searching.ratios import Ratio, floor, geometric
from searching.runs import DATA, Runs, in_turn
from searching.variants import VARIANTS

AT, PLANNED = 100, 6
PROBLEMS = (
    "cifar100:free",
    "cifar10:fast10",
    "imagenet:reverse",
    "protein_structure:free",
    "naval_propulsion:fast40",
    "slice_localization:reverse",
)


def compare(runs: Runs, problems: Sequence[str]) -> dict[str, Ratio]:
    """Regret without each part over regret of the whole, geometric mean over problems."""
    found = {}
    for name in VARIANTS:
        parts = []
        for of in problems:
            less, whole = runs.regrets(name, of, AT), runs.regrets("whole", of, AT)
            if name != "whole" and len(less) and len(whole):
                parts.append((less, whole, floor(_by_chance(of))))
        if parts:
            found[name] = geometric(parts)
    return found


def _by_chance(name: str) -> np.ndarray:
    of = problem(name)
    return of.regrets[[random(of, seed, [AT])[AT] for seed in range(100)]]


def planning(problems: Sequence[str], seeds: int) -> dict[str, dict[int, tuple[float, float]]]:
    """Planner → estimates → mean nats below the best suggestion, and the share that is the best."""
    gaps: dict[tuple[str, int], list[float]] = {}
    for name in problems:
        for seed in range(seeds):
            for key, found in below_best(problem(name), seed).items():
                gaps.setdefault(key, []).extend(found)
    table: dict[str, dict[int, tuple[float, float]]] = {}
    for (planner, estimates), found in gaps.items():
        values = np.array(found)
        table.setdefault(planner, {})[estimates] = (float(values.mean()), float((values < 1e-6).mean()))
    return table


def plot(ratios: dict[str, Ratio], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for place, part in enumerate(ratios.values()):
        axes.plot([part.low, part.high], [place, place], color="C0")
        axes.plot(part.value, place, "o", color="C0")
    axes.axvline(1, color="C7")
    axes.set_yticks(range(len(ratios)), [name.replace("_", " ") for name in ratios])
    axes.set(xscale="log", xlabel="regret without the part / regret of the whole")
    figure.savefig(path, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resume", action="store_true", help="add the runs that are missing up to --seeds")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--parts", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--data", type=Path, default=DATA / "ablation", help="where raw runs are kept")
    parser.add_argument("--quick", action="store_true", help="one problem, two seeds, four parts, kept nowhere")
    parser.add_argument("--plot", type=Path, help="write a picture here")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    arguments = parser.parse_args()
    problems, parts = (PROBLEMS, ["whole", *(part for part in arguments.parts if part != "whole")])
    if arguments.quick:
        problems, parts = PROBLEMS[1:2], ["whole", "no_tree", "no_rank_warp", "observed_answer"]
    runs = Runs(Path(tempfile.mkdtemp()) if arguments.quick else arguments.data, VARIANTS)
    if arguments.quick or arguments.resume:
        for job in in_turn(parts, problems, range(2 if arguments.quick else arguments.seeds)):
            runs.do(job, (AT,))
    ratios = compare(runs, problems)
    if not ratios:
        sys.exit(f"no runs are kept in {arguments.data}: --resume makes them")
    if arguments.plot:
        plot(ratios, arguments.plot)
    planned = planning(problems, 1 if arguments.quick else PLANNED)
    if arguments.json:
        figures = {name: [round(x, 4) for x in (r.value, r.low, r.high)] for name, r in ratios.items()}
        rounded = {name: {n: [round(x, 3) for x in pair] for n, pair in row.items()} for name, row in planned.items()}
        print(json.dumps(figures | {"planning": rounded}))
        return
    for name, part in sorted(ratios.items(), key=lambda item: -item[1].value):
        runs_of = min(len(runs.regrets(name, of, AT)) for of in problems)
        print(f"{name:24} {part.value:6.2f} [{part.low:.2f}, {part.high:.2f}]  ({runs_of} seeds)")
    print(f"\n{'nats below the best, at':24}" + "".join(f"{estimates:>14}" for estimates in ESTIMATES))
    for name, row in planned.items():
        print(f"{name:24}" + "".join(f"{mean:>7.2f} ({best:.0%})" for mean, best in row.values()))


if __name__ == "__main__":
    main()
