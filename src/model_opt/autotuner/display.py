"""A result in a notebook, and as a data frame."""

import math
from html import escape
from typing import TYPE_CHECKING

from model_opt.autotuner.figures import faster, figure_text, interval_text, lost, smaller, versus
from model_opt.autotuner.pareto_points import ParetoPoint
from model_opt.autotuner.tally import Tally, scalars
from model_opt.errors import MissingDependency

if TYPE_CHECKING:
    from pandas import DataFrame

    from model_opt.autotuner.result import CompressionResult

_WIDTH, _HEIGHT, _EDGE = 320, 150, 14


def display_frame(result: "CompressionResult") -> "DataFrame":
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


def display_html(result: "CompressionResult") -> str:
    """A small table and a sketch of the trade-offs; no script, no style sheet, in the notebook's own colours."""
    rows = "".join(
        f"<tr><th style='text-align:left'>{what}</th>"
        f"<td style='text-align:right'><b>{value}</b></td><td style='opacity:.7'>{interval}</td></tr>"
        for what, value, interval in _rows(result)
    )
    held = "all constraints hold" if result.feasible else "<b>the constraints do not all hold</b>"
    words = (
        f"<div>{escape(str(result.plan))}</div><div style='opacity:.7'>{held}; accuracy by "
        f"{escape(result.accuracy_source)}; {Tally.of(result.observations)}, {escape(result.method)}</div>"
    )
    return (
        "<div style='display:flex;gap:2em;flex-wrap:wrap;align-items:center'>"
        f"<div><table style='border-collapse:collapse'>{rows}</table>{words}</div>{_sketch(result)}</div>"
    )


def _rows(result: "CompressionResult") -> list[tuple[str, str, str]]:
    """What, its value, and its interval, of each figure."""
    speed, size, drop = (result.figures[name] for name in ("speedup", "compression_ratio", "accuracy_drop"))
    return [
        ("times faster", figure_text(speed), interval_text(speed)),
        ("times smaller", versus(size.value, "larger"), interval_text(size, "larger")),
        ("accuracy", lost(drop.value), f"{lost(drop.low)} … {lost(drop.high)}"),
    ]


def _sketch(result: "CompressionResult") -> str:
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
    figures = f"{faster(point.speedup)}, {smaller(point.compression_ratio)}, {lost(point.accuracy_drop)}"
    return f"{point.plan}: {figures}"
