"""All there is to see of a search, in the order of reading."""

from collections.abc import Callable

from model_opt.report.chart import Chart
from model_opt.report.predictions import importance, predictions
from model_opt.report.timeline import rewards, timeline
from model_opt.report.tradeoffs import tradeoffs
from model_opt.report.tree import tree
from model_opt.report.view import View


def charts(view: View) -> list[Chart]:
    """A chart for every question, also where there is nothing to draw: it then says why."""
    makers: list[Callable[[View], Chart]] = [tradeoffs, rewards, tree, importance, predictions, timeline]
    return [make(view) for make in makers]
