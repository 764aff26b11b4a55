"""Speed, size and accuracy of every measured plan, and which of them nothing beats."""

import math
from collections.abc import Callable, Mapping, Sequence

from model_opt.autotuner.figures import Figure as Speed
from model_opt.autotuner.figures import faster, figure_text, interval_text, lost, smaller
from model_opt.autotuner.pareto_points import ParetoPoint, pareto_points
from model_opt.report.chart import ACCENT, CHOSEN, MUTED, Chart, Figure, ratio_axis
from model_opt.report.view import View
from model_opt.search.plan import Plan


def tradeoffs(view: View) -> Chart:
    """Speed-up against accuracy lost, with the front, its intervals, the limit and the chosen plan."""
    about = (
        "Every measured plan: to the right is faster, down is more accurate, a larger marker is a smaller model. "
        "Squares are the plans that no other beats in speed, size and accuracy at once, with 95 % intervals where "
        "they are known."
    )
    seen = {o.plan: o.metrics for o in view.observations if o.failure is None}
    points = view.result.pareto if view.result else pareto_points(seen)
    if not points:
        return Chart(key="pareto", title="Trade-offs", about=about, missing=_no_trade_offs(view))
    others = [plan for plan, metrics in seen.items() if "log_size_ratio" in metrics and "accuracy_drop" in metrics]
    others = [plan for plan in others if plan not in {p.plan for p in points} and "log_speedup" in seen[plan]]
    beaten = pareto_points_of(others, seen)
    data = [
        _dots(beaten, "other measured plans", "circle-open", MUTED),
        _dots(points, "best trade-offs", "square", ACCENT),
    ]
    data += _chosen(view, points)
    limit = view.constraints.get("max_accuracy_drop", view.constraints.get("accuracy_drop"))
    layout = {
        "xaxis": ratio_axis("times faster than the original", [p.speedup for p in (*points, *beaten)]),
        "yaxis": {"title": {"text": "accuracy lost, %"}, "zeroline": True},
        "shapes": [] if limit is None else [_line(100 * limit)],
        "annotations": [] if limit is None else [_limit_label(100 * limit)],
    }
    rows = [
        [str(p.plan), _faster(p), smaller(p.compression_ratio), f"{lost(p.accuracy_drop)}{_drops(p)}"] for p in points
    ]
    heads = ("plan", "faster", "smaller", "lost")
    return Chart(
        key="pareto", title="Trade-offs", about=about, figure={"data": data, "layout": layout}, heads=heads, rows=rows
    )


def pareto_points_of(plans: Sequence[Plan], metrics: Mapping[Plan, Mapping[str, float]]) -> list[ParetoPoint]:
    """Measured plans as points, whether or not others beat them."""
    return [point for plan in plans for point in pareto_points({plan: metrics[plan]})]


def _no_trade_offs(view: View) -> str:
    if not view.observations:
        return "Nothing has been measured yet." + (" A fleet's plans arrive with its result." if view.status else "")
    return "This search measures no speed, size and accuracy, so there is nothing to trade."


def _dots(points: Sequence[ParetoPoint], name: str, symbol: str, color: str) -> Figure:
    known = [p for p in points if p.intervals]
    dots = {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [p.speedup for p in points],
        "y": [100 * p.accuracy_drop for p in points],
        "text": [
            f"{p.plan}<br>{faster(p.speedup)}, {smaller(p.compression_ratio)}, {lost(p.accuracy_drop)}" for p in points
        ],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {
            "symbol": symbol,
            "color": color,
            "size": [min(7 + 4 * math.sqrt(p.compression_ratio), 30) for p in points],
            "line": {"width": 1.5, "color": color},
            "opacity": 0.85,
        },
    }
    if known:
        dots |= {"error_x": _bars(points, "speedup", lambda p: p.speedup, 1.0, color)}
        dots |= {"error_y": _bars(points, "accuracy_drop", lambda p: p.accuracy_drop, 100.0, color)}
    return dots


def _bars(
    points: Sequence[ParetoPoint], name: str, value: Callable[[ParetoPoint], float], scale: float, color: str
) -> Figure:
    ends = [p.intervals.get(name, (value(p), value(p))) for p in points]
    return {
        "type": "data",
        "symmetric": False,
        "array": [scale * (high - value(p)) for p, (_, high) in zip(points, ends, strict=True)],
        "arrayminus": [scale * (value(p) - low) for p, (low, _) in zip(points, ends, strict=True)],
        "thickness": 1,
        "width": 3,
        "color": color,
    }


def _chosen(view: View, points: Sequence[ParetoPoint]) -> list[Figure]:
    if view.result is not None:
        speed, drop = view.result.figures["speedup"], view.result.figures["accuracy_drop"]
        intervals = {"speedup": (speed.low, speed.high), "accuracy_drop": (drop.low, drop.high)}
        point = ParetoPoint(
            plan=view.result.plan,
            speedup=speed.value,
            compression_ratio=view.result.compression_ratio,
            accuracy_drop=drop.value,
            intervals=intervals,
        )
    else:
        found = next((p for p in points if p.plan == view.chosen), None)
        if found is None:
            return []
        point = found
    dot = _dots([point], "best so far" if view.running else "chosen, in fresh processes", "diamond", CHOSEN)
    dot |= {"mode": "markers+text", "text": [_speed(point)], "textposition": "bottom center"}
    return [dot | {"hovertext": [f"{point.plan}<br>{_faster(point)}"], "hovertemplate": "%{hovertext}<extra></extra>"}]


def _line(at: float) -> Figure:
    return {
        "type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": at, "y1": at,
        "line": {"color": CHOSEN, "width": 1.5, "dash": "dash"},
    }  # fmt: skip


def _limit_label(at: float) -> Figure:
    text = f"at most {at:g} % lost"
    return {
        "xref": "paper", "x": 0.01, "y": at, "xanchor": "left", "yanchor": "bottom", "text": text, "showarrow": False,
        "font": {"color": CHOSEN},
    }  # fmt: skip


def _faster(point: ParetoPoint) -> str:
    """The speed-up with its interval, where that is known: "5.10x faster (4.20x … 6.10x)"."""
    if "speedup" not in point.intervals:
        return faster(point.speedup)
    return f"{faster(point.speedup)} ({interval_text(_with_interval(point))})"


def _speed(point: ParetoPoint) -> str:
    return figure_text(_with_interval(point))


def _with_interval(point: ParetoPoint) -> Speed:
    low, high = point.intervals.get("speedup", (point.speedup, point.speedup))
    return Speed(value=point.speedup, low=low, high=high)


def _drops(point: ParetoPoint) -> str:
    if "accuracy_drop" not in point.intervals:
        return ""
    return f" ({' … '.join(map(lost, point.intervals['accuracy_drop']))})"
