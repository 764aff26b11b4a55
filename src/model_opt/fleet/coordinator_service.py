"""A coordinator in one process: the state machine, its journal with group commit, its clock. Free of Ray."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self

from model_opt.errors import FleetError, StoreUnavailable
from model_opt.fleet.coordinator_state import CoordinatorState, FleetRules
from model_opt.fleet.journal import Journal, SqliteJournal
from model_opt.fleet.leases import Holder
from model_opt.fleet.messages import Changes, LeaseResult, MergedRow, Reply, WorkRequest
from model_opt.fleet.request_check import check_heartbeat, check_request
from model_opt.fleet.steady_clock import SteadyClock
from model_opt.search.trial import Trial

log = logging.getLogger(__name__)

TICK_S = 0.5
RETRY_S, MOST_RETRY_S = 0.1, 5.0
STATE_FILE = "state.db"


class CoordinatorService:
    """Answers questions from any thread. While one transaction is written, the next gathers all that come meanwhile.

    What an answer says is on disk before the answer leaves. Where writing fails or a later life has begun, `fatal` is
    called and nothing is answered any more: memory may be ahead of the disk, so this life must end.
    """

    def __init__(
        self, rules: FleetRules, journal: Journal, *, fatal: Callable[[BaseException], None] | None = None
    ) -> None:
        self.rules, self._journal = rules, journal
        self._fatal = fatal or (lambda error: log.error("the coordinator must end: %s", error))
        self._now = SteadyClock()
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._asked: list[tuple[WorkRequest, Future[Reply]]] = []
        self._extra: list[tuple[Changes, Future[None]]] = []
        self._closed = False
        self.error: BaseException | None = None
        self.trouble: str | None = None
        """Why nothing can be written just now."""
        self.refused: str | None = None
        """What was wrong with the last message that could not be used."""
        self.facts: Mapping[str, object] = {}
        self.kept_before = 0
        """How many results there were when this life began."""
        self.state: CoordinatorState
        self._begin(1)
        self._dirty = set(self.state.rows)
        self._thread = threading.Thread(target=self._run, name="model-opt-commit", daemon=True)
        self._thread.start()

    @classmethod
    def at(cls, folder: Path, rules: FleetRules, *, fatal: Callable[[BaseException], None] | None = None) -> Self:
        """The coordinator of the search that is kept in `folder`; a new one if there is none."""
        return cls(rules, SqliteJournal(folder / STATE_FILE), fatal=fatal)

    def submit(self, ask: WorkRequest) -> "Future[Reply]":
        """A worker's question; the answer comes once it is on disk."""
        answer: Future[Reply] = Future()
        try:
            check_request(ask)
        except FleetError as error:
            log.error("%s", error)
            self.refused = str(error)
            answer.set_exception(error)
            return answer
        with self._lock:
            if self.error is not None or self._closed:
                answer.set_exception(FleetError(f"the coordinator is ending: {self.error or 'closed'}"))
                return answer
            self._asked.append((ask, answer))
            self._work.notify()
        return answer

    def ask(self, ask: WorkRequest) -> Reply:
        """As `submit`, and waits."""
        return self.submit(ask).result()

    def heartbeat(self, holder: Holder, held: frozenset[str]) -> None:
        """A heartbeat."""
        check_heartbeat(holder, held)
        with self._lock:
            self.state.heartbeat(holder, held, self._now())

    def extend(self, more: int, request: str = "") -> None:
        """`more` units of budget; on disk when this returns."""
        with self._lock:
            changes = self.state.extend(more, request, now=self._now())
        self._write(changes)

    def stop(self, why: str = "stopped") -> None:
        """Ends the search; on disk when this returns."""
        with self._lock:
            changes = self.state.stop(why)
        self._write(changes)

    def remember(self, facts: Mapping[str, object]) -> None:
        """Keeps JSON-like facts beside the search; on disk when this returns."""
        with self._lock:
            self.facts = {**self.facts, **facts}  # others read the old one as it was
        self._write(Changes(facts=dict(facts)))

    def status(self) -> dict[str, object]:
        """Counts, JSON-like."""
        with self._lock:
            state, tally = self.state, self.state.tally
            return {
                "term": state.term,
                "epoch": state.epoch,
                "budget": state.book.budget,
                "settled": state.book.settled,
                "granted": state.book.granted,
                "extra": tally.extra,
                "duplicates": tally.duplicates,
                "expired": tally.expired,
                "failures": dict(tally.failures),
                "measured_by": dict(tally.workers),
                "workers": len(state.roster),
                "lost_workers": state.roster.lost,
                "rows": len(state.rows),
                "busy_s": tally.busy_s,
                "staleness": tally.staleness,
                "first_grant_s": state.first_grant_s,
                "last_settled_s": state.last_settled_s,
                "best": state.best_value,
                "ending": state.ending,
                "trouble": self.trouble,
                "refused": self.refused,
            }

    def trials(self) -> list[Trial]:
        """What every settled lease came to, in their order; `at_s` is wall time."""
        with self._lock:
            return list(self.state.log)

    def rows(self) -> list[MergedRow]:
        """The merged rows."""
        with self._lock:
            return list(self.state.rows.values())

    def results(self, after: int = 0) -> list[tuple[int, LeaseResult]]:
        """What is on disk after the first `after` results, numbered from one; all that `rows` tells is among it."""
        self._write(Changes())
        return self._journal.results(after)

    def take_dirty(self) -> list[MergedRow]:
        """Rows that changed since the last call (at first: all), as they are on disk or about to be."""
        with self._lock:
            rows = [self.state.rows[key] for key in self._dirty]
            self._dirty = set()
            return rows

    @property
    def dirty(self) -> int:
        """How many rows the next `take_dirty` will hand out."""
        return len(self._dirty)

    def close(self) -> None:
        """Answers what was asked, then ends; twice does nothing."""
        with self._lock:
            self._closed = True
            self._work.notify()
        self._thread.join()
        self._journal.close()

    # the committing thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._step():
                pass
        except BaseException as error:
            self._perish(error)

    def _step(self) -> bool:
        """One transaction. False at the end."""
        with self._lock:
            if not (self._asked or self._extra or self._closed):
                self._work.wait(TICK_S)
            asked, extra = self._asked, self._extra
            self._asked, self._extra = [], []
            going_on = not self._closed
        waiting: list[Future[Any]] = [*(answer for _, answer in asked), *(written for _, written in extra)]
        try:
            replies = self._transact([ask for ask, _ in asked], [changes for changes, _ in extra])
        except BaseException as error:
            for future in waiting:
                future.set_exception(FleetError(f"the coordinator is ending: {error}"))
            raise
        for future, value in zip(waiting, [*replies, *(None for _ in extra)], strict=True):
            future.set_result(value)
        return going_on

    def _transact(self, asks: list[WorkRequest], extra: list[Changes]) -> list[Reply]:
        """Handles `asks` in memory, then writes it all; `extra` happened before."""
        with self._lock:
            steps = [*extra, self.state.tick(self._now())]
            replies = [self._handle(ask, steps) for ask in asks]
            self._dirty |= {row.row_id for step in steps for row in step.rows}
        if any(steps):
            self._commit([step for step in steps if step])
        return replies

    def _commit(self, steps: list[Changes]) -> None:
        """Writes `steps`; a disk that is full or locked for a while is waited for, and nobody is answered meanwhile."""
        wait_s = RETRY_S
        while True:
            try:
                self._journal.commit(self.state.term, steps)
                self.trouble = None
                return
            except StoreUnavailable as error:
                self.trouble = str(error)
                if self._closed:
                    raise
                log.warning("the search's state cannot be written, trying again: %s", error)
                time.sleep(wait_s)
                wait_s = min(2 * wait_s, MOST_RETRY_S)

    def _handle(self, ask: WorkRequest, steps: list[Changes]) -> Reply:
        if ask.term > self.state.term and not self.state.book.leases:
            self._begin(ask.term + 1)  # our state was lost, and the fleet has seen later terms than this fresh one
        reply, changes = self.state.handle(ask, self._now())
        steps.append(changes)
        return reply

    def _begin(self, at_least: int) -> None:
        term, epoch, kept = self._journal.begin(at_least)
        self.facts = dict(kept.facts)
        self.kept_before = len(kept.results)
        self.state = CoordinatorState(self.rules, kept, term=term, epoch=epoch, now=self._now())

    def _write(self, changes: Changes) -> None:
        written: Future[None] = Future()
        with self._lock:
            if self.error is not None or self._closed:
                raise FleetError(f"the coordinator is ending: {self.error or 'closed'}")
            self._extra.append((changes, written))
            self._work.notify()
        written.result()

    def _perish(self, error: BaseException) -> None:
        with self._lock:
            self.error = error
            waiting: list[Future[Any]] = [*(a for _, a in self._asked), *(w for _, w in self._extra)]
        for future in waiting:
            future.set_exception(FleetError(f"the coordinator is ending: {error}"))
        self._fatal(error)
