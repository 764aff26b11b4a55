"""Regret of the recommended plan on tables that nobody here made: ours against what others would use.

python benchmarks/search_quality.py [--resume] [--seeds 30] [--quick] [--plot FILE] [--json]

NAS-Bench-201 and the HPOLib networks (`pip install 'model_opt[bench]'`), each without a limit, with a limit on the time
at its 40 % and its 10 % quantile, and the other way round (shortest time within a limit on the loss); and the tables of
compression plans. A measurement is one of the table's repeats; the truth is their mean; an infeasible answer counts as
much as the median feasible plan. Optuna and the others recommend the best plan they saw, ours the best it believes in.

Ratios are (our mean regret + ε) / (TPE's + ε), ε = 2 % of random search's mean regret at 100 evaluations there.
`ratio_to_tpe` is their geometric mean at 100, `within_ratio` that over the reverse problems, `held_out_ratio_to_tpe`
that over tables which nothing was chosen on, `others_tables_…` and `compression_…` those over the two kinds of tables.
Raw runs are kept in benchmarks/data/search; without --resume nothing is run, the kept ones are read.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import plan_tables
from searching.methods import METHODS, SLOW
from searching.problems import names
from searching.ratios import Ratio, floor, geometric, ratio
from searching.runs import DATA, Runs, in_turn

CHECKPOINTS = (25, 50, 100, 200)
AT = 100
NAMED = (
    "cifar100:free",
    "imagenet:fast40",
    "cifar10:reverse",
    "protein_structure:free",
    "naval_propulsion:fast10",
    "parkinsons_telemonitoring:reverse",
)
"""The problems on which slow methods run too."""
QUICK = ("cifar100:fast40", "imagenet:reverse")
TUNED_ON = ("cifar10", "protein_structure", "slice_localization")
"""Tables that the recipe was chosen on, with seeds from 1000 on; seeds below are for reporting."""


def run(runs: Runs, seeds: int, methods: Sequence[str], problems: Sequence[str]) -> None:
    """Adds the runs that are missing, the fast methods first."""
    fast = [method for method in methods if method not in SLOW]
    for job in in_turn(fast, problems, range(seeds)):
        runs.do(job, CHECKPOINTS)
    slow = [method for method in methods if method in SLOW]
    for job in in_turn(slow, [name for name in NAMED if name in problems], range(min(seeds, 5))):
        runs.do(job, CHECKPOINTS[:3])


def compare(runs: Runs, problems: Sequence[str], at: int) -> dict[str, dict[str, Ratio]]:
    """Problem → other method → our ratio to it, where there are runs of both."""
    table: dict[str, dict[str, Ratio]] = {}
    for name in problems:
        own, drawn = runs.regrets("ours", name, at), runs.regrets("random", name, AT)
        for other in METHODS:
            theirs = runs.regrets(other, name, at)
            if other != "ours" and len(own) and len(theirs) and len(drawn):
                table.setdefault(name, {})[other] = ratio(own, theirs, floor(drawn))
    return table


def overall(runs: Runs, problems: Sequence[str], other: str, at: int) -> Ratio | None:
    parts = []
    for name in problems:
        own, theirs = runs.regrets("ours", name, at), runs.regrets(other, name, at)
        drawn = runs.regrets("random", name, AT)
        if len(own) and len(theirs) and len(drawn):
            parts.append((own, theirs, floor(drawn)))
    return geometric(parts) if parts else None


def worse_than_best(runs: Runs, problems: Sequence[str]) -> list[str]:
    """Problems where the best other method is better than ours by more than noise."""
    found = []
    for name, others in compare(runs, problems, AT).items():
        if max(part.low for part in others.values()) > 1.0:
            found.append(name)
    return found


def figures(runs: Runs, problems: Sequence[str]) -> dict[str, object]:
    reverse = [name for name in problems if name.endswith(":reverse")]
    out: dict[str, object] = {"problems": len(problems), "seeds": _seeds(runs, problems)}
    for key, some, at in (
        ("ratio_to_tpe", problems, AT),
        ("within_ratio", reverse, AT),
        *((f"ratio_to_tpe_at_{at}", problems, at) for at in CHECKPOINTS if at != AT),
    ):
        found = overall(runs, some, "tpe", at)
        if found is not None:
            out |= {key: round(found.value, 4), f"{key}_interval": [round(found.low, 4), round(found.high, 4)]}
    held_out = [name for name in problems if name.partition(":")[0] not in TUNED_ON]
    compression = [name for name in problems if name.partition(":")[0] in plan_tables.NAMES]
    for key, some in (
        ("held_out_ratio_to_tpe", held_out),
        ("compression_ratio_to_tpe", compression),
        ("others_tables_ratio_to_tpe", [name for name in problems if name not in compression]),
    ):
        if (found := overall(runs, some, "tpe", AT)) is not None:
            out[key] = round(found.value, 4)
    for other in METHODS:
        if other not in ("ours", "tpe") and (found := overall(runs, problems, other, AT)) is not None:
            out[f"ratio_to_{other}"] = round(found.value, 4)
    return out | {"worse_than_best_other": worse_than_best(runs, problems)}


def _seeds(runs: Runs, problems: Sequence[str]) -> Mapping[str, int]:
    """The fewest runs on any problem, by method."""
    return {
        method: min((n for name in problems if (n := len(runs.regrets(method, name, AT)))), default=0)
        for method in METHODS
    }


def show(runs: Runs, problems: Sequence[str]) -> None:
    print(
        f"{'problem, regret at 100 (runs)':36}" + "".join(f"{method:>16}" for method in METHODS) + "   to TPE's (95 %)"
    )
    table = compare(runs, problems, AT)
    for name in problems:
        cells = []
        for method in METHODS:
            regrets = runs.regrets(method, name, AT)
            cells.append(f"{regrets.mean():.4g} ({len(regrets)})" if len(regrets) else "-")
        part = table.get(name, {}).get("tpe")
        tail = f"   {part.value:.2f} [{part.low:.2f}, {part.high:.2f}]" if part else ""
        print(f"{name:36}" + "".join(f"{cell:>16}" for cell in cells) + tail)
    for key, value in figures(runs, problems).items():
        print(f"{key}: {value}")


def plot(runs: Runs, problems: Sequence[str], path: Path) -> None:
    """Regret as a share of random search's at 100, geometric mean over problems, by evaluations."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for method in METHODS:
        line = []
        for at in CHECKPOINTS:
            shares = []
            for name in problems:
                regrets, drawn = runs.regrets(method, name, at), runs.regrets("random", name, AT)
                if len(regrets) and len(drawn):
                    epsilon = floor(drawn)
                    shares.append(np.log((regrets.mean() + epsilon) / (drawn.mean() + epsilon)))
            if len(shares) == len(problems) or (shares and method in SLOW):
                line.append((at, np.exp(np.mean(shares))))
        if line:
            label = f"{method} (some problems)" if method in SLOW else method
            axes.plot(*zip(*line, strict=True), marker="o", label=label)
    axes.set(xlabel="evaluations", ylabel="regret, share of random's at 100", yscale="log")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resume", action="store_true", help="add the runs that are missing up to --seeds")
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--methods", nargs="+", default=["random", "evolution", "tpe", "ours"], choices=list(METHODS))
    parser.add_argument("--problems", nargs="+", default=names(), metavar="TABLE:KIND", help=", ".join(names()))
    parser.add_argument("--data", type=Path, default=DATA, help="where raw runs are kept")
    parser.add_argument("--quick", action="store_true", help="two problems, two seeds, kept nowhere")
    parser.add_argument("--plot", type=Path, help="write a picture here")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    arguments = parser.parse_args()
    problems = arguments.problems
    if arguments.quick:
        problems = QUICK
        runs = Runs(Path(tempfile.mkdtemp()))
        run(runs, 2, arguments.methods, problems)
    else:
        runs = Runs(arguments.data)
        if arguments.resume:
            run(runs, arguments.seeds, arguments.methods, problems)
        elif not any(len(runs.regrets("ours", name, AT)) for name in problems):
            sys.exit(f"no runs are kept in {arguments.data}: --resume makes them")
    if arguments.plot:
        plot(runs, problems, arguments.plot)
    if arguments.json:
        print(json.dumps(figures(runs, problems)))
    else:
        show(runs, problems)


if __name__ == "__main__":
    main()
