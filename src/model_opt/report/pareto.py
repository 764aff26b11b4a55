"""The Pareto front of a result as a picture."""

import math
from pathlib import Path
from typing import Any

from model_opt.autotuner.result import CompressionResult, Observed
from model_opt.errors import InvalidInput, MissingDependency

FORMATS = (".svg", ".png", ".pdf")


def draw_pareto(result: CompressionResult, path: Path) -> None:
    """Draws speed-up against accuracy lost for every measured plan; the area of a dot is how much smaller it is.

    The front is joined by a line, the chosen plan ringed, the limit on accuracy dashed. Raises `InvalidInput` for a
    format other than `FORMATS`, `MissingDependency` without matplotlib.
    """
    if path.suffix not in FORMATS:
        raise InvalidInput(f"cannot draw {path.suffix or path}: choose one of {', '.join(FORMATS)}")
    try:
        import matplotlib
    except ImportError as error:
        raise MissingDependency("matplotlib", "report") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context({"font.size": 10, "svg.fonttype": "none", "svg.hashsalt": "model_opt"}):
        figure, axes = pyplot.subplots(figsize=(8, 4.8), layout="constrained")
        _draw(result, axes)
        figure.savefig(path, dpi=120, metadata={"Date": None} if path.suffix == ".svg" else None)
        pyplot.close(figure)


def _draw(result: CompressionResult, axes: Any) -> None:
    needed = {"log_speedup", "log_size_ratio", "accuracy_drop"}
    seen = [one for one in result.observations if one.failure is None and needed <= one.metrics.keys()]
    axes.scatter(
        [math.exp(one.metrics["log_speedup"]) for one in seen],
        [100 * one.metrics["accuracy_drop"] for one in seen],
        s=[_area(one) for one in seen],
        color="#4477aa",
        alpha=0.55,
        label=f"{len(seen)} measured plans (area: times smaller)",
    )
    front = sorted(result.pareto, key=lambda point: point.speedup)
    best_so_far = [
        p for p in front if not any(q.speedup > p.speedup and q.accuracy_drop <= p.accuracy_drop for q in front)
    ]
    axes.plot(
        [point.speedup for point in best_so_far],
        [100 * point.accuracy_drop for point in best_so_far],
        color="#222222",
        linewidth=1,
        drawstyle="steps-post",
        label="best trade-offs of speed and accuracy",
    )
    speedup, drop = result.figures["speedup"], result.figures["accuracy_drop"]
    axes.errorbar(
        [speedup.value],
        [100 * drop.value],
        xerr=[[speedup.value - speedup.low], [speedup.high - speedup.value]],
        fmt="D",
        color="#cc3311",
        markersize=7,
        capsize=4,
        label=f"chosen: {speedup.value:.1f}x faster, {result.compression_ratio:.1f}x smaller",
    )
    axes.axhline(
        100 * result.constraints["max_accuracy_drop"], color="#cc3311", linestyle="--", linewidth=1, label="limit"
    )
    axes.set_xscale("log")
    axes.set_yscale("symlog", linthresh=max(100 * result.constraints["max_accuracy_drop"], 0.1))
    axes.set_xlabel("times faster than the original, measured in turn")
    axes.set_ylabel(f"points lost ({result.accuracy_source})")
    axes.grid(alpha=0.25)
    axes.legend(loc="upper left", fontsize=8)


def _area(seen: Observed) -> float:
    return 22 * math.exp(seen.metrics["log_size_ratio"])
