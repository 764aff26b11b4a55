"""What the model of a search has learnt: which decision matters, and how well it foretold what was measured."""

import math
from collections.abc import Sequence

from model_opt.report.chart import ACCENT, MUTED, Chart, Figure, ratio_axis
from model_opt.report.view import View
from model_opt.search.trial import Trial


def importance(view: View) -> Chart:
    """Each decision's share in what moves the figures."""
    about = (
        "How much each decision moves the figures that matter here, as the model of the search has learnt it; "
        "decisions that no measured plan had are left out."
    )
    title = "Which decision matters"
    if not view.importance:
        why = "This is worked out at the end of a search." if view.running else "No plan was measured that differs."
        return Chart(key="importance", title=title, about=about, missing=why)
    shares = sorted(view.importance.items(), key=lambda item: item[1])
    data = {
        "type": "bar",
        "orientation": "h",
        "x": [100 * share for _, share in shares],
        "y": [name for name, _ in shares],
        "text": [f"{share:.0%}" for _, share in shares],
        "textposition": "outside",
        "cliponaxis": False,
        "marker": {"color": ACCENT},
        "hovertemplate": "%{y}: %{x:.1f} %<extra></extra>",
    }
    layout = {
        "xaxis": {"title": {"text": "share, %"}, "range": [0, 115 * shares[-1][1]]},
        "yaxis": {"automargin": True, "ticksuffix": " "},
        "height": 110 + 30 * len(shares),
        "showlegend": False,
    }
    rows = [[name, f"{share:.1%}"] for name, share in reversed(shares)]
    return Chart(
        key="importance", title=title, about=about, figure={"data": [data], "layout": layout},
        heads=("decision", "share"), rows=rows,
    )  # fmt: skip


SHOWN = (("log_speedup", "times faster"), ("accuracy_drop", "accuracy lost, %"))


def predictions(view: View) -> Chart:
    """What was believed of a plan before it was measured, against what was measured."""
    about = (
        "On the diagonal the model was right. Bars are 95 % intervals of what it believed before it measured "
        "a plan; the first plans of a search are measured before it believes anything."
    )
    if view.where == "fleet":
        about += " Of a fleet it is what all plans settled before told of the next one."
    title = "Predicted and measured"
    pairs = [(metric, *_pairs(view, metric)) for metric, _ in SHOWN]
    if not any(seen for _, seen, _ in pairs):
        missing = "There are no predictions here: none was kept."
        return Chart(key="predictions", title=title, about=about, missing=missing)
    data: list[Figure] = []
    layout: Figure = {"grid": {"rows": 1, "columns": 2, "pattern": "independent"}, "showlegend": False}
    rows = []
    for number, ((metric, what), (_, seen, inside)) in enumerate(zip(SHOWN, pairs, strict=True), 1):
        data += _against(seen, metric, "" if number == 1 else "2")
        suffix = "" if number == 1 else "2"
        layout |= {f"{axis}{suffix}": made for axis, made in _axes(seen, metric, what).items()}
        rows.append([what, str(len(seen)), f"{inside} of {len(seen)}"])
    heads = ("", "predictions", "measured within the 95 % interval")
    return Chart(
        key="predictions", title=title, about=about, figure={"data": data, "layout": layout}, heads=heads, rows=rows
    )


def _pairs(view: View, metric: str) -> tuple[list[tuple[Trial, float, float]], int]:
    """(plan, predicted mean, its standard deviation) where both are known, and how many lie within two of it."""
    seen = [
        (o, *o.predicted[metric])
        for o in view.observations
        if metric in o.predicted and metric in o.metrics and o.purpose == "explore"
    ]
    return seen, sum(abs(o.metrics[metric] - mean) <= 1.96 * std for o, mean, std in seen)


def _shown(metric: str, value: float) -> float:
    return math.exp(value) if metric.startswith("log_") else 100 * value


def _axes(seen: Sequence[tuple[Trial, float, float]], metric: str, what: str) -> dict[str, Figure]:
    """The range is that of the means and of what was measured; longer intervals are cut off."""
    values = [_shown(metric, value) for o, mean, _ in seen for value in (mean, o.metrics[metric])] or [0.0, 1.0]
    if metric.startswith("log_") and min(values) > 0:
        x, y = ratio_axis(f"predicted: {what}", values), ratio_axis("measured", values)
        values = [math.log10(value) for value in values]
    else:
        x, y = {"title": {"text": f"predicted: {what}"}}, {"title": {"text": "measured"}}
    margin = 0.12 * ((max(values) - min(values)) or 1.0)
    return {"xaxis": x | {"range": [min(values) - margin, max(values) + margin]}, "yaxis": y}


def _against(seen: Sequence[tuple[Trial, float, float]], metric: str, axis: str) -> list[Figure]:
    measured = [_shown(metric, o.metrics[metric]) for o, _, _ in seen]
    means = [_shown(metric, mean) for _, mean, _ in seen]
    ends = [(_shown(metric, mean - 1.96 * std), _shown(metric, mean + 1.96 * std)) for _, mean, std in seen]
    low, high = min([*measured, *means], default=0.0), max([*measured, *means], default=1.0)
    axes = {"xaxis": f"x{axis}", "yaxis": f"y{axis}"}
    diagonal = {
        "type": "scatter", "mode": "lines", "x": [low, high], "y": [low, high], "hoverinfo": "skip",
        "line": {"color": MUTED, "dash": "dot"},
    }  # fmt: skip
    dots = {
        "type": "scatter",
        "mode": "markers",
        "x": means,
        "y": measured,
        "text": [str(o.plan) for o, _, _ in seen],
        "hovertemplate": "%{text}<br>predicted %{x:.3g}, measured %{y:.3g}<extra></extra>",
        "marker": {"color": ACCENT, "size": 9},
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [end[1] - mean for end, mean in zip(ends, means, strict=True)],
            "arrayminus": [mean - end[0] for end, mean in zip(ends, means, strict=True)],
            "thickness": 1,
            "width": 3,
            "color": ACCENT,
        },
    }
    return [diagonal | axes, dots | axes]
