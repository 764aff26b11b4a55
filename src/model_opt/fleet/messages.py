"""What workers and the coordinator say to each other, and what the coordinator writes down before it answers."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from model_opt.errors import FleetError
from model_opt.federation.moments import Moments
from model_opt.fleet.leases import Holder, Lease
from model_opt.search.evaluator import Outcome, Purpose
from model_opt.search.ownership import Shares
from model_opt.search.plan import Plan
from model_opt.search.trial import Trial

RowId = tuple[str, str]
"""(plan key, context key)."""


@dataclass(frozen=True, kw_only=True)
class LeaseResult:
    """What came of one attempt at a lease. `position` is its place in the order of settling, once it is kept; None for
    an extra sample."""

    lease_id: str
    attempt: int
    trial: Trial
    position: int | None = None

    @property
    def outcome(self) -> Outcome:
        """What was measured, or why not: what is reported has been settled."""
        if self.trial.outcome is None:
            raise FleetError(f"lease {self.lease_id} was reported while it was being measured")
        return self.trial.outcome

    @property
    def row_id(self) -> RowId:
        """The row that its samples belong to."""
        return self.trial.plan.key, self.trial.context


@dataclass(frozen=True, kw_only=True)
class WorkRequest:
    """A worker's turn: what it measured, what it would like to measure, and what it knows.

    `held` are the leases it has and has not reported yet. `wanted` is how many it would like to hold. `term` is the
    highest it has seen, `cursor` how much of the news, `seen` how much of it the proposals knew. `speed` is in
    plans a second, 0 while unknown.
    `exhausted`: it can propose nothing more, even if it owned everything; `late`: because what is left would not end
    in time. `returned` are leases that it will not begin, for the same reason.
    """

    holder: Holder
    serial: int
    term: int
    context: str
    results: tuple[LeaseResult, ...] = ()
    proposals: tuple[tuple[Plan, Purpose], ...] = ()
    wanted: int = 0
    held: frozenset[str] = frozenset()
    cursor: int = 0
    seen: int = 0
    speed: float = 0.0
    exhausted: bool = False
    late: bool = False
    returned: frozenset[str] = frozenset()
    leaving: bool = False


@dataclass(frozen=True, kw_only=True)
class Grant:
    """A lease as its holder sees it."""

    lease_id: str
    plan: Plan
    purpose: Purpose
    attempt: int


@dataclass(frozen=True, kw_only=True)
class Reply:
    """The coordinator's answer; everything it says is on disk.

    `acknowledged` are (lease_id, attempt) of results that need not be sent again in this term. `news` are the
    outcomes settled since the cursor of the question, of the asker's context; `cursor` is where they end. A large
    fleet settles more than everybody can be told: `skipped` outcomes are then left out, and those of plans that were
    proposed all the same are `measured`. `pending` are plans that others are measuring; `shares` says who takes part.
    `budget` is what the asker's context will have settled in the end, as far as can be told, without what is in flight
    and not among `pending`. `left_s` are the seconds until the search's time is up, None where it has no limit.
    `ending` says why the search is over.
    """

    serial: int
    term: int
    epoch: str
    acknowledged: frozenset[tuple[str, int]]
    grants: tuple[Grant, ...]
    news: tuple[Outcome, ...]
    cursor: int
    pending: tuple[Plan, ...]
    shares: Shares
    budget: int
    waiting: bool
    ending: str | None
    left_s: float | None = None
    skipped: int = 0
    measured: tuple[Outcome, ...] = ()


@dataclass(frozen=True, kw_only=True)
class MergedRow:
    """The moments of all samples of one plan in one context."""

    plan: Plan
    context: str
    moments: Mapping[str, Moments]

    @property
    def row_id(self) -> RowId:
        """What it is known by within one search."""
        return self.plan.key, self.context


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What one step of the coordinator altered; it is committed as a whole, before the answer leaves."""

    leases: tuple[Lease, ...] = ()
    results: tuple[LeaseResult, ...] = ()
    rows: tuple[MergedRow, ...] = ()
    facts: Mapping[str, object] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.leases or self.results or self.rows or self.facts)


@dataclass(frozen=True, kw_only=True)
class CoordinatorSnapshot:
    """Everything that was committed. `results` are in the order in which they were kept."""

    leases: tuple[Lease, ...] = ()
    results: tuple[LeaseResult, ...] = ()
    rows: tuple[MergedRow, ...] = ()
    facts: Mapping[str, object] = field(default_factory=dict)
