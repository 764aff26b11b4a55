"""The tree of a search: plans as paths of choices, those that matter most first; where, and what for."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from model_opt.report.chart import Chart
from model_opt.report.view import View

ROOT = "the model as it is"
MOST_NODES = 400
"""Nodes with fewest measured plans below are left out of the picture beyond this."""


@dataclass
class PlanNode:
    """A prefix of choices. `plans` were measured at or below it; `best` is the best reward there that keeps the
    constraints, None where none does."""

    label: str
    depth: int
    plans: int = 0
    failed: int = 0
    best: float | None = None
    children: dict[str, "PlanNode"] = field(default_factory=dict)


def grow(view: View) -> PlanNode:
    """The tree of all settled plans; a plan's choices are in the order of the decisions' importance, then by name."""
    root = PlanNode(ROOT, 0)
    for seen in view.observations:
        path = [root]
        for choice in sorted(seen.plan.choices, key=lambda c: (-view.importance.get(c.decision, 0.0), c.decision)):
            label = f"{choice.decision}={choice.option}"
            path.append(path[-1].children.setdefault(label, PlanNode(label, len(path))))
        reward = view.reward(seen) if view.feasible(seen) else None
        for node in path:
            node.plans += 1
            node.failed += seen.failure is not None
            if reward is not None:
                better = max if view.maximize else min
                node.best = reward if node.best is None else better(node.best, reward)
    return root


def tree(view: View) -> Chart:
    """The tree as an icicle: width is how many plans were measured, the number how good the best of them is."""
    title = "What was explored"
    root = grow(view)
    order = "the decision that matters most first" if view.importance else "by name until it is known what matters"
    about = (
        f"Plans as paths of choices, {order}. A box is as wide as the number of plans measured there, and names the "
        "best that keeps the constraints. Choose a box to look closer, the top one to come back."
    )
    if not root.plans:
        return Chart(key="tree", title=title, about=about, missing="Nothing has been measured yet.")
    nodes = list(_walk(root, "", ""))
    least = sorted((node.plans for _, _, node in nodes), reverse=True)[:MOST_NODES][-1]
    shown = [(key, up, node) for key, up, node in nodes if node.plans >= least][:MOST_NODES]
    depth = max(node.depth for _, _, node in nodes)
    told = [
        [f"{'· ' * node.depth}{node.label}", str(node.plans), _best(view, node), str(node.failed)]
        for _, _, node in shown
    ]
    planner = _planner(view.result.tree if view.result else ())
    about += f" Deepest: {depth} choices; {len(nodes)} boxes in all.{planner}"
    return Chart(
        key="tree",
        title=title,
        about=about,
        figure={
            "data": [_icicle(view, shown)],
            "layout": {
                "height": 190 + 56 * depth,
                "uniformtext": {"minsize": 11, "mode": "hide"},
                "margin": {"l": 4, "r": 4, "t": 8, "b": 8},
            },
        },
        heads=("choice", "plans", "best", "failed"),
        rows=told,
    )


def _icicle(view: View, shown: list[tuple[str, str, PlanNode]]) -> dict[str, object]:
    """The trace of `shown`: (key, key of the parent, node)."""
    values = [node.best for _, _, node in shown if node.best is not None]
    shades = _shades([node.best for _, _, node in shown], values, view)
    return {
        "type": "icicle",
        "ids": [key for key, _, _ in shown],
        "parents": [up for _, up, _ in shown],
        "labels": [node.label for _, _, node in shown],
        "values": [node.plans for _, _, node in shown],
        "branchvalues": "total",
        "text": [_said(view, node) for _, _, node in shown],
        "texttemplate": "<b>%{label}</b><br>%{text}",
        "hovertemplate": "%{label}<br>%{text}<extra></extra>",
        "tiling": {"orientation": "v", "pad": 2},
        "pathbar": {"visible": True},
        "root": {"color": "rgba(0,0,0,0)"},
        "marker": {"colors": shades, "line": {"width": 1, "color": "var:page"}},
        "textfont": {"color": [f"var:on-{shade.removeprefix('var:')}" for shade in shades], "size": 12},
    }


def _planner(options: tuple[Mapping[str, object], ...]) -> str:
    """Where the planner's last estimated simulations went."""
    visited = sorted(options, key=lambda option: -int(str(option["visits"])))
    total = sum(int(str(option["visits"])) for option in visited)
    if not total:
        return ""
    shares = ", ".join(f"{o['option']} {int(str(o['visits'])) / total:.0%}" for o in visited[:4])
    return f" For its last suggestion the planner looked at {visited[0]['decision']} first: {shares} of {total} visits."


def _walk(node: PlanNode, key: str, up: str) -> list[tuple[str, str, PlanNode]]:
    here = f"{key}/{node.label}"
    ranked = sorted(node.children.values(), key=lambda child: -child.plans)
    return [(here, up, node), *(found for child in ranked for found in _walk(child, here, here))]


def _shades(best: list[float | None], values: list[float], view: View) -> list[str]:
    """Shades by value; a plan without one that keeps the constraints is grey. The numbers say the same."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    span = math.log(high / low) if low > 0 and high > low else 0.0
    shades = []
    for value in best:
        if value is None:
            shades.append("var:empty")
            continue
        share = math.log(value / low) / span if span else 0.5
        shades.append(f"var:shade{round(4 * (share if view.maximize else 1 - share))}")
    return shades


def _said(view: View, node: PlanNode) -> str:
    plans = f"{node.plans} plan{'s' if node.plans > 1 else ''}"
    return f"{_best(view, node)} · {plans}"


def _best(view: View, node: PlanNode) -> str:
    if node.best is None:
        return "none kept"
    return view.said(node.best)
