"""The course of a search: what was measured when, how good it was, and by whom."""

import math
from collections.abc import Sequence

from model_opt.metrics import METRICS
from model_opt.report.chart import ACCENT, BAD, CHOSEN, MUTED, Chart, Figure, ratio_axis
from model_opt.report.view import View
from model_opt.search.trial import Trial


def rewards(view: View) -> Chart:
    """What was measured when, and the best that keeps the constraints so far."""
    what = METRICS["log_speedup"].label if view.objective == "log_speedup" else view.objective
    about = (
        f"Each plan when it was settled ({what}). Filled circles keep every constraint, open ones do not, crosses at "
        "the foot failed. The line is the best so far that keeps them."
    )
    points = [(o, view.reward(o)) for o in view.observations]
    told = [(o, value) for o, value in points if value is not None]
    if not told:
        return Chart(key="rewards", title="Search over time", about=about, missing="Nothing has been measured yet.")
    inside = [(o, value) for o, value in told if view.feasible(o)]
    outside = [(o, value) for o, value in told if not view.feasible(o)]
    failed = [o for o in view.observations if o.failure is not None]
    foot = min(value for _, value in told)
    data = [
        _trail(inside, "keeps the constraints", "circle", ACCENT),
        _trail(outside, "breaks a constraint", "circle-open", MUTED),
        _trail([(o, foot) for o in failed], "failed", "x", BAD),
        _best_so_far(view, inside),
    ]
    layout = {
        "xaxis": {"title": {"text": "seconds since the start"}, "rangemode": "tozero"},
        "yaxis": ratio_axis(what, [value for _, value in told]) if foot > 0 else {"title": {"text": what}},
    }
    rows = [
        [f"{o.at_s:.1f} s", str(o.plan), f"{value:.3g}" if value is not None else o.failure or "", _verdict(view, o)]
        for o, value in points
    ]
    heads = ("when", "plan", what, "")
    shown = [trace for trace in data if trace["x"]]
    return Chart(
        key="rewards", title="Search over time", about=about, figure={"data": shown, "layout": layout}, heads=heads,
        rows=rows,
    )  # fmt: skip


def _verdict(view: View, seen: Trial) -> str:
    if seen.failure is not None:
        return "failed"
    return "keeps the constraints" if view.feasible(seen) else "breaks a constraint"


def _trail(points: Sequence[tuple[Trial, float]], name: str, symbol: str, color: str) -> Figure:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [o.at_s for o, _ in points],
        "y": [value for _, value in points],
        "text": [str(o.plan) if o.failure is None else f"{o.plan}<br>{o.failure[:90]}" for o, _ in points],
        "hovertemplate": "%{text}<br>%{y:.3g} at %{x:.1f} s<extra></extra>",
        "marker": {"symbol": symbol, "color": color, "size": 10, "line": {"width": 1.5, "color": color}},
    }


def _best_so_far(view: View, inside: Sequence[tuple[Trial, float]]) -> Figure:
    sign = 1.0 if view.maximize else -1.0
    xs: list[float] = []
    ys: list[float] = []
    for seen, value in inside:
        if not ys or sign * value > sign * ys[-1]:
            xs.append(seen.at_s)
            ys.append(value)
    if ys:
        xs.append(max(o.at_s for o in view.observations))
        ys.append(ys[-1])
    line = {"shape": "hv", "color": CHOSEN, "width": 2}
    return {
        "type": "scatter", "mode": "lines", "name": "best so far", "x": xs, "y": ys, "line": line, "hoverinfo": "skip",
    }  # fmt: skip


KINDS = (("explore", "new plan", "", ACCENT), ("verify", "measured again", "/", CHOSEN), ("failed", "failed", "x", BAD))


def timeline(view: View) -> Chart:
    """Who measured what when."""
    about = "One lane a worker, one bar a measurement; what is striped was measured again, what is crossed failed."
    title = "Who measured when"
    if not view.observations:
        return Chart(key="timeline", title=title, about=about, missing="Nothing has been measured yet.")
    workers = sorted({o.worker or "this machine" for o in view.observations})
    if workers == ["this machine"]:
        about = f"One worker, this machine: the time between bars went into planning. {about}"
    data = [_lane(view.observations, *kind) for kind in KINDS]
    layout = {
        "barmode": "overlay",
        "xaxis": {"title": {"text": "seconds since the start"}, "rangemode": "tozero"},
        "yaxis": {"automargin": True, "categoryorder": "array", "categoryarray": workers[::-1], "ticksuffix": " "},
        "height": 150 + 34 * len(workers),
        "bargap": 0.35,
    }
    counts = {who: [o for o in view.observations if (o.worker or "this machine") == who] for who in workers}
    rows = [[who, str(len(seen)), f"{sum(map(_busy, seen)):.1f} s"] for who, seen in counts.items()]
    return Chart(
        key="timeline", title=title, about=about, figure={"data": [t for t in data if t["x"]], "layout": layout},
        heads=("worker", "measurements", "busy"), rows=rows,
    )  # fmt: skip


def _busy(seen: Trial) -> float:
    return math.fsum(seen.seconds.values())


def _lane(observed: Sequence[Trial], kind: str, name: str, pattern: str, color: str) -> Figure:
    mine = [o for o in observed if ("failed" if o.failure is not None else o.purpose) == kind]
    return {
        "type": "bar",
        "orientation": "h",
        "name": name,
        "y": [o.worker or "this machine" for o in mine],
        "base": [max(o.at_s - _busy(o), 0.0) for o in mine],
        "x": [min(_busy(o), o.at_s) for o in mine],
        "text": [str(o.plan) for o in mine],
        "textposition": "none",
        "hovertemplate": "%{text}<br>%{x:.2f} s<extra></extra>",
        "marker": {
            "color": color,
            "pattern": {"shape": pattern, "fillmode": "overlay", "fgcolor": "var:page", "size": 6},
            "line": {"color": "var:page", "width": 1},
        },
    }
