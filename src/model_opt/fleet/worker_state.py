"""A worker's side of the conversation: what it holds, what it measured, what it has heard. Pure."""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from model_opt.fleet.leases import Holder, ResultKey
from model_opt.fleet.messages import Grant, LeaseResult, Reply, WorkRequest
from model_opt.search.evaluator import Outcome, Purpose
from model_opt.search.plan import Plan
from model_opt.search.trial import Trial

MOST_RESULTS = 200
"""Results in one question; after a change of term they all go up again, in several."""


class WorkerState:
    """Remembers every result of this search, sends each until a coordinator of the current term has it on disk.

    Answers to earlier questions and of lower terms are refused. For one thread, or under one lock.
    """

    def __init__(self, holder: Holder, context: str) -> None:
        self.holder, self.context = holder, context
        self.term = 0
        self.epoch: str | None = None
        self.cursor = 0
        self.last: Reply | None = None
        self.queue: deque[Grant] = deque()
        self.running: Grant | None = None
        self._serial = 0
        self._results: dict[ResultKey, LeaseResult] = {}
        self._unsent: dict[ResultKey, None] = {}
        self._returned: frozenset[str] = frozenset()
        self._told_returned: frozenset[str] = frozenset()
        self._measured = 0
        self._measured_s = 0.0

    @property
    def holds(self) -> int:
        """Leases that are queued or being measured."""
        return len(self.queue) + (self.running is not None)

    @property
    def unsent(self) -> int:
        """Results that no coordinator of this term is known to have."""
        return len(self._unsent)

    def held(self) -> frozenset[str]:
        """The ids of leases that are queued, being measured, or measured and not yet known to be on disk."""
        own = [*self.queue, *([self.running] if self.running else [])]
        return frozenset(grant.lease_id for grant in own) | {lease_id for lease_id, _ in self._unsent}

    def question(
        self,
        *,
        proposals: Sequence[tuple[Plan, Purpose]] = (),
        wanted: int = 0,
        seen: int = 0,
        exhausted: bool = False,
        late: bool = False,
        leaving: bool = False,
    ) -> WorkRequest:
        """The next question; only its answer will be accepted."""
        self._serial += 1
        self._told_returned = self._returned
        unsent = [self._results[key] for key in self._unsent]
        return WorkRequest(
            holder=self.holder,
            serial=self._serial,
            term=self.term,
            context=self.context,
            results=tuple(unsent[:MOST_RESULTS]),
            proposals=tuple(proposals),
            wanted=wanted,
            held=self.held(),
            cursor=self.cursor,
            seen=seen,
            speed=self._measured / self._measured_s if self._measured_s else 0.0,
            exhausted=exhausted,
            late=late,
            returned=self._returned,
            leaving=leaving,
        )

    def hear(self, reply: Reply) -> bool:
        """Takes an answer in; False where it is to an earlier question, or of a life that is over."""
        if reply.serial != self._serial or reply.term < self.term or (self.last and self.last.serial == reply.serial):
            return False
        if reply.term > self.term:
            self.term = reply.term
            self._unsent = dict.fromkeys(self._results)
        if self.epoch not in (None, reply.epoch):  # the state was lost: its news begin anew, ours were another log's
            reply = replace(reply, news=(), cursor=0, skipped=0, measured=())
        self.epoch = reply.epoch
        self._returned -= self._told_returned
        for key in reply.acknowledged:
            self._unsent.pop(key, None)
        self.cursor = reply.cursor
        for grant in reply.grants:
            self._accept(grant)
        self.last = reply
        return True

    def start(self) -> Grant | None:
        """The next plan to measure, or None."""
        self.running = self.queue.popleft() if self.queue else None
        return self.running

    def give_back(self) -> None:
        """The next plan will not be measured: the next question says so."""
        self._returned |= {self.queue.popleft().lease_id}

    def finish(self, outcome: Outcome, busy_s: float) -> None:
        """What came of the plan that was started."""
        grant, self.running = self.running, None
        if grant is None:
            raise RuntimeError("nothing was being measured")
        key = (grant.lease_id, grant.attempt)
        self._measured += 1
        self._measured_s += busy_s
        trial = Trial(
            plan=grant.plan,
            purpose=grant.purpose,
            outcome=outcome,
            busy_s=busy_s,
            context=self.context,
            worker=self.holder.worker,
        )
        self._results[key] = LeaseResult(lease_id=grant.lease_id, attempt=grant.attempt, trial=trial)
        self._unsent[key] = None

    def abandon(self) -> None:
        """Forgets the plan that was started: the search is over."""
        self.running = None

    def _accept(self, grant: Grant) -> None:
        known = [*self.queue, *([self.running] if self.running else [])]
        if (grant.lease_id, grant.attempt) in self._results or any(g.lease_id == grant.lease_id for g in known):
            return
        self.queue.append(grant)
