"""Leases: the right to measure one plan, and one unit of the budget. Pure: time is passed in, nothing is sent."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import islice

from model_opt.errors import FleetError
from model_opt.search.evaluator import Purpose
from model_opt.search.plan import Plan

MOST_ATTEMPTS = 3
"""A plan whose workers were lost this often while they measured it is settled as crashed."""


class LeaseState(StrEnum):
    """granted → settled | expired → granted (attempt + 1) | dropped: given back unmeasured, or open at the end."""

    GRANTED = "granted"
    EXPIRED = "expired"
    SETTLED = "settled"
    DROPPED = "dropped"


class LeaseVerdict(StrEnum):
    """What a result is to its lease."""

    SETTLES = "settles"
    EXTRA = "extra"
    """Another attempt has settled it, or it was dropped: samples that are not part of the budget."""
    DUPLICATE = "duplicate"


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A worker's life: a worker that is started again has the same name and a greater incarnation."""

    worker: str
    incarnation: str


@dataclass(frozen=True, kw_only=True)
class Lease:
    """One lease. `context` is the key of where its holder measures; `expires_s` is in the coordinator's clock. `lost`
    counts the holders that were lost while they measured it."""

    lease_id: str
    plan: Plan
    purpose: Purpose
    context: str
    state: LeaseState
    attempt: int
    holder: Holder
    expires_s: float
    lost: int = 0


ResultKey = tuple[str, int]
"""(lease_id, attempt): what makes a result known again."""


class LeaseBook:
    """All leases of one search. At every moment settled + granted + expired ≤ budget, and nothing settles twice.

    Methods that change leases put them in `changed`, by id, for whoever keeps the book on disk.
    """

    def __init__(self, budget: int, *, lease_s: float, prefix: str) -> None:
        """`lease_s` is how long a lease lives without a sign of its holder; ids are `prefix` and a number."""
        self.budget = budget
        self.changed: dict[str, Lease] = {}
        self.leases: dict[str, Lease] = {}
        self.results: set[ResultKey] = set()
        self._lease_s = lease_s
        self._prefix = prefix
        self._by_state: dict[LeaseState, dict[str, None]] = {state: {} for state in LeaseState}
        self._pending: dict[tuple[str, str], str] = {}
        self._of_worker: dict[str, dict[str, None]] = {}

    def restore(self, leases: Iterable[Lease], results: Iterable[ResultKey], now: float) -> None:
        """Takes over what was kept; holders get a full lease from `now`, for nobody could renew in between."""
        for lease in leases:
            self._put(replace(lease, expires_s=now + self._lease_s))
        self.results.update(results)
        self.changed.clear()

    @property
    def settled(self) -> int:
        """Units of the budget that are spent."""
        return len(self._by_state[LeaseState.SETTLED])

    @property
    def granted(self) -> int:
        """Leases that somebody holds."""
        return len(self._by_state[LeaseState.GRANTED])

    @property
    def room(self) -> int:
        """Units of the budget that no lease stands for. An expired lease keeps its unit: its result may yet come."""
        return self.budget - self.settled - self.granted - self.expired

    @property
    def expired(self) -> int:
        """Leases that nobody holds and that are still to be measured."""
        return len(self._by_state[LeaseState.EXPIRED])

    def open(self) -> list[Lease]:
        """Granted and expired leases."""
        return self._all(LeaseState.GRANTED) + self._all(LeaseState.EXPIRED)

    def pending(self, plan: Plan, context: str) -> bool:
        """Whether a lease on this plan in this context is open."""
        return (plan.key, context) in self._pending

    def held_by(self, holder: Holder) -> list[Lease]:
        """What `holder` should be measuring."""
        return [lease for lease in self._held_under(holder.worker) if lease.holder == holder]

    def pending_of_others(self, context: str, holder: Holder, many: int) -> list[Plan]:
        """Up to `many` plans that were granted last in `context` to others than `holder`."""
        newest = (self.leases[lease_id] for lease_id in reversed(self._by_state[LeaseState.GRANTED]))
        others = (lease.plan for lease in newest if lease.context == context and lease.holder != holder)
        return list(islice(others, many))

    def grant(self, plan: Plan, purpose: Purpose, context: str, holder: Holder, now: float) -> Lease | None:
        """A new lease, or None where the budget has no room or the plan is in flight in this context."""
        if self.room <= 0 or self.pending(plan, context):
            return None
        lease = Lease(
            lease_id=f"{self._prefix}.{len(self.leases)}",
            plan=plan,
            purpose=purpose,
            context=context,
            state=LeaseState.GRANTED,
            attempt=1,
            holder=holder,
            expires_s=now + self._lease_s,
        )
        return self._put(lease)

    def regrant(self, context: str, holder: Holder, now: float) -> Lease | None:
        """The oldest expired lease, with its next attempt, or None. It may move to another context."""
        for lease in self._all(LeaseState.EXPIRED):
            if lease.context == context or not self.pending(lease.plan, context):
                return self._put(
                    replace(
                        lease,
                        state=LeaseState.GRANTED,
                        attempt=lease.attempt + 1,
                        context=context,
                        holder=holder,
                        expires_s=now + self._lease_s,
                    )
                )
        return None

    def renew(self, lease_ids: Collection[str], holder: Holder, now: float) -> None:
        """Prolongs the leases that `holder` says it has; what is not its own is left alone. Not worth a write."""
        for lease in self.held_by(holder):
            if lease.lease_id in lease_ids:
                self.leases[lease.lease_id] = replace(lease, expires_s=now + self._lease_s)

    def expire(self, now: float) -> list[Lease]:
        """Expires what has not been renewed in time; the leases that must be given up after too many attempts."""
        return self._lapse(lease for lease in self._all(LeaseState.GRANTED) if lease.expires_s <= now)

    def release(self, worker: str, *, keep: Holder | None = None) -> list[Lease]:
        """Expires at once what `worker` holds, apart from what the life `keep` of it holds; as `expire`."""
        return self._lapse(lease for lease in self._held_under(worker) if lease.holder != keep)

    def settle(self, lease_id: str, attempt: int) -> LeaseVerdict:
        """Counts a result once; of several attempts' results the first settles. Raises `KeyError` for no such lease."""
        lease = self.leases[lease_id]
        if (lease_id, attempt) in self.results:
            return LeaseVerdict.DUPLICATE
        self.results.add((lease_id, attempt))
        if lease.state not in (LeaseState.GRANTED, LeaseState.EXPIRED):
            return LeaseVerdict.EXTRA
        self._put(replace(lease, state=LeaseState.SETTLED))
        return LeaseVerdict.SETTLES

    def adopt(self, lease: Lease) -> None:
        """Takes a lease of a lost state in, from the result that names it, which settles it; where the budget has no
        room, or the plan is being measured again, that is an extra one."""
        counts = self.room > 0 and not self.pending(lease.plan, lease.context)
        self._put(replace(lease, state=LeaseState.EXPIRED if counts else LeaseState.DROPPED))

    def drop(self) -> None:
        """Gives back what is open, for the search has ended; results that still come are extra."""
        for lease in self.open():
            self._put(replace(lease, state=LeaseState.DROPPED))

    def give_back(self, lease_ids: Collection[str], holder: Holder) -> None:
        """Drops leases that `holder` will not measure: their units of the budget are free again."""
        for lease in self.held_by(holder):
            if lease.lease_id in lease_ids:
                self._put(replace(lease, state=LeaseState.DROPPED))

    def validate(self) -> None:
        """Raises `FleetError` where the book contradicts itself. Simulated schedules ask after every step."""
        wrong = next((what for what, holds in self._invariants() if not holds), None)
        if wrong is not None:
            raise FleetError(f"the lease book is wrong: {wrong}")

    def _invariants(self) -> Iterator[tuple[str, bool]]:
        """What must hold at every moment, with whether it does."""
        leases, granted, opened = self.leases.values(), self._all(LeaseState.GRANTED), self.open()
        yield "more is begun than the budget has", self.settled + len(opened) <= self.budget
        states = [(lease_id, state) for state, ids in self._by_state.items() for lease_id in ids]
        yield (
            "states are not those of the leases",
            sorted(states) == sorted((one.lease_id, one.state) for one in leases),
        )
        pending = {(lease.plan.key, lease.context): lease.lease_id for lease in opened}
        yield "a plan is leased twice in one context", len(pending) == len(opened)
        yield "what is pending is not what is open", self._pending == pending
        held = {(worker, lease_id) for worker, ids in self._of_worker.items() for lease_id in ids}
        yield (
            "workers hold other leases than are granted",
            held == {(one.holder.worker, one.lease_id) for one in granted},
        )
        settled = set(self._by_state[LeaseState.SETTLED])
        yield "a lease is settled without a result", settled <= {lease_id for lease_id, _ in self.results}

    def _lapse(self, leases: Iterable[Lease]) -> list[Lease]:
        """A worker measures in the order of its grants: what it held first ran when it was lost, the rest waited."""
        lapsing = list(leases)
        ran = {next(iter(self._of_worker[worker])) for worker in {lease.holder.worker for lease in lapsing}}
        lapsed = [
            self._put(replace(lease, state=LeaseState.EXPIRED, lost=lease.lost + (lease.lease_id in ran)))
            for lease in lapsing
        ]
        return [lease for lease in lapsed if lease.lost >= MOST_ATTEMPTS]

    def _held_under(self, worker: str) -> list[Lease]:
        """What any life of `worker` holds."""
        return [self.leases[lease_id] for lease_id in self._of_worker.get(worker, ())]

    def _all(self, state: LeaseState) -> list[Lease]:
        return [self.leases[lease_id] for lease_id in self._by_state[state]]

    def _put(self, lease: Lease) -> Lease:
        before = self.leases.get(lease.lease_id)
        if before is not None:
            self._by_state[before.state].pop(before.lease_id, None)
            self._pending.pop((before.plan.key, before.context), None)
            self._of_worker.get(before.holder.worker, {}).pop(before.lease_id, None)
        if lease.state in (LeaseState.GRANTED, LeaseState.EXPIRED):
            self._pending[lease.plan.key, lease.context] = lease.lease_id
        if lease.state is LeaseState.GRANTED:
            self._of_worker.setdefault(lease.holder.worker, {})[lease.lease_id] = None
        self._by_state[lease.state][lease.lease_id] = None
        self.leases[lease.lease_id] = self.changed[lease.lease_id] = lease
        return lease
