"""A search told again what was measured, and what it would have believed of each plan before."""

from collections.abc import Iterable
from dataclasses import replace

from model_opt.search.searcher import Searcher
from model_opt.search.trial import Trial, predicted_of

PREDICTED = 200
"""Of how many trials is told what was believed before; each costs a few milliseconds."""


def replay(searcher: Searcher, trials: Iterable[Trial]) -> tuple[Trial, ...]:
    """Tells `searcher` the trials in their order. Returns them with what all that came before told of each; nothing of
    those after the first `PREDICTED`."""
    told: list[Trial] = []
    for trial in trials:
        if trial.outcome is None:
            continue
        expected = searcher.predict([trial.plan])[0] if len(told) < PREDICTED else {}
        told.append(replace(trial, predicted=predicted_of(expected)))
        searcher.tell(trial.outcome)
    return tuple(told)
