"""What a worker would like to measure: its own local tree and surrogate over everything the fleet has measured."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from model_opt.search.evaluator import Measurement, Outcome, Purpose
from model_opt.search.objective import Objective
from model_opt.search.ownership import Shares, owned_by
from model_opt.search.plan import Plan
from model_opt.search.plan_seconds import ExpectedSeconds
from model_opt.search.searcher import Evidence, Searcher
from model_opt.search.space import SearchSpace

Proposals = list[tuple[Plan, Purpose]]
Fits = Callable[[Plan], bool]
"""Whether a plan that is begun now ends before the search does."""

_ROUNDS = 4


@dataclass(frozen=True, kw_only=True)
class Search:
    """What is searched for: everything a worker needs to make its `Searcher`, apart from the budget. `given` are
    figures that no worker has to measure; `expected` is what plans should take, where that can be told."""

    space: SearchSpace
    objective: Objective
    seed: int = 0
    noise: Mapping[str, float | None] = field(default_factory=dict)
    first: tuple[Plan, ...] = ()
    given: tuple[Measurement, ...] = ()
    prior: Mapping[tuple[str, str], float] = field(default_factory=dict)
    evidence: tuple[Evidence, ...] = ()
    expected: ExpectedSeconds | None = None

    def searcher(self, budget: int, noise: Mapping[str, float | None]) -> Searcher:
        """A fresh searcher; `noise` of the device wins over what was assumed."""
        return Searcher(
            self.space,
            self.objective,
            budget=budget,
            seed=self.seed,
            noise={**self.noise, **noise},
            first=self.first,
            given=self.given,
            prior=self.prior,
            evidence=self.evidence,
        )


class Proposer(Protocol):
    """Proposes plans for one worker. Told every settled outcome of its context once, in the coordinator's order.

    Once `explores_until` plans are settled or in flight, nothing new is explored. For one thread, apart from that
    number.
    """

    explores_until: int

    def tell(self, outcome: Outcome) -> None:
        """Learns from an outcome."""

    def propose(self, many: int, *, pending: Sequence[Plan], shares: Shares, budget: int, fits: Fits) -> Proposals:
        """Up to about `many` plans that fit, best first; empty only where there is nothing left that anybody could
        measure."""


class TreeProposer:
    """Proposes from a `Searcher`: plans that this worker owns, and anybody's once it owns none that are left. The plans
    that a search begins with are anybody's: leases keep two workers apart."""

    def __init__(self, worker: str, search: Search, budget: int, noise: Mapping[str, float | None]) -> None:
        self._worker = worker
        self._first = {plan.key for plan in search.first}
        self._searcher = search.searcher(budget, noise)
        self.explores_until = budget

    def tell(self, outcome: Outcome) -> None:
        """See `Proposer`."""
        self._searcher.tell(outcome)

    def propose(
        self,
        many: int,
        *,
        pending: Sequence[Plan],
        shares: Shares,
        budget: int,
        fits: Fits = lambda plan: True,
    ) -> Proposals:
        """See `Proposer`. Leaders are measured again whoever owns them: leases keep two workers apart.

        With fewer than `_ROUNDS` plans a worker none is, unless nothing is left to explore: the leaders are not known
        before the budget is used up.
        """
        searcher = self._searcher
        searcher.budget, searcher.verify = budget, budget >= _ROUNDS * shares.workers
        left = budget - searcher.settled - len(pending)
        found = []
        if self._worker in shares.members and left > searcher.verifications:
            owned = owned_by(self._worker, shares)

            def mine(plan: Plan) -> bool:
                return (plan.key in self._first or owned(plan)) and fits(plan)

            found = searcher.ask_many(many, owned=mine, pending=pending)
        found = found or searcher.ask_many(many, owned=fits, pending=pending)
        if not found and not searcher.verify:
            searcher.verify = True
            found = searcher.ask_many(many, owned=fits, pending=pending)
        leaders = any(proposal.purpose is Purpose.VERIFY for proposal in found)
        over = left > searcher.verifications or leaders  # where there is no leader the rest explores too
        self.explores_until = budget - searcher.verifications if over else budget
        return [(proposal.plan, proposal.purpose) for proposal in found]
