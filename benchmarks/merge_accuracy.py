"""How well merged knowledge holds the truth, and how far liars move it, beside simpler ways to merge.

    python benchmarks/merge_accuracy.py [--quick] [--json]

Six origins measure a log speed-up whose truth is 0, with a noise of 0.05 a sample and 1 to 20 samples each. In
heterogeneous cases each origin has a truth of its own, spread by 0.1 around the common one (0.05 where there are
liars, but in `wide_spread_liar`: there five honest origins alone are wrong by 0.036). A liar says 0.3 more
with 10 million samples; `worst` is the offset, of 0.1 to 10, that moves the result most. Coverage and width are of the
95 % interval; error is the mean distance from the truth. Ways to merge, beside ours: `pooled` adds all samples up,
`plain` is ours without weighing outliers down, `hard` throws out what is 3 deviations from the median. `width_ratio` is
the width of our intervals to that of the narrowest way whose intervals cover at least 92 %, the worst of the honest
cases. A division by zero ends the benchmark.
"""

import argparse
import contextlib
import json
from collections.abc import Iterator
from unittest import mock

import numpy as np
from scipy import stats

from model_opt.federation import pool
from model_opt.federation.merge_origins import Merged, merge_origins
from model_opt.federation.moments import Moments
from model_opt.federation.row import Row
from model_opt.search.plan import Choice, Plan

NOISE, ORIGINS = 0.05, 6
LIE, OFFSETS = 0.3, (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 1.0, 10.0)
HUGE = 10_000_000
HONEST = ("homogeneous", "heterogeneous", "single_samples", "four_origins", "uneven_fleets")
Sample = tuple[str, str, Moments]
"""Origin, epoch, moments."""


def honest(source: np.random.Generator, count: int, spread: float, sizes: tuple[int, ...]) -> list[Sample]:
    found = []
    for number in range(count):
        size = int(sizes[number % len(sizes)] if len(sizes) == count else source.choice(sizes))
        values = source.normal(spread * source.normal(), NOISE, size)
        found.append((f"origin-{number}", "0", Moments.of(values)))
    return found


def liar(number: int, n: int = HUGE, offset: float = LIE, variance: float = NOISE**2, epoch: str = "0") -> Sample:
    edge = 10 * variance**0.5
    moments = Moments(n=n, mean=offset, m2=variance * (n - 1), min=offset - edge, max=offset + edge)
    return f"origin-{number}", epoch, moments


def samples(case: str, source: np.random.Generator, offset: float = LIE) -> list[Sample]:
    several = (1, 2, 3, 5, 8, 20)
    match case:
        case "homogeneous":
            return honest(source, ORIGINS, 0.0, several)
        case "heterogeneous":
            return honest(source, ORIGINS, 0.1, several)
        case "single_samples":
            return honest(source, ORIGINS, 0.05, (1,))
        case "four_origins":
            return honest(source, 4, 0.1, several)
        case "uneven_fleets":
            return honest(source, 4, 0.05, (64, 1, 1, 1))
    lies = {
        "liar_huge_n": [liar(5, offset=offset)],
        "liar_zero_variance": [liar(5, n=20, offset=offset, variance=0.0)],
        "liar_eight_workers": [liar(5, n=HUGE // 8, offset=offset, epoch=str(worker)) for worker in range(8)],
        "wide_spread_liar": [liar(5, offset=offset)],
        "two_liars": [liar(4, offset=offset), liar(5, offset=offset)],
    }[case]
    spread = 0.1 if case == "wide_spread_liar" else 0.05
    return [*honest(source, ORIGINS - len({origin for origin, _, _ in lies}), spread, several), *lies]


def rows(case: str, trials: int, offset: float = LIE, metric: str = "log_speedup") -> list[Row]:
    source = np.random.default_rng(0)
    return [
        Row(
            federation="local",
            signature="0" * 32,
            plan=plan,
            context="1" * 32,
            origin=origin,
            epoch=epoch,
            sequence=1,
            moments={metric: moments},
        )
        for plan in (Plan((Choice(decision="trial", option=f"{trial:06d}"),)) for trial in range(trials))
        for origin, epoch, moments in samples(case, source, offset)
    ]


def merged(of: list[Row]) -> Merged:
    return merge_origins(of, metric="log_speedup", floor=NOISE**2)


@contextlib.contextmanager
def heeding(way: str) -> Iterator[None]:
    ours = pool.regard

    def other(mean: pool.Floats, variance: pool.Floats, discount: pool.Floats) -> pool.Floats:
        there = (discount > 0).astype(np.float64)
        if way == "plain":
            return there
        centre = pool.weighted_median(mean, discount)[:, None]
        away = np.abs(mean - centre) * there
        middle = np.sqrt(pool.weighted_median(variance, discount))
        scale = np.maximum(1.4826 * pool.weighted_median(away, discount), middle)[:, None]
        return there * (away <= 3 * scale)

    with mock.patch.object(pool, "regard", ours if way == "ours" else other):
        yield


def pooled(of: list[Row]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and half width where all samples are added up, as if they were of one deployment."""
    by_plan: dict[str, list[Moments]] = {}
    for row in of:
        by_plan.setdefault(row.plan.key, []).append(row.moments["log_speedup"])
    means, halves = [], []
    for each in by_plan.values():
        n = sum(m.n for m in each)
        mean = sum(m.n * m.mean for m in each) / n
        m2 = sum(m.m2 + m.n * (m.mean - mean) ** 2 for m in each)
        means.append(mean)
        halves.append(stats.t.ppf(0.975, n - 1) * (max(m2 / max(n - 1, 1), NOISE**2) / n) ** 0.5)
    return np.array(means), np.array(halves)


def figures(mean: np.ndarray, half: np.ndarray) -> dict[str, float]:
    away = np.abs(mean)
    covered, width = float((away <= half).mean()), float(np.median(2 * half))
    return {"coverage": 100 * covered, "width": width, "error": float(away.mean())}


def measure(case: str, trials: int) -> dict[str, dict[str, float]]:
    of = rows(case, trials)
    found = {"pooled": figures(*pooled(of))}
    for way in ("plain", "hard", "ours"):
        with heeding(way):
            result = merged(of)
            found[way] = figures(result.mean, (result.high - result.low) / 2)
    if case not in HONEST:
        errors = [float(np.abs(merged(rows(case, trials // 4, offset)).mean).mean()) for offset in OFFSETS]
        found["ours"] |= {"worst": max(errors), "worst_offset": OFFSETS[int(np.argmax(errors))]}
        named = sum("origin-5" in names for names in result.outliers)
        found["ours"]["reported"] = 100 * named / len(result)
    return found


def exact(trials: int) -> float:
    """Percent of cases where the honest size is kept and the liar named, one of four lying about an exact metric."""
    truth = Moments.of([1.25])
    of = [
        Row(
            federation="local",
            signature="0" * 32,
            plan=Plan((Choice(decision="trial", option=str(trial)),)),
            context="1" * 32,
            origin=f"origin-{number}",
            epoch="0",
            sequence=1,
            moments={"log_size_ratio": truth if number else Moments.of([1.9] * 50)},
        )
        for trial in range(trials)
        for number in range(4)
    ]
    result = merge_origins(of, metric="log_size_ratio", floor=1.0)
    right = [
        bool(ok) and mean == 1.25 and variance == 0 and names == ("origin-0",)
        for ok, mean, variance, names in zip(result.agreed, result.mean, result.variance, result.outliers, strict=True)
    ]
    return 100 * sum(right) / trials


def width_ratio(ways: dict[str, dict[str, float]]) -> float:
    good = [found["width"] for found in ways.values() if found["coverage"] >= 92]
    return ways["ours"]["width"] / min([*good, ways["ours"]["width"]])


CASES = (*HONEST, "liar_huge_n", "liar_zero_variance", "liar_eight_workers", "wide_spread_liar", "two_liars")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="400 trials of each case instead of 2,000")
    parser.add_argument("--json", action="store_true", help="figures as JSON")
    arguments = parser.parse_args()
    trials = 400 if arguments.quick else 2000
    with np.errstate(divide="raise", invalid="raise"):
        table = {case: measure(case, trials) for case in CASES}
    summary = {
        "coverage": min(table[case]["ours"]["coverage"] for case in HONEST),
        "width_ratio": max(width_ratio(table[case]) for case in HONEST),
        "coverage_heterogeneous": table["heterogeneous"]["ours"]["coverage"],
        "one_liar_error": max(table[case]["ours"]["error"] for case in CASES if case.startswith("liar")),
        "one_liar_error_worst": max(table[case]["ours"]["worst"] for case in CASES if case.startswith("liar")),
        "one_liar_error_wide_spread": table["wide_spread_liar"]["ours"]["error"],
        "two_liars_error": table["two_liars"]["ours"]["error"],
        "exact_right": exact(trials // 4),
    }
    if arguments.json:
        print(json.dumps({**summary, "cases": table}, indent=1))
        return
    for case, ways in table.items():
        for way, found in ways.items():
            print(f"{case:20} {way:8}" + "  ".join(f"{name} {value:.3f}" for name, value in found.items()))
    for name, value in summary.items():
        print(f"{name:24} {value:.3f}")


if __name__ == "__main__":
    main()
