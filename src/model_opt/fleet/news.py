"""What a worker is told of what the others settled: everything, or of a large fleet what is worth most of it."""

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from model_opt.fleet.messages import RowId, WorkRequest
from model_opt.search.evaluator import Outcome, Purpose
from model_opt.search.trial import Trial

MOST_NEWS = 500
"""Outcomes in one answer; what is settled meanwhile follows in the next."""
MOST_PENDING = 64
"""Plans in one answer that others are measuring."""
TOLD_EVERYBODY = 256
"""In a fleet of more workers than this an answer is one of so many that it has to be short: what it tells of the others
is shared out, and the rest is skipped."""
FLEET_NEWS, FLEET_PENDING, LEAST_TOLD = 60_000, 16_000, 6
LEADERS = 4
"""How many of the best plans of a context everybody is told of, whatever else is skipped."""


@dataclass(frozen=True, kw_only=True)
class Told:
    """`news`, `cursor`, `skipped` and `measured` of a reply."""

    news: tuple[Outcome, ...]
    cursor: int
    skipped: int = 0
    measured: tuple[Outcome, ...] = ()


class News:
    """An index of the settled trials: by plan and context, by context, and the best of each context."""

    def __init__(self, log: Sequence[Trial]) -> None:
        """`log` has the trials in the order in which they settled; it grows before `add` is called."""
        self._log = log
        self._places: dict[RowId, int] = {}
        self._of: dict[str, list[int]] = {}
        self._leaders: dict[str, list[tuple[tuple[float, ...], int]]] = {}

    def add(self, row: RowId, order: tuple[float, ...] | None) -> None:
        """The last of the log is of `row`; `order` is its place by the objective, None where it failed."""
        place, context = len(self._log) - 1, row[1]
        self._places[row] = place
        self._of.setdefault(context, []).append(place)
        if order is not None:
            leaders = self._leaders.setdefault(context, [])
            insort(leaders, (order, place))
            del leaders[LEADERS:]

    def settled_in(self, context: str) -> int:
        """How many trials of `context` there are."""
        return len(self._of.get(context, ()))

    def tried(self, row: RowId) -> bool:
        """Whether the plan was settled in the context."""
        return row in self._places

    def told(self, ask: WorkRequest, workers: int) -> Told:
        """What the asker, one of so many, is told: of a large fleet its own, the best, the latest, and what came of
        what it would like to explore."""
        places = self._of.get(ask.context, [])
        first = bisect_left(places, ask.cursor)
        if workers <= TOLD_EVERYBODY:
            end = min(len(self._log), ask.cursor + MOST_NEWS)
            return Told(news=self._outcomes(places[first : bisect_left(places, end)]), cursor=end)
        latest = places[max(first, len(places) - shared_out(workers, FLEET_NEWS, MOST_NEWS)) :]
        own = self._known(result.row_id for result in ask.results)
        best = (place for _, place in self._leaders.get(ask.context, ()))
        chosen = {place for place in (*own, *best) if place >= ask.cursor} | {*latest}
        wishes = ((plan.key, ask.context) for plan, purpose in ask.proposals if purpose is Purpose.EXPLORE)
        return Told(
            news=self._outcomes(sorted(chosen)),
            cursor=len(self._log),
            skipped=len(places) - first - len(chosen),
            measured=self._outcomes(self._known(wishes)),
        )

    def _known(self, rows: Iterable[RowId]) -> list[int]:
        return [self._places[row] for row in rows if row in self._places]

    def _outcomes(self, places: Iterable[int]) -> tuple[Outcome, ...]:
        return tuple(outcome for place in places if (outcome := self._log[place].outcome) is not None)


def shared_out(workers: int, among_all: int, most: int) -> int:
    """How many of something one answer tells, of so many that all answers may tell."""
    return most if workers <= TOLD_EVERYBODY else min(max(among_all // workers, LEAST_TOLD), most)
