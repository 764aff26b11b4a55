"""A worker at work: one thread measures, one talks, one plans, one gives heartbeats. Free of Ray."""

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from model_opt.fleet.leases import Holder
from model_opt.fleet.messages import Grant, Reply, WorkRequest
from model_opt.fleet.news import MOST_NEWS
from model_opt.fleet.planning import SPARE, Planning
from model_opt.fleet.proposer import Proposals, Proposer
from model_opt.fleet.time_left import TimeLeft
from model_opt.fleet.worker_state import WorkerState
from model_opt.search.evaluator import Outcome, Purpose
from model_opt.search.plan import Plan

log = logging.getLogger(__name__)

HEARTBEAT_S = 2.0
IDLE_S = 0.2
"""How long a worker that was granted nothing waits before it asks again."""
PATIENCE_S = 0.5
"""How long a turn waits for proposals that are still being made; what was measured waits less."""
BLOCK_S = 0.1
TURNS = 3
"""Prefetched leases are worth `BLOCK_S` of measuring, or `TURNS` turns where those take longer: a turn's delay must not
leave the device idle."""
LONG_S = 2.0
"""Where measuring a plan takes this long none is prefetched: a turn costs little beside it, and whoever is free first
gets the next one, chosen with all that is known by then."""
MOST_HELD = 16
MOST_TURN_S = 2.0


class CoordinatorLink(Protocol):
    """The way to the coordinator. Both may raise anything when it cannot be reached; the worker tries again."""

    def ask(self, ask: WorkRequest) -> Reply:
        """A turn; blocks until the answer."""

    def heartbeat(self, holder: Holder, held: frozenset[str]) -> None:
        """A heartbeat; does not wait."""


@dataclass
class Spent:
    """Where a worker's time went: its measuring thread measured or had nothing to measure, its talking thread waited
    for answers."""

    measuring_s: float = 0.0
    idle_s: float = 0.0
    asking_s: float = 0.0
    turns: int = 0


class WorkerLoop:
    """Runs one worker until the search ends or it is told to leave.

    `measure` is called by one thread only; `interrupt`, from another, makes it return soon. What it raises, or any
    thread of the loop, ends the loop, and is raised by `run`: what is held is then leased again.
    `make_proposer` takes the budget and is called again where the coordinator lost its state and its news begin anew.
    `left` is the time that the search has: a plan that would not end in it is given back, not begun. `wait` returns
    when planning disturbs nobody's timing.
    """

    def __init__(
        self,
        state: WorkerState,
        link: CoordinatorLink,
        measure: Callable[[Plan, Purpose], Outcome],
        make_proposer: Callable[[int], Proposer],
        *,
        interrupt: Callable[[], None] = lambda: None,
        left: TimeLeft | None = None,
        wait: Callable[[], None] = lambda: None,
        heartbeat_s: float = HEARTBEAT_S,
    ) -> None:
        self._left = left or TimeLeft()
        self._state, self._link, self._measure = state, link, measure
        self._interrupt, self._heartbeat_s = interrupt, heartbeat_s
        self._lock = threading.Lock()
        self._news = threading.Condition(self._lock)  # something to measure, or the end
        self._done = threading.Event()  # something measured, or the end
        self._over = threading.Event()
        self._leaving = threading.Event()
        self._error: Exception | None = None
        self._typical_s = math.inf
        self._turn_s = 0.0
        self._spent = Spent()
        self._planning = Planning(make_proposer, typical_s=lambda: self._typical_s, left=self._left, wait=wait)

    def run(self) -> str:
        """Works; returns why it ended ("budget", …, "left")."""
        works = (self._measure_all, self._give_signs)
        threads = [threading.Thread(target=self._noticed, args=(work,), daemon=True) for work in works]
        for thread in threads:
            thread.start()
        self._planning.start()
        try:
            return self._converse()
        finally:
            self._finish()
            self._planning.close()
            for thread in threads:
                thread.join()
            log.info("spent %s, planning %.3f s", self._spent, self._planning.planning_s)

    def _noticed(self, work: Callable[[], None]) -> None:
        """Runs `work` in a thread; what it raises is the loop's end."""
        try:
            work()
        except Exception as error:
            self._error = error
            self._done.set()

    def leave(self) -> None:
        """Gives the leases back and ends; from any thread."""
        self._leaving.set()
        self._done.set()

    # talking --------------------------------------------------------------------------------------------------------

    def _converse(self) -> str:
        failures = 0
        while True:
            if self._error is not None:
                raise self._error
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
        exhausted = wanted > 0 and not proposals and self._planning.exhausted
        seen = self._planning.seen
        with self._lock:
            self._done.clear()  # what is finished from here on belongs to the next turn
            ask = self._state.question(
                proposals=proposals,
                wanted=wanted,
                seen=seen,
                leaving=leaving,
                exhausted=exhausted,
                late=exhausted and self._left.refused,
            )
        began = time.perf_counter()
        try:
            reply = self._link.ask(ask)
        except Exception as error:
            log.warning("the coordinator does not answer: %s", error)
            return None
        finally:
            turn_s = time.perf_counter() - began
            self._turn_s = 0.8 * self._turn_s + 0.2 * min(turn_s, MOST_TURN_S)
            self._spent.turns += 1
            self._spent.asking_s += turn_s
        with self._lock:
            if not self._state.hear(reply):
                return None
            heard = self._state.last or reply
            self._left.hear(heard.left_s, heard.news)
            self._news.notify_all()
        if reply.ending:
            self._finish()
        self._learn(self._state.last or reply, proposals)
        return reply

    def _learn(self, reply: Reply, offered: Proposals) -> None:
        own = [grant.plan for grant in self._held()]
        if offered and len(reply.grants) < len(offered) - SPARE:
            self._planning.refused(offered)
        self._planning.hear(reply, own)

    def _wishes(self) -> tuple[Proposals, int]:
        """What to propose, and how many leases to hold in all; nothing before the first answer."""
        with self._lock:
            last, missing, unsent = self._state.last, self._target() - self._state.holds, self._state.unsent
        if last is None or last.waiting or last.ending or missing <= 0:
            return [], 0
        return self._planning.take(missing, patience_s=PATIENCE_S / 5 if unsent else PATIENCE_S), self._target()

    def _target(self) -> int:
        """One that runs, and enough others for a turn."""
        if self._typical_s > LONG_S:
            return 1
        ahead_s = max(BLOCK_S, TURNS * self._turn_s)
        return min(1 + max(1, math.ceil(ahead_s / max(self._typical_s, 1e-3))), MOST_HELD)

    def _held(self) -> list[Grant]:
        with self._lock:
            running = [self._state.running] if self._state.running else []
            return [*running, *self._state.queue]

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
        self._done.wait(self._heartbeat_s if content else IDLE_S)

    # measuring ------------------------------------------------------------------------------------------------------

    def _measure_all(self) -> None:
        while True:
            waiting = time.perf_counter()
            with self._lock:
                while not self._begins() and not self._over.is_set():
                    self._news.wait()
                if self._over.is_set():
                    return
                grant = self._state.start()
            self._spent.idle_s += time.perf_counter() - waiting
            if grant is None:
                continue
            began = time.perf_counter()
            outcome = self._measure(grant.plan, grant.purpose)
            busy_s = time.perf_counter() - began
            self._spent.measuring_s += busy_s
            with self._lock:
                self._left.took(outcome, busy_s)
                if self._over.is_set():
                    log.info("cut off after %.1f s at the search's end: %s", busy_s, grant.plan)
                    self._state.abandon()
                    return
                self._state.finish(outcome, busy_s)
                self._typical_s = busy_s if math.isinf(self._typical_s) else 0.8 * self._typical_s + 0.2 * busy_s
                self._done.set()

    def _begins(self) -> bool:
        """Whether there is a plan to begin; those that would not end in time are given back first."""
        while self._state.queue and not self._left.fits(self._state.queue[0].plan):
            self._state.give_back()
            self._done.set()
        return bool(self._state.queue)

    def _finish(self) -> None:
        with self._lock:
            self._over.set()
            running = self._state.running is not None
            self._news.notify_all()
        if running:
            self._interrupt()

    def _give_signs(self) -> None:
        while not self._over.wait(self._heartbeat_s):
            with self._lock:
                held = self._state.held()
            try:
                self._link.heartbeat(self._state.holder, held)
            except Exception as error:
                log.debug("a heartbeat was lost: %s", error)
