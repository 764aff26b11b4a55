"""Workers that search one table together, simulated by events: real proposers and owners, made-up time."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from model_opt.fleet.proposer import Search, TreeProposer
from model_opt.search import Failure, Measurement, Outcome, Plan, Purpose, Reason
from model_opt.search.ownership import shares_of
from searching.problems import Problem

LAG = 1.0
"""How late a worker sees what another has done, in measurements of a worker of speed 1."""
LEADERS = 16
"""Leaders that a worker offers to measure again: a lease is for one worker, whatever another has seen."""


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """`speeds` of the workers, whose measurements take 1 / speed; `dies_at` is when the first worker ends for good, its
    measurement lost (None: never)."""

    speeds: tuple[float, ...]
    dies_at: float | None = None


@dataclass(frozen=True, kw_only=True)
class Flight:
    """A measurement: by whom, of what, from when to when."""

    worker: int
    plan: Plan
    purpose: Purpose
    start: float
    end: float
    outcome: Outcome | None
    """None where the worker ended before it was done."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """The recommended row, and distinct plans as a share of the evaluations that explored."""

    row: int
    distinct: float


def measured(problem: Problem, plan: Plan, rng: np.random.Generator) -> Outcome:
    """One measurement from the table."""
    metrics = problem.measure(problem.table.row_of(plan), rng)
    if metrics is None:
        return Failure(plan=plan, reason=Reason.ILLEGAL, message="it cannot be measured")
    return Measurement(plan=plan, samples={metric: (value,) for metric, value in metrics.items()})


def description(problem: Problem, seed: int) -> Search:
    """What every worker is told of the problem."""
    noise = {metric: None if problem.table.noisy(metric) else 0.0 for metric in problem.objective.metrics}
    return Search(space=problem.table.space, objective=problem.objective, seed=seed, noise=noise)


class Simulation:
    """One search of a fleet. The coordinator counts the budget and leases a leader to one worker at a time; nothing but
    ownership keeps workers apart that explore."""

    def __init__(self, problem: Problem, fleet: Fleet, budget: int, seed: int) -> None:
        self.problem, self.fleet, self.budget = problem, fleet, budget
        self.search = description(problem, seed)
        self.rng = np.random.default_rng([seed, 104])
        workers = range(len(fleet.speeds))
        self.proposers = [TreeProposer(f"w{w}", self.search, budget, {}) for w in workers]
        self.told: list[set[int]] = [set() for _ in workers]
        self.flights: list[Flight] = []

    def run(self) -> Found:
        """Searches until the budget is used up."""
        waiting = [(0.0, worker) for worker in range(len(self.fleet.speeds))]
        while waiting and self._used() < self.budget:
            now, worker = heapq.heappop(waiting)
            if self._dead(worker, now):
                continue
            flight = self._launch(worker, now)
            heapq.heappush(waiting, (now + LAG if flight is None else flight.end, worker))
        return self._found()

    def _used(self) -> int:
        """Units of the budget that are used or in use: what a worker that ended had begun is given back."""
        return sum(flight.outcome is not None for flight in self.flights)

    def _dead(self, worker: int, now: float) -> bool:
        return worker == 0 and self.fleet.dies_at is not None and now >= self.fleet.dies_at

    def _launch(self, worker: int, now: float) -> Flight | None:
        proposer, pending = self.proposers[worker], self._look(worker, now)
        roster = {
            f"w{w}": speed for w, speed in enumerate(self.fleet.speeds) if not self._dead(w, now - LAG) or w == worker
        }
        (shares,) = shares_of(roster)
        proposals = proposer.propose(1, pending=pending, shares=shares, budget=self.budget)
        leased = {f.plan for f in self.flights if f.purpose is Purpose.VERIFY and f.end > now}
        if proposals and proposals[0][1] is Purpose.VERIFY and proposals[0][0] in leased:
            proposals = proposer.propose(LEADERS, pending=pending, shares=shares, budget=self.budget)
            proposals = [one for one in proposals if one[0] not in leased][:1]
        if not proposals:
            return None
        (plan, purpose), end = proposals[0], now + 1 / self.fleet.speeds[worker]
        outcome = None if self._dead(worker, end) else measured(self.problem, plan, self.rng)
        flight = Flight(worker=worker, plan=plan, purpose=purpose, start=now, end=end, outcome=outcome)
        self.flights.append(flight)
        return flight

    def _look(self, worker: int, now: float) -> Sequence[Plan]:
        """Tells a worker what it can know by now; returns the plans that it must take to be in flight."""
        pending = []
        for place, flight in enumerate(self.flights):
            lag = 0.0 if flight.worker == worker else LAG
            if place in self.told[worker] or flight.start + lag > now:
                continue
            if flight.end + lag <= now:
                self.told[worker].add(place)
                if flight.outcome is not None:
                    self.proposers[worker].tell(flight.outcome)
            else:
                pending.append(flight.plan)
        return pending

    def _found(self) -> Found:
        searcher = self.search.searcher(self.budget, {})
        for flight in sorted(self.flights, key=lambda flight: flight.end):
            if flight.outcome is not None:
                searcher.tell(flight.outcome)
        explored = [f.plan.key for f in self.flights if f.purpose is Purpose.EXPLORE and f.outcome is not None]
        row = self.problem.table.row_of(searcher.recommend().plan)
        return Found(row=row, distinct=len(set(explored)) / len(explored))


def apart(problem: Problem, workers: int, budget: int, seed: int) -> Found:
    """Workers that do not know of one another, each with its share of the budget; the best of their answers by what
    each believes of its own."""
    answers, explored = [], []
    objective, rng = problem.objective, np.random.default_rng([seed, 104])
    for worker in range(workers):
        searcher = description(problem, 1000 * seed + worker).searcher(budget // workers, {})
        while (proposal := searcher.ask()) is not None:
            searcher.tell(measured(problem, proposal.plan, rng))
            if proposal.purpose is Purpose.EXPLORE:
                explored.append(proposal.plan.key)
        answer = searcher.recommend()
        if answer.estimates:
            believed = {metric: estimate.mean for metric, estimate in answer.estimates.items()}
            answers.append((not answer.feasible, *objective.order(believed), answer.plan))
    plan = min(answers, key=lambda answer: answer[:-1])[-1]
    row = problem.table.row_of(plan)
    return Found(row=row, distinct=len(set(explored)) / len(explored))
