"""The Pareto front of a result as a picture."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_opt.autotuner.figures import faster, lost, smaller
from model_opt.autotuner.result import CompressionResult
from model_opt.errors import InvalidInput, MissingDependency

FORMATS = (".svg", ".png", ".pdf")
NEEDED = frozenset({"log_speedup", "log_size_ratio", "accuracy_drop"})
BLUE, GREY, RED = "#4477aa", "#888888", "#cc3311"


def draw_pareto(result: CompressionResult, path: Path) -> None:
    """Draws speed-up against how much smaller the model gets, for every measured plan: open where it loses too much.

    The best trade-offs of both within the limit are joined, the chosen plan is a diamond with the interval of its
    speed-up. Raises `InvalidInput` for a format other than `FORMATS`, `MissingDependency` without matplotlib.
    """
    if path.suffix not in FORMATS:
        raise InvalidInput(f"cannot draw {path.suffix or path}: choose one of {', '.join(FORMATS)}")
    try:
        import matplotlib
    except ImportError as error:
        raise MissingDependency("matplotlib", "report") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context({"font.size": 10, "svg.fonttype": "path", "svg.hashsalt": "model_opt"}):
        figure, axes = pyplot.subplots(figsize=(8, 4.8), layout="constrained")
        axes.spines[["top", "right"]].set_visible(False)
        _draw(result, axes)
        figure.savefig(path, dpi=120, metadata={"Date": None} if path.suffix == ".svg" else None)
        pyplot.close(figure)


@dataclass(frozen=True, kw_only=True)
class _Dot:
    """A measured plan: times faster, times smaller, and the accuracy lost as a share."""

    faster: float
    smaller: float
    lost: float


def _draw(result: CompressionResult, axes: Any) -> None:
    limit = result.constraints["max_accuracy_drop"]
    dots = [
        _Dot(
            faster=math.exp(seen.metrics["log_speedup"]),
            smaller=math.exp(seen.metrics["log_size_ratio"]),
            lost=seen.metrics["accuracy_drop"],
        )
        for seen in result.observations
        if seen.failure is None and seen.plan != result.plan and seen.metrics.keys() >= NEEDED
    ]  # the chosen plan is drawn as it was measured in fresh processes
    speedup = result.figures["speedup"]
    chosen = _Dot(faster=speedup.value, smaller=result.compression_ratio, lost=result.accuracy_drop)
    kept = [dot for dot in dots if dot.lost <= limit]
    _scatter(axes, kept, f"loses at most {100 * limit:g}% of the accuracy", facecolors=BLUE, edgecolors=BLUE)
    _scatter(axes, [dot for dot in dots if dot.lost > limit], "loses more", facecolors="none", edgecolors=GREY)
    front = sorted(_front([*kept, chosen]), key=lambda dot: dot.faster)
    xs, ys = [dot.faster for dot in front], [dot.smaller for dot in front]
    if len(front) > 1:
        axes.plot(xs, ys, color=BLUE, linewidth=1, drawstyle="steps-pre", label="best trade-offs", zorder=1)
    axes.errorbar(
        [chosen.faster],
        [chosen.smaller],
        xerr=[[speedup.value - speedup.low], [speedup.high - speedup.value]],
        fmt="D",
        color=RED,
        markersize=8,
        capsize=4,
        label=f"chosen: {faster(chosen.faster)}, {smaller(chosen.smaller)}, {lost(chosen.lost)}",
        zorder=3,
    )
    _axes(axes, [speedup.low, speedup.high, 1.0, *(dot.faster for dot in dots)], "x", "times faster")
    _axes(axes, [chosen.smaller, 1.0, *(dot.smaller for dot in dots)], "y", "times smaller")
    axes.axvline(1.0, color=GREY, linewidth=0.8, linestyle=":")
    axes.axhline(1.0, color=GREY, linewidth=0.8, linestyle=":")
    axes.grid(alpha=0.25)
    axes.legend(loc="lower right", fontsize=8)


def _scatter(axes: Any, dots: Sequence[_Dot], label: str, **colors: str) -> None:
    if dots:
        xs, ys = [dot.faster for dot in dots], [dot.smaller for dot in dots]
        axes.scatter(xs, ys, s=46, alpha=0.75, linewidths=1.4, label=f"{label} ({len(dots)})", zorder=2, **colors)


def _front(dots: Sequence[_Dot]) -> list[_Dot]:
    """Those that no other beats in speed and size at once."""

    def beaten(dot: _Dot) -> bool:
        return any(
            other.faster >= dot.faster
            and other.smaller >= dot.smaller
            and (other.faster, other.smaller) != (dot.faster, dot.smaller)
            for other in dots
        )

    return [dot for dot in dots if not beaten(dot)]


def _axes(axes: Any, values: Sequence[float], name: str, title: str) -> None:
    """A logarithmic axis around `values` whose ticks are plain numbers: 1x, 2x, 5x."""
    from matplotlib import ticker

    axis, low, high = getattr(axes, f"{name}axis"), min(values), max(values)
    getattr(axes, f"set_{name}scale")("log")
    margin = max((high / low) ** 0.08, 1.08)
    getattr(axes, f"set_{name}lim")(low / margin, high * margin)
    subs = (1, 2, 5) if high / low > 8 else (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)
    axis.set_major_locator(ticker.LogLocator(subs=subs))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}x"))
    axis.set_minor_formatter(ticker.NullFormatter())
    axis.set_label_text(title)
