"""A result in a notebook, and as a data frame."""

import math
from html import escape
from typing import TYPE_CHECKING

from model_opt.autotuner.result import CompressionResult, ParetoPoint
from model_opt.autotuner.trackers import scalars
from model_opt.errors import MissingDependency

if TYPE_CHECKING:
    from pandas import DataFrame

_WIDTH, _HEIGHT, _EDGE = 320, 150, 14
_ROWS = {"speedup": "times faster", "compression_ratio": "times smaller", "accuracy_drop": "accuracy lost"}


def as_frame(result: CompressionResult) -> "DataFrame":
    """One row a settled plan: `at_s`, `purpose`, `worker`, the metrics, each decision's option, `failure`, `pareto`.

    Raises `MissingDependency` without pandas.
    """
    try:
        import pandas
    except ImportError as error:
        raise MissingDependency("pandas", "report") from error
    front = {point.plan for point in result.pareto}
    rows = [
        {"plan": str(seen.plan), "purpose": seen.purpose, "worker": seen.worker, "at_s": seen.at_s}
        | scalars(seen)
        | {choice.decision: choice.option for choice in seen.plan.choices}
        | {"failure": seen.failure, "pareto": seen.failure is None and seen.plan in front}
        for seen in result.observations
    ]
    return pandas.DataFrame(rows)


def as_html(result: CompressionResult) -> str:
    """A small table and a sketch of the trade-offs; no script, no style sheet, in the notebook's own colours."""
    rows = "".join(
        f"<tr><th style='text-align:left'>{what}</th>"
        f"<td style='text-align:right'><b>{_shown(name, figure.value)}</b></td>"
        f"<td style='opacity:.7'>{_shown(name, figure.low)} … {_shown(name, figure.high)}</td></tr>"
        for name, what in _ROWS.items()
        for figure in [result.figures[name]]
    )
    held = "all constraints hold" if result.feasible else "<b>the constraints do not all hold</b>"
    words = (
        f"<div>{escape(str(result.plan))}</div><div style='opacity:.7'>{held}; accuracy by "
        f"{escape(result.accuracy_source)}; {len(result.measured)} plans measured, {escape(result.method)}</div>"
    )
    return (
        "<div style='display:flex;gap:2em;flex-wrap:wrap;align-items:center'>"
        f"<div><table style='border-collapse:collapse'>{rows}</table>{words}</div>{_sketch(result)}</div>"
    )


def _shown(name: str, value: float) -> str:
    return f"{value:+.2%}" if name == "accuracy_drop" else f"{value:.2f}×"


def _sketch(result: CompressionResult) -> str:
    """The front as an SVG: speed-up to the right, accuracy lost upwards, the chosen plan as a diamond."""
    chosen = ParetoPoint(
        plan=result.plan,
        speedup=result.speedup,
        compression_ratio=result.compression_ratio,
        accuracy_drop=result.accuracy_drop,
    )
    points = [*result.pareto, chosen]
    places = list(zip(_spread([math.log(p.speedup) for p in points], _WIDTH), _lost(points), strict=True))
    dots = "".join(
        f"<circle cx='{x:.0f}' cy='{y:.0f}' r='4' fill='none' stroke='currentColor'><title>{escape(_told(p))}</title>"
        "</circle>"
        for (x, y), p in zip(places[:-1], points, strict=False)
    )
    x, y = places[-1]
    dots += f"<path d='M{x:.0f} {y - 7:.0f}l7 7l-7 7l-7 -7z' fill='currentColor'><title>chosen</title></path>"
    labels = (
        f"<text x='{_WIDTH - 2}' y='{_HEIGHT + 12}' text-anchor='end'>faster →</text>"
        f"<text x='2' y='10'>↑ accuracy lost</text>"
    )
    return (
        f"<svg role='img' aria-label='measured trade-offs' width='{_WIDTH}' height='{_HEIGHT + 16}' "
        f"style='font:11px sans-serif;fill:currentColor;max-width:100%'>{labels}{dots}</svg>"
    )


def _lost(points: list[ParetoPoint]) -> list[float]:
    return [_HEIGHT - y for y in _spread([p.accuracy_drop for p in points], _HEIGHT)]


def _spread(values: list[float], length: int) -> list[float]:
    low, high = min(values), max(values)
    return [_EDGE + (value - low) / ((high - low) or 1.0) * (length - 2 * _EDGE) for value in values]


def _told(point: ParetoPoint) -> str:
    figures = f"{point.speedup:.2f}x faster, {point.compression_ratio:.2f}x smaller, {point.accuracy_drop:.2%} lost"
    return f"{point.plan}: {figures}"
