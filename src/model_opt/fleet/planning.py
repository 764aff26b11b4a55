"""Planning beside measuring: a thread of its own learns the news and keeps a stock of ranked proposals."""

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from model_opt.fleet.messages import Reply
from model_opt.fleet.proposer import Proposals, Proposer
from model_opt.fleet.time_left import TimeLeft
from model_opt.search.evaluator import Outcome, Purpose
from model_opt.search.plan import Plan

SPARE = 2
"""Proposals beyond what is wanted, for those that somebody else has taken."""
LEAST, MOST = 4, 32
"""How many proposals are made at once."""
SHARE = 0.04
"""The part of its time that the thread plans while there is stock: on a crowded host planning takes longer, and is
done less often."""


@dataclass(frozen=True, kw_only=True)
class _View:
    """What to plan from: the coordinator's last word, and the plans that this worker holds."""

    reply: Reply
    own: tuple[Plan, ...]


class Planning:
    """Proposals that are ready when they are asked for. Thread-safe; `start` before and `close` after use.

    News are told to the proposer in their order. New proposals replace the stock as often as `SHARE` allows, and at
    once where the stock is used up. `typical_s` says what a measurement takes: the stock lasts while planning does.
    What would not end in the time that is `left` is not proposed. What the proposer raises is raised by `take`.
    """

    def __init__(
        self,
        make_proposer: Callable[[int], Proposer],
        *,
        typical_s: Callable[[], float],
        left: TimeLeft,
        wait: Callable[[], None] = lambda: None,
    ) -> None:
        """`make_proposer` takes the budget; it is called again where the coordinator lost its state. `wait` returns
        when planning disturbs nobody."""
        self._make_proposer, self._typical_s, self._left, self._wait = make_proposer, typical_s, left, wait
        self._proposer: Proposer | None = None
        self._epoch: str | None = None
        self._changed = threading.Condition()
        self._view: _View | None = None
        self._news: list[Outcome] = []
        self._learned = 0
        self._heard: set[str] = set()
        self._skipped = self._skipped_before = 0
        self._stock: Proposals = []
        self._fresh = False
        self._empty = False
        self._wanted = 1
        self._closed = False
        self._error: Exception | None = None
        self._rest_until = 0.0
        self._typical_plan_s = 0.0
        self.seen = 0
        """How much of the coordinator's news the stock was made from."""
        self.planning_s = 0.0
        self._thread = threading.Thread(target=self._run, name="model-opt-planning", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def close(self) -> None:
        """Ends the thread; what it plans at the moment is finished first."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def hear(self, reply: Reply, own: Sequence[Plan]) -> None:
        """The coordinator's answer; `own` are the plans that this worker holds."""
        with self._changed:
            if reply.epoch != self._epoch:
                self._proposer, self._epoch, self._news, self._learned, self._stock = None, reply.epoch, [], 0, []
                self._heard, self._skipped, self._skipped_before = set(), 0, 0
            if self._view is not None and self._view.reply.shares.members.keys() != reply.shares.members.keys():
                self._stock = []  # other plans are this worker's now
            news = self._heard_of(reply)
            self._news += news
            self._view = _View(reply=reply, own=tuple(own))
            self._stock = self._still_free(self._stock, news)
            resting = self._empty and time.monotonic() < self._rest_until  # nothing was found, nothing has happened
            if news or (len(self._usable()) < self._wanted and not resting):
                self._fresh = False
            self._changed.notify_all()

    def _heard_of(self, reply: Reply) -> list[Outcome]:
        """What an answer tells that is new here. What was skipped and is told after all is skipped no longer."""
        self._heard.update(outcome.plan.key for outcome in reply.news)
        late = [outcome for outcome in reply.measured if outcome.plan.key not in self._heard]
        self._heard.update(outcome.plan.key for outcome in late)
        self._skipped += reply.skipped - len(late)
        return [*reply.news, *late]

    def refused(self, proposals: Proposals) -> None:
        """Somebody else has these plans."""
        keys = {plan.key for plan, _ in proposals}
        with self._changed:
            self._stock = [item for item in self._stock if item[0].key not in keys]
            self._changed.notify_all()

    def take(self, wanted: int, *, patience_s: float) -> Proposals:
        """The best of the stock for `wanted` leases; waits up to `patience_s` where there is none."""
        end = time.monotonic() + patience_s
        with self._changed:
            self._wanted = wanted
            while not (self._usable() or self._exhausted() or self._closed or self._error):
                if (left := end - time.monotonic()) <= 0:
                    break
                self._changed.wait(left)
            if self._error is not None:
                raise self._error
            return self._usable()[: wanted + SPARE]

    @property
    def exhausted(self) -> bool:
        """Whether nothing can be proposed by all that is known."""
        with self._changed:
            return self._exhausted() and not self._usable()

    def _exhausted(self) -> bool:
        return self._empty and self._fresh

    def _usable(self) -> Proposals:
        """The stock without plans that do not fit in any more, or explore where the time to explore is over."""
        if self._view is None or self._proposer is None:
            return []
        reply = self._view.reply
        begun = self._learned + len(self._news) + self._skipped + len(reply.pending) + len(self._view.own)
        over = begun >= self._proposer.explores_until + self._skipped_before
        explored = (item for item in self._stock if not (over and item[1] is Purpose.EXPLORE))
        return [item for item in explored if self._left.fits(item[0])]

    # the thread -----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._next() is not None:
                self._wait()
                if (view := self._next()) is not None:
                    self._plan(view)
        except Exception as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _next(self) -> _View | None:
        """Waits until there is a reason to plan; None at the end."""
        with self._changed:
            while not self._closed:
                rest = self._rest_until - time.monotonic()
                if self._view is not None and not self._fresh and not self._view.reply.ending:
                    needed = not self._view.reply.waiting and len(self._usable()) < self._wanted
                    if rest <= 0 or needed:
                        return self._view
                    self._changed.wait(rest)
                else:
                    self._changed.wait()
            return None

    def _plan(self, view: _View) -> None:
        began = time.perf_counter()
        with self._changed:
            if self._proposer is None:
                self._proposer = self._make_proposer(view.reply.budget)
            news, self._news = self._news, []
            self._learned += len(news)
            self._fresh = True  # until there is other news
            epoch, wanted, skipped = self._epoch, self._wanted, self._skipped
        proposer, reply = self._proposer, view.reply
        for outcome in news:
            proposer.tell(outcome)
        pending = [*reply.pending, *view.own]
        found = proposer.propose(
            self._many(wanted),
            pending=pending,
            shares=reply.shares,
            budget=reply.budget - skipped,
            fits=self._left.fits,
        )
        spent_s = time.perf_counter() - began
        self.planning_s += spent_s
        with self._changed:
            if epoch == self._epoch:
                self._stock, self._empty = self._still_free(found, self._news), not found
                self._skipped_before = skipped
                self.seen = view.reply.cursor
            self._typical_plan_s = spent_s if not self._typical_plan_s else 0.7 * self._typical_plan_s + 0.3 * spent_s
            self._rest_until = time.monotonic() + self._typical_plan_s * (1 / SHARE - 1)
            self._changed.notify_all()

    def _still_free(self, proposals: Proposals, news: Sequence[Outcome]) -> Proposals:
        """Without what is in flight, and what was measured since they were made."""
        if self._view is None:
            return proposals
        gone = {plan.key for plan in (*self._view.own, *self._view.reply.pending, *(o.plan for o in news))}
        return [item for item in proposals if item[0].key not in gone]

    def _many(self, wanted: int) -> int:
        """Enough for what is wanted now, and for what is measured until planning may be done again."""
        typical_s = max(self._typical_s(), 1e-3)
        meanwhile = 0.0 if math.isinf(typical_s) else self._typical_plan_s / SHARE / typical_s
        return min(max(LEAST, wanted + SPARE + math.ceil(meanwhile)), MOST)
