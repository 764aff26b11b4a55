"""What each part of the search earns: regret at 100 evaluations with the part taken away, as a ratio to the whole.

python benchmarks/ablation.py [--resume] [--seeds 20] [--quick] [--plot FILE] [--json]

A ratio above 1 is what the part earns; one whose 95 % interval holds 1 shows nothing of it in the regret. The mean
regret is ruled by the rare answer that breaks a limit; `typical` is the geometric mean of the ratios run by run, with
the same seeds, over all problems and over those that are compression plans. Beside them:

- `infeasible`: the share of answers, where there is a limit, that do not hold it in truth;
- `planning`: by planner and by estimates of the model that it may take, how far its suggestion lies below the best of
  all plans, in nats of acquisition (mean over suggestions; the share that is the very best in brackets);
- `prediction`: log density of unseen plans after 30 drawn at random, in nats a plan, and their rank correlation with
  what is foretold, each less that of the whole model, with standard errors; `hypercube` is ten first plans by Latin
  hypercube less ten drawn at random;
- `telling`: how far what is said of the answer is from the truth without verification, as a ratio to the whole.

Runs are kept in benchmarks/data/search/ablation; without --resume the kept ones are read (`planning`, `prediction` and
`telling` are made anew, three minutes).
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from searching.methods import random
from searching.planning import ESTIMATES, below_best
from searching.prediction import MODELS, foretold
from searching.problems import problem
from searching.ratios import Ratio, floor, geometric
from searching.runs import DATA, Runs, in_turn
from searching.telling import told
from searching.variants import VARIANTS

AT, PLANNED, FORETOLD, TOLD = 100, 6, 60, 12
PROBLEMS = (
    "cifar100:free",
    "cifar10:fast10",
    "imagenet:reverse",
    "protein_structure:free",
    "naval_propulsion:fast40",
    "slice_localization:reverse",
)
COMPRESSION = ("residual:reverse", "plain_wide:fast10", "vit_small:reverse", "vit_wide:fast40")
"""Tables of real compression plans; they are small, so their plans are listed and no planner is needed."""


def pairs(runs: Runs, name: str, problems: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray, float]]:
    """Of each problem: regrets without a part, of the whole with the same seeds, and ε; nothing where a run lacks."""
    found = []
    for of in problems:
        less, whole = runs.regrets(name, of, AT), runs.regrets("whole", of, AT)
        both = min(len(less), len(whole))  # seeds count from 0
        if both:
            found.append((less[:both], whole[:both], floor(_by_chance(of))))
    return found


def compare(runs: Runs, problems: Sequence[str]) -> dict[str, Ratio]:
    """Mean regret without each part over that of the whole, geometric mean over problems."""
    parts = {name: pairs(runs, name, problems) for name in VARIANTS if name != "whole"}
    return {name: geometric(found) for name, found in parts.items() if found}


def typical(runs: Runs, problems: Sequence[str]) -> dict[str, Ratio]:
    """Geometric mean over seeds and problems of the ratio of two runs with one seed; normal interval."""
    table = {}
    for name in VARIANTS:
        logs = [np.log((less + e) / (whole + e)) for less, whole, e in pairs(runs, name, problems)]
        if name == "whole" or not logs or len(logs[0]) < 2:
            continue
        mean = float(np.mean([each.mean() for each in logs]))
        error = float(np.sqrt(np.sum([each.var(ddof=1) / len(each) for each in logs]))) / len(logs)
        value, low, high = np.exp([mean, mean - 1.96 * error, mean + 1.96 * error])
        table[name] = Ratio(value=float(value), low=float(low), high=float(high))
    return table


def infeasible(runs: Runs, problems: Sequence[str]) -> dict[str, float]:
    """Part → the share of answers without it that break the problem's limit in truth."""
    found = {}
    for name in VARIANTS:
        limited = [of for of in problems if problem(of).objective.limits]
        broken = [~problem(of).feasible[runs.rows(name, of, AT)] for of in limited]
        if len(np.concatenate(broken)):
            found[name] = float(np.concatenate(broken).mean())
    return found


def prediction(problems: Sequence[str], seeds: int) -> dict[str, list[tuple[float, float] | None]]:
    """Part → (difference, standard error) of the log density, and of the rank correlation."""
    found = [foretold(problem(of), seed) for of in problems for seed in range(seeds)]
    compared = {name: (name, "whole") for name in MODELS if name != "whole"} | {"hypercube": ("hypercube", "random")}
    table: dict[str, list[tuple[float, float] | None]] = {}
    for name, (one, other) in compared.items():
        less = np.array([np.subtract(each[one], each[other]) for each in found])
        error = less.std(axis=0, ddof=1) / len(less) ** 0.5 if len(less) > 1 else np.full(2, np.nan)
        table[name] = [(float(x), float(e)) for x, e in zip(less.mean(axis=0), error, strict=True)]
    table["no_rank_warp"][0] = None  # its density is in other units
    return table


def telling(problems: Sequence[str], seeds: int) -> dict[str, Any]:
    """What verification does for what is said of the answer: `error`, the ratio of the mean errors without and with it
    (geometric mean over noisy metrics and problems), and how many 95 % intervals hold the truth."""
    parts, inside = [], {"whole": [], "no_verification": []}
    for of in problems:
        one, other = ([told(problem(of), seed, AT, verify=v) for seed in range(seeds)] for v in (True, False))
        for metric in one[0]:
            errors = [np.array([found[metric][0] for found in which]) for which in (other, one)]
            parts.append((*errors, 0.0))
            inside["whole"] += [found[metric][1] for found in one]
            inside["no_verification"] += [found[metric][1] for found in other]
    error = geometric(parts)
    shares = {name: float(np.mean(held)) for name, held in inside.items()}
    return {"error": (error.value, error.low, error.high), "inside": shares}


@cache
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
    problems, others = (*PROBLEMS, *COMPRESSION), PROBLEMS
    parts = ["whole", *(part for part in arguments.parts if part != "whole")]
    if arguments.quick:
        problems, others = (PROBLEMS[1], COMPRESSION[0]), PROBLEMS[1:2]
        parts = ["whole", "no_tree", "no_rank_warp", "observed_answer"]
    runs = Runs(Path(tempfile.mkdtemp()) if arguments.quick else arguments.data, VARIANTS)
    if arguments.quick or arguments.resume:
        for job in in_turn(parts, problems, range(2 if arguments.quick else arguments.seeds)):
            runs.do(job, (AT,))
    ratios = compare(runs, problems)
    if not ratios:
        sys.exit(f"no runs are kept in {arguments.data}: --resume makes them")
    if arguments.plot:
        plot(ratios, arguments.plot)
    usual, compression = typical(runs, problems), typical(runs, [of for of in problems if of in COMPRESSION])
    found = {
        "typical": {name: (r.value, r.low, r.high) for name, r in usual.items()},
        "typical_compression": {name: (r.value, r.low, r.high) for name, r in compression.items()},
        "infeasible": infeasible(runs, problems),
        "planning": planning(others, 1 if arguments.quick else PLANNED),
        "telling": telling(others, 2 if arguments.quick else TOLD),
        "prediction": prediction(others, 2 if arguments.quick else FORETOLD),
    }
    if arguments.json:
        figures = {name: [round(x, 4) for x in (r.value, r.low, r.high)] for name, r in ratios.items()}
        print(json.dumps(json.loads(json.dumps(figures | found), parse_float=lambda text: round(float(text), 4))))
        return
    heads = "".join(f"{head:>22}" for head in ("mean regret / whole", "typical ratio", "compression"))
    print(f"{'without':22}{heads}{'infeasible':>12}{'seeds':>8}")
    for name, part in sorted(ratios.items(), key=lambda item: -item[1].value):
        seeds = [len(less) for less, _, _ in pairs(runs, name, problems)]
        three = (part, usual[name], compression[name])
        cells = "".join(f"{f'{r.value:.2f} [{r.low:.2f}, {r.high:.2f}]':>22}" for r in three)
        print(f"{name:22}{cells}{found['infeasible'].get(name, 0):>12.1%}{f'{min(seeds)}-{max(seeds)}':>8}")
    print(f"{'(whole)':88}{found['infeasible'].get('whole', 0):>12.1%}")
    print(f"\n{'nats below the best, estimates:':32}" + "".join(f"{estimates:>14}" for estimates in ESTIMATES))
    for name, row in found["planning"].items():
        print(f"{name:32}" + "".join(f"{mean:>7.2f} ({best:4.0%})" for mean, best in row.values()))
    print(f"\n{'what is foretold, less the whole:':34}{'log density':>20}{'rank correlation':>20}")
    for name, row in found["prediction"].items():
        print(f"{name:34}" + "".join(f"{cell[0]:>12.3f} ± {cell[1]:.3f}" if cell else 20 * " " for cell in row))
    error, inside = found["telling"]["error"], found["telling"]["inside"]
    print("\nwhat is said of the answer:")
    print(f"error without verification / with it: {error[0]:.2f} [{error[1]:.2f}, {error[2]:.2f}]")
    print(f"95 % intervals that hold the truth: {inside['whole']:.0%}, without {inside['no_verification']:.0%}")


if __name__ == "__main__":
    main()
