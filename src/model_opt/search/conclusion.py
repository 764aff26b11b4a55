"""What a search has come to believe: its answer, and what it was told from."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from model_opt.search.beliefs import Estimate
from model_opt.search.plan import Plan
from model_opt.search.recommendation import Recommendation
from model_opt.search.searcher import OptionSummary, Searcher
from model_opt.search.trial import Trial, predicted_of

PREDICTED = 200
"""Of how many trials is told what was believed before; each costs a few milliseconds."""


@dataclass(frozen=True, kw_only=True)
class Conclusion:
    """`beliefs` are of every plan that was tried, by metric, after all that was measured. `importance` is each
    decision's share in what moves the figures, `source_weights` how far each source of evidence is believed, by metric;
    `tree` has the planner's first two levels."""

    best: Recommendation
    beliefs: Mapping[Plan, Mapping[str, Estimate]]
    importance: Mapping[str, float]
    source_weights: Mapping[str, Mapping[str, float]]
    tree: tuple[OptionSummary, ...]


def conclude(searcher: Searcher, trials: Iterable[Trial]) -> Conclusion:
    """What `searcher` believes, which was told all `trials`."""
    best = searcher.recommend()
    plans = list(dict.fromkeys([best.plan, *(trial.plan for trial in trials)]))
    return Conclusion(
        best=best,
        beliefs=dict(zip(plans, searcher.predict(plans), strict=True)),
        importance=searcher.importance(),
        source_weights=searcher.source_weights(),
        tree=searcher.tree_summary(),
    )


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


def of_one_context(trials: Iterable[Trial]) -> list[Trial]:
    """Those of the context in which most was measured: absolute figures of several do not mix."""
    kept = list(trials)
    counts = Counter(trial.context for trial in kept)
    home = max(counts, key=lambda context: counts[context], default="")
    return [trial for trial in kept if trial.context == home]
