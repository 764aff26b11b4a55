"""A worker at work: one thread measures, one talks and plans, one gives signs of life. Free of Ray."""

import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Protocol

from model_opt.actors.coordinator_state import MOST_NEWS
from model_opt.actors.leases import Holder
from model_opt.actors.messages import Ask, Grant, Reply
from model_opt.actors.proposer import Proposals, Proposer
from model_opt.actors.worker_state import WorkerState
from model_opt.search.evaluator import Outcome, Purpose
from model_opt.search.plan import Plan

log = logging.getLogger(__name__)

BEAT_S = 2.0
IDLE_S = 0.2
"""How long a worker that was granted nothing waits before it asks again."""
SPARE = 2
"""Proposals beyond what is wanted, for those that somebody else has taken."""
MOST_PROPOSALS = 8
BLOCK_S = 0.1
"""Prefetched leases are worth this much measuring, so that a turn's delay never leaves the device idle."""
MOST_HELD = 16


class Link(Protocol):
    """The way to the coordinator. Both may raise anything when it cannot be reached; the worker tries again."""

    def ask(self, ask: Ask) -> Reply:
        """A turn; blocks until the answer."""

    def beat(self, holder: Holder, held: frozenset[str]) -> None:
        """A sign of life; does not wait."""


class WorkerLoop:
    """Runs one worker until the search ends or it is told to leave.

    `measure` is called by one thread only and must not raise; `interrupt`, from another, makes it return soon.
    `make_proposer` takes the budget and is called again where the coordinator lost its state and its news begin anew.
    """

    def __init__(
        self,
        state: WorkerState,
        link: Link,
        measure: Callable[[Plan, Purpose], Outcome],
        make_proposer: Callable[[int], Proposer],
        *,
        interrupt: Callable[[], None] = lambda: None,
        beat_s: float = BEAT_S,
    ) -> None:
        self._state, self._link, self._measure = state, link, measure
        self._make_proposer, self._interrupt, self._beat_s = make_proposer, interrupt, beat_s
        self._proposer: Proposer | None = None
        self._epoch: str | None = None
        self._lock = threading.Lock()
        self._news = threading.Condition(self._lock)  # something to measure, or the end
        self._done = threading.Event()  # something measured, or the end
        self._over = threading.Event()
        self._leaving = threading.Event()
        self._typical_s = math.inf
        self.planning_s = 0.0

    def run(self) -> str:
        """Works; returns why it ended ("budget", …, "left")."""
        threads = [threading.Thread(target=work, daemon=True) for work in (self._measure_all, self._give_signs)]
        for thread in threads:
            thread.start()
        try:
            return self._converse()
        finally:
            self._finish()
            for thread in threads:
                thread.join()

    def leave(self) -> None:
        """Gives the leases back and ends; from any thread."""
        self._leaving.set()
        self._done.set()

    # talking --------------------------------------------------------------------------------------------------------

    def _converse(self) -> str:
        failures = 0
        while True:
            leaving = self._leaving.is_set()
            proposals, wanted = ([], 0) if leaving else self._wishes()
            reply = self._turn(proposals, wanted, leaving)
            failures = 0 if reply else failures + 1
            if reply is None:
                if leaving and failures > 3:
                    return "left"
                self._leaving.wait(min(0.2 * 2**failures, 5.0))
            elif leaving or (reply.ending and self._all_told()):
                return "left" if leaving else str(reply.ending)
            elif reply.ending:
                time.sleep(0.05)  # the measuring thread is about to let go
            elif not self._more_news(reply):
                self._pause()

    def _turn(self, proposals: Proposals, wanted: int, leaving: bool) -> Reply | None:
        """One question and its answer; None where it was lost."""
        with self._lock:
            self._done.clear()  # what is finished from here on belongs to the next turn
            ask = self._state.question(
                proposals=proposals, wanted=wanted, leaving=leaving, exhausted=wanted > 0 and not proposals
            )
        try:
            reply = self._link.ask(ask)
        except Exception as error:
            log.warning("the coordinator does not answer: %s", error)
            return None
        with self._lock:
            if not self._state.hear(reply):
                return None
            self._news.notify_all()
        if reply.ending:
            self._finish()
        self._learn(self._state.last or reply)
        return reply

    def _wishes(self) -> tuple[Proposals, int]:
        """What to propose, and how many leases to hold in all; nothing before the first answer."""
        with self._lock:
            last, missing = self._state.last, self._target() - self._state.holds
        if last is None or last.waiting or last.ending or missing <= 0 or self._proposer is None:
            return [], 0
        began = time.perf_counter()
        many = min(missing + SPARE, MOST_PROPOSALS)
        own = [grant.plan for grant in self._held()]
        flying = [*last.flying, *own]
        proposals = self._proposer.propose(many, flying=flying, roster=last.roster, budget=last.budget)
        self.planning_s += time.perf_counter() - began
        return proposals, self._target()

    def _target(self) -> int:
        """One that runs, and enough others for `BLOCK_S`."""
        return min(1 + max(1, math.ceil(BLOCK_S / max(self._typical_s, 1e-3))), MOST_HELD)

    def _held(self) -> list[Grant]:
        with self._lock:
            running = [self._state.running] if self._state.running else []
            return [*running, *self._state.queue]

    def _learn(self, reply: Reply) -> None:
        if self._proposer is None or reply.epoch != self._epoch:
            self._proposer, self._epoch = self._make_proposer(reply.budget), reply.epoch
        for outcome in reply.news:
            self._proposer.tell(outcome)

    def _more_news(self, reply: Reply) -> bool:
        """Whether the answer was cut off, or was the first: then the next question follows at once."""
        return len(reply.news) >= MOST_NEWS or (reply.serial == 1 and not reply.waiting)

    def _all_told(self) -> bool:
        with self._lock:
            return self._state.unsent == 0 and self._state.running is None

    def _pause(self) -> None:
        """Until something is measured; not for long where less was granted than wanted."""
        with self._lock:
            content = self._state.holds >= self._target()
        self._done.wait(self._beat_s if content else IDLE_S)

    # measuring ------------------------------------------------------------------------------------------------------

    def _measure_all(self) -> None:
        while True:
            with self._lock:
                while not self._state.queue and not self._over.is_set():
                    self._news.wait()
                if self._over.is_set():
                    return
                grant = self._state.start()
            if grant is None:
                continue
            began = time.perf_counter()
            outcome = self._measure(grant.plan, grant.purpose)
            busy_s = time.perf_counter() - began
            with self._lock:
                if self._over.is_set():
                    self._state.abandon()
                    return
                self._state.finish(outcome, busy_s)
                self._typical_s = busy_s if math.isinf(self._typical_s) else 0.8 * self._typical_s + 0.2 * busy_s
                self._done.set()

    def _finish(self) -> None:
        with self._lock:
            self._over.set()
            running = self._state.running is not None
            self._news.notify_all()
        if running:
            self._interrupt()

    def _give_signs(self) -> None:
        while not self._over.wait(self._beat_s):
            with self._lock:
                held = self._state.held()
            try:
                self._link.beat(self._state.holder, held)
            except Exception as error:
                log.debug("a sign of life was lost: %s", error)
