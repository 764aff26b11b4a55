"""A search told again what was measured, and what it would have believed of each plan before."""

from collections.abc import Iterable, Mapping

from model_opt.search.beliefs import Estimate
from model_opt.search.evaluator import Outcome
from model_opt.search.searcher import Searcher

PREDICTED = 200
"""Of how many outcomes is told what was believed before; each costs a few milliseconds."""


def replay(searcher: Searcher, outcomes: Iterable[Outcome]) -> tuple[Mapping[str, Estimate], ...]:
    """Tells `searcher` the outcomes in their order. Returns what all that came before told of each, by metric; nothing
    of those after the first `PREDICTED`."""
    predicted: list[Mapping[str, Estimate]] = []
    for outcome in outcomes:
        predicted.append(searcher.predict([outcome.plan])[0] if len(predicted) < PREDICTED else {})
        searcher.tell(outcome)
    return tuple(predicted)
