"""The coordinator's logic: questions and ticks in, answers and what must be written first out. No Ray, clock or disk.

Exactness rests on three things only: leases settle once (`leases`), what an answer says is committed before it leaves
(`durable`), and a state whose term has been overtaken cannot commit.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from model_opt.errors import FleetError
from model_opt.federation.envelope import new_epoch
from model_opt.fleet.leases import Holder, Lease, LeaseBook, LeaseState, LeaseVerdict
from model_opt.fleet.merged_rows import merged
from model_opt.fleet.messages import (
    Changes,
    CoordinatorSnapshot,
    Grant,
    LeaseResult,
    MergedRow,
    Reply,
    RowId,
    WorkRequest,
)
from model_opt.fleet.news import FLEET_PENDING, MOST_PENDING, News, shared_out
from model_opt.fleet.roster import Roster
from model_opt.search.checked import checked
from model_opt.search.evaluator import Failure, Purpose, Reason
from model_opt.search.objective import Objective
from model_opt.search.plan import Plan
from model_opt.search.trial import Trial

LAST_ROUNDS = 32
"""When no more than this many plans a worker are left, leases are counted out by speed."""
REPLACED = "replaced"
"""The ending told to an earlier life of a worker that has been started again."""
PACE_FROM = 2
"""Plans a worker from which the fleet's pace is known."""
STALENESS_STEP = 0.05
"""How much the latest proposal weighs in the average staleness."""
SWEEP_S = 0.1
"""How often leases and workers are gone through for those that are overdue."""
GIVEN_UP = 0
"""The attempt under which the coordinator itself settles a lease, so that a late result is still an extra sample."""

_EXTENDED = "extended/"
"""Facts: requests for more budget that were granted."""


@dataclass(frozen=True, kw_only=True)
class FleetRules:
    """What a search may do. `deadline_s` is wall time; what runs then may end within `grace_s` more. `patience` ends it
    after so many settlements without a better plan. Of partial measurements the metrics of `whole_only` do not reach
    the rows, nor do disturbed ones. `gather` grants nothing until so many workers have come, or `gather_s` seconds have
    passed."""

    budget: int
    objective: Objective
    deadline_s: float | None = None
    grace_s: float = 0.0
    patience: int | None = None
    whole_only: frozenset[str] = frozenset()
    gather: int = 0
    gather_s: float = 60.0
    lease_s: float = 30.0


@dataclass
class FleetTally:
    """Counts since the search began; `failures` by reason, `workers` by name. `unknown` are results of leases that a
    lost state had granted; `staleness` is how many settlements the latest proposals did not know of, on average."""

    extra: int = 0
    duplicates: int = 0
    unknown: int = 0
    expired: int = 0
    busy_s: float = 0.0
    staleness: float = field(default=0.0, compare=False)
    failures: dict[str, int] = field(default_factory=dict)
    workers: dict[str, int] = field(default_factory=dict)


class CoordinatorState:
    """One search: its leases, its rows, who takes part, and whether it is over.

    `handle` and `tick` return what must be committed before the answer may leave. Times are wall seconds.
    """

    def __init__(self, rules: FleetRules, kept: CoordinatorSnapshot, *, term: int, epoch: str, now: float) -> None:
        """`kept` is what was committed; `term` is this life's, greater than any before; `epoch` the search's."""
        self.rules, self.term, self.epoch = rules, term, epoch
        budget = int(str(kept.facts.get("budget", rules.budget)))
        # Of this life alone: a state brought back from a backup must not give out ids that workers already hold.
        self.book = LeaseBook(budget, lease_s=rules.lease_s, prefix=f"{epoch[:8]}.{new_epoch()[:8]}")
        self.roster = Roster(lost_after_s=rules.lease_s)
        self.rows: dict[RowId, MergedRow] = {row.row_id: row for row in kept.rows}
        self.log: list[Trial] = []
        self.tally = FleetTally()
        self.ending = None if kept.facts.get("ending") is None else str(kept.facts["ending"])
        first = kept.facts.get("first_grant_s")
        self.first_grant_s = None if first is None else float(str(first))
        self.last_settled_s: float | None = None
        self._began = now
        self._open = not rules.gather or bool(kept.leases)
        self._news = News(self.log)
        self._best: tuple[float, float, float] | None = None
        self._best_at = 0
        self._sweep_at = now
        self._clear()
        self.book.restore(kept.leases, ((one.lease_id, one.attempt) for one in kept.results), now)
        for item in kept.results:
            self._learn(item)
        self._best_at = max(self._best_at, int(str(kept.facts.get("patience_from", 0))))
        self._deadline_s = None if kept.facts.get("timeless") else rules.deadline_s
        self._extended = {name for name in kept.facts if name.startswith(_EXTENDED)}

    # what happens ---------------------------------------------------------------------------------------------------

    def handle(self, ask: WorkRequest, now: float) -> tuple[Reply, Changes]:
        """A worker's turn. Raises `FleetError` where the worker has seen a later term: this life is over."""
        if ask.term > self.term:
            raise FleetError(f"term {self.term} has been overtaken by {ask.term}")
        for result in ask.results:
            self._take(result, ask.holder, now)
        replaced = self.roster.replaced(ask.holder)
        if not replaced:
            self._meet(ask, now)
        self._advance(now)
        grants = () if replaced or ask.leaving or self.ending else self._grants(ask, now)
        return self._reply(ask, grants, REPLACED if replaced else self.ending, now), self._drain()

    def _meet(self, ask: WorkRequest, now: float) -> None:
        """What an earlier life of the worker held, or all that one which leaves holds, is leased again."""
        worker, holder = ask.holder.worker, ask.holder
        self._give_up(self.book.release(worker, keep=None if ask.leaving else holder), now)
        if ask.leaving:
            self.roster.remove(worker)
        else:
            self.roster.seen(ask, now)
            self.book.give_back(ask.returned, holder)
            self.book.renew(ask.held, holder, now)

    def heartbeat(self, holder: Holder, held: frozenset[str], now: float) -> None:
        """A heartbeat between turns: prolongs leases. Nothing to commit."""
        if self.roster.alive(holder, now):
            self.book.renew(held, holder, now)

    def tick(self, now: float) -> Changes:
        """Time passes: leases expire, workers are missed, the search may end."""
        self._advance(now)
        return self._drain()

    def extend(self, more: int, request: str = "", *, now: float = 0.0) -> Changes:
        """`more` units of budget; a search that had ended goes on, also where its time was up by `now`. The same
        `request` counts once."""
        if _EXTENDED + request in self._extended:
            return self._drain()
        self.book.budget += more
        if self.ending == "time" or (self._deadline_s is not None and now >= self._deadline_s):
            self._deadline_s = None
            self._facts["timeless"] = True
        self.ending = None
        self.roster.begin_again()
        self._best_at = len(self.log)
        self._facts |= {"budget": self.book.budget, "ending": None, "patience_from": self._best_at}
        if request:
            self._extended.add(_EXTENDED + request)
            self._facts[_EXTENDED + request] = more
        return self._drain()

    def stop(self, why: str = "stopped") -> Changes:
        """Ends the search; what is in flight is given back."""
        self._end(why)
        return self._drain()

    @property
    def best_value(self) -> float | None:
        """The objective of the best plan measured within the limits, None before there is one."""
        if self._best is None or self._best[0] > 0:
            return None
        return -self._best[1] if self.rules.objective.maximize else self._best[1]

    # results --------------------------------------------------------------------------------------------------------

    def _take(self, result: LeaseResult, holder: Holder, now: float) -> None:
        if result.lease_id not in self.book.leases:
            self._adopt(result, holder)
        verdict = self.book.settle(result.lease_id, result.attempt)
        if verdict is LeaseVerdict.DUPLICATE:
            self.tally.duplicates += 1
            return
        position = len(self.log) if verdict is LeaseVerdict.SETTLES else None
        outcome = checked(result.outcome, result.trial.plan)  # what cannot be added up or written ends no coordinator
        kept = replace(result, position=position, trial=replace(result.trial, outcome=outcome, at_s=now))
        self._results.append(kept)
        self._merge(kept)
        self._learn(kept)

    def _adopt(self, result: LeaseResult, holder: Holder) -> None:
        """A lease of a state that was lost is known again by its result."""
        lease = Lease(
            lease_id=result.lease_id,
            plan=result.trial.plan,
            purpose=Purpose(result.trial.purpose),
            context=result.trial.context,
            state=LeaseState.EXPIRED,
            attempt=result.attempt,
            holder=holder,
            expires_s=0.0,
        )
        self.tally.unknown += 1
        self.book.adopt(lease)

    def _merge(self, result: LeaseResult) -> None:
        """Adds the samples of a result to its row; only ever called for a result that was not known."""
        row = merged(self.rows, result, self.rules.whole_only)
        if row is not None:
            self.rows[row.row_id] = self._rows[row.row_id] = row

    def _learn(self, kept: LeaseResult) -> None:
        """What follows from a result that is kept, whether it has just come or was read again."""
        trial, tally = kept.trial, self.tally
        tally.busy_s += trial.busy_s
        if kept.position is None:
            tally.extra += 1
            return
        self.log.append(trial)
        measured = trial.measurement is not None
        order = self.rules.objective.order(trial.metrics) if measured else None
        self._news.add(kept.row_id, order)
        self.last_settled_s = trial.at_s
        worker = trial.worker or ""
        tally.workers[worker] = tally.workers.get(worker, 0) + 1
        if isinstance(trial.outcome, Failure):
            tally.failures[trial.outcome.reason] = tally.failures.get(trial.outcome.reason, 0) + 1
            return
        if order is not None and (self._best is None or order < self._best):
            self._best, self._best_at = order, len(self.log)

    # the course of the search ---------------------------------------------------------------------------------------

    def _advance(self, now: float) -> None:
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP_S
            before = len(self.book.changed)
            self._give_up(self.book.expire(now), now)
            self.tally.expired += len(self.book.changed) - before
            self.roster.forget(now)
        if not self._open and (len(self.roster) >= self.rules.gather or now >= self._began + self.rules.gather_s):
            self._open = True
        if self.ending is None and (why := self._why_over(now)) is not None:
            self._end(why)

    def _why_over(self, now: float) -> str | None:
        if self.book.settled >= self.book.budget:
            return "budget"
        if self._deadline_s is not None and now >= self._deadline_s:
            return "time" if not self.book.granted or now >= self._deadline_s + self.rules.grace_s else None
        if self.rules.patience is not None and len(self.log) - self._best_at >= self.rules.patience:
            return "converged"
        if self._open and self.roster.exhausted(len(self.log)) and not self.book.granted + self.book.expired:
            return "time" if self.roster.late else "exhausted"
        return None

    def _end(self, why: str) -> None:
        """What is in flight is given back: a plan that the end cuts off was no plan's failure, and is not counted."""
        self.book.drop()
        self.ending = why
        self._facts["ending"] = why

    def _give_up(self, leases: Iterable[Lease], now: float) -> None:
        """Settles as crashed what lost every worker that measured it."""
        message = "every worker that measured it was lost"
        for lease in leases:
            trial = Trial(
                plan=lease.plan,
                purpose=lease.purpose,
                outcome=Failure(plan=lease.plan, reason=Reason.CRASH, message=message),
                context=lease.context,
                worker=lease.holder.worker,
            )
            self._take(LeaseResult(lease_id=lease.lease_id, attempt=GIVEN_UP, trial=trial), lease.holder, now)

    # answers --------------------------------------------------------------------------------------------------------

    def _grants(self, ask: WorkRequest, now: float) -> tuple[Grant, ...]:
        """What the asker should hold and does not say it has, then expired leases, then its first free proposals."""
        if ask.proposals:
            self.tally.staleness += STALENESS_STEP * (len(self.log) - ask.seen - self.tally.staleness)
        mine = self.book.held_by(ask.holder)
        given = [lease for lease in mine if lease.lease_id not in ask.held]
        wanted = self._allowance(ask, now) - len(mine)
        while wanted > 0 and (again := self.book.regrant(ask.context, ask.holder, now)) is not None:
            given.append(again)
            wanted -= 1
        for plan, purpose in ask.proposals:
            tried = self._news.tried((plan.key, ask.context))
            if wanted <= 0 or tried != (purpose is Purpose.VERIFY):
                continue
            if (lease := self.book.grant(plan, purpose, ask.context, ask.holder, now)) is not None:
                given.append(lease)
                wanted -= 1
        if given and self.first_grant_s is None:
            self.first_grant_s = self._facts["first_grant_s"] = now
        return tuple(
            Grant(lease_id=lease.lease_id, plan=lease.plan, purpose=lease.purpose, attempt=lease.attempt)
            for lease in given
        )

    def _allowance(self, ask: WorkRequest, now: float) -> int:
        """How many leases the asker may hold: towards the end no more than it can measure before the others end."""
        if not self._open:
            return 0
        left = self.book.room + self.book.expired
        if left > LAST_ROUNDS * len(self.roster):
            return ask.wanted
        work = left + self.book.granted / 2  # what is being measured is half done
        return min(ask.wanted, self.roster.in_time(ask.holder.worker, work, now))

    def _reply(self, ask: WorkRequest, grants: tuple[Grant, ...], ending: str | None, now: float) -> Reply:
        told = self._news.told(ask, len(self.roster))
        return Reply(
            serial=ask.serial,
            term=self.term,
            epoch=self.epoch,
            acknowledged=frozenset((r.lease_id, r.attempt) for r in ask.results),
            grants=grants,
            news=told.news,
            cursor=told.cursor,
            pending=tuple(self._pending_for(ask)),
            shares=self.roster.shares(ask.holder.worker, ask.context, now),
            budget=self._budget_of(ask.context, now) - self._unseen(ask.holder),
            waiting=not self._open,
            ending=ending,
            left_s=None if self._deadline_s is None else max(self._deadline_s - now, 0.0),
            skipped=told.skipped,
            measured=told.measured,
        )

    def _pending_for(self, ask: WorkRequest) -> Iterable[Plan]:
        """Plans that others measure: those among what was proposed, and the latest."""
        latest = self.book.pending_of_others(ask.context, ask.holder, self._most_pending)
        mine = {lease.plan for lease in self.book.held_by(ask.holder)}
        offered = (plan for plan, _ in ask.proposals if plan not in mine and self.book.pending(plan, ask.context))
        return dict.fromkeys((*offered, *latest))

    def _budget_of(self, context: str, now: float) -> int:
        """What of the budget `context` will have settled in the end: before the time is up, and beside other contexts.

        At the pace so far, once everybody has had `PACE_FROM` plans on average; at least one more than is begun, so
        that nobody idles where the pace was faster than it seemed.
        """
        settled, own = len(self.log), self._news.settled_in(context)
        left = self.book.budget - settled
        if self.first_grant_s is None or not own or settled < PACE_FROM * len(self.roster):
            return own + left
        if self._deadline_s is not None:
            pace = settled / max(now - self.first_grant_s, 1e-9)
            begun = self.book.granted + self.book.expired
            left = max(min(left, begun + 1), int(min(left, pace * (self._deadline_s - now))))
        return own + math.ceil(left * own / settled)

    def _unseen(self, holder: Holder) -> int:
        """How many plans others are measuring beyond those that `holder` is told of: for it they are spent."""
        return max(0, self.book.granted - len(self.book.held_by(holder)) - self._most_pending)

    @property
    def _most_pending(self) -> int:
        return shared_out(len(self.roster), FLEET_PENDING, MOST_PENDING)

    def _clear(self) -> None:
        self._results: list[LeaseResult] = []
        self._rows: dict[RowId, MergedRow] = {}
        self._facts: dict[str, object] = {}

    def _drain(self) -> Changes:
        changes = Changes(
            leases=tuple(self.book.changed.values()),
            results=tuple(self._results),
            rows=tuple(self._rows.values()),
            facts=self._facts,
        )
        self.book.changed = {}
        self._clear()
        return changes
