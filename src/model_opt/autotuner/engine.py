"""Plans are proposed, measured and learnt from until the budget, the time or the space is used up."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from model_opt.autotuner.callbacks import Callbacks
from model_opt.autotuner.strategies import prior, strategies
from model_opt.compression.machine import Machine
from model_opt.measuring.measurer import Measurer
from model_opt.search.conclusion import Conclusion, conclude
from model_opt.search.evaluator import Failure, Measurement, Outcome, Purpose
from model_opt.search.model_signature import Family, ModelSignature
from model_opt.search.objective import Objective
from model_opt.search.plan import Plan
from model_opt.search.plan_seconds import ExpectedSeconds, PlanSeconds
from model_opt.search.searcher import Evidence, Proposal, Searcher
from model_opt.search.space import SearchSpace
from model_opt.search.trial import GIVEN, Trial, predicted_of

RULES_FIRST = 5
"""How many of the family's strategies a search starts with, where nothing is known of similar networks."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One search on this machine. `explore_until` (monotonic seconds) is when measuring should end, None for never; a
    plan that runs then may end within `grace_s` more.

    `original` are the figures of the model as it is. `known` are plans that did well on similar models, best first;
    `evidence` is what was measured there.
    """

    measurer: Measurer
    space: SearchSpace
    signature: ModelSignature
    objective: Objective
    noise: Mapping[str, float | None]
    original: Measurement
    first: Sequence[Plan] = ()
    known: Sequence[Plan] = ()
    evidence: Sequence[Evidence] = ()
    seed: int = 0
    machine: Machine | None = None
    """What the device can do, for the prior."""
    noise_db: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """What each option does to the outputs, as far as it was measured layer by layer; see `rules.prior`."""
    explore_until: float | None = None
    grace_s: float = 0.0
    expected: ExpectedSeconds | None = None
    """What plans should take, as far as can be told before one was measured; see `expected_seconds`."""
    callbacks: Callbacks = field(default_factory=Callbacks)
    on_outcome: Callable[[Outcome], None] = lambda outcome: None
    on_plan: Callable[[Plan], None] = lambda plan: None
    """Told which plan is measured next."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search has found, and why it ended: "budget", "time", "space", "interrupted", "rules"."""

    conclusion: Conclusion
    observed: tuple[Trial, ...]
    ended: str
    fleet: Mapping[str, Any] = field(default_factory=dict)
    """Who measured how much, where the search ran on a cluster."""
    remembered: bool = False
    """Whether the cluster's coordinator has written what was measured to the knowledge store."""


class CompressionTreeSearch:
    """The rule-based search: the plans known to be good here, then the family's strategies; nothing is explored.

    Where the knowledge base has a plan for this very architecture, only the best few are measured again.
    """

    KNOWN_ENOUGH = 3

    def run(self, problem: Problem) -> Found:
        """Measures the strategies and returns the best plan that keeps the constraints."""
        rules = () if len(problem.known) >= self.KNOWN_ENOUGH else strategies(problem.signature.family, problem.space)
        ladder = [*problem.first, *problem.known[: self.KNOWN_ENOUGH], *rules]
        ladder = [plan for plan in dict.fromkeys([problem.space.plan({}), *ladder]) if plan != Plan()]
        searcher = Searcher(
            problem.space,
            problem.objective,
            budget=max(len(ladder), 1),
            seed=problem.seed,
            noise=dict.fromkeys(problem.objective.metrics, 0.0),  # exact: a ladder leaves nothing to verify
            first=ladder,
            given=(problem.original,),
            evidence=problem.evidence,
        )
        return measure_all(problem, searcher, len(ladder), ended="rules")


class MCTSEngine:
    """Monte Carlo tree search over plans, each new one measured; `n_simulations` counts settled plans, failures too."""

    def __init__(self, n_simulations: int) -> None:
        self.n_simulations = n_simulations

    def run(self, problem: Problem) -> Found:
        """Searches until the budget is settled, the time is up, or every plan is measured."""
        searcher = Searcher(
            problem.space,
            problem.objective,
            budget=self.n_simulations,
            seed=problem.seed,
            noise=problem.noise,
            first=first_plans(problem),
            given=(problem.original,),
            prior=prior_of(problem, self.n_simulations),
            evidence=problem.evidence,
        )
        return measure_all(problem, searcher, self.n_simulations, ended="budget")


def prior_of(problem: Problem, plans: float) -> Mapping[tuple[str, str], float]:
    """The weights of options in a search for `plans` plans, one after the other, in the time that is left."""
    left_s = math.inf if problem.explore_until is None else max(problem.explore_until - time.monotonic(), 1.0)
    return prior(problem.space, problem.noise_db, problem.machine, problem.expected, left_s / plans)


def first_plans(problem: Problem) -> list[Plan]:
    """What a search measures before anything else: the user's plans, then those of `start_with`."""
    return list(dict.fromkeys([*problem.first, *start_with(problem.known, problem.signature.family, problem.space)]))


def start_with(known: Sequence[Plan], family: Family, space: SearchSpace) -> list[Plan]:
    """The first plans of a search: the family's strategies, or where plans are known the best of them and the first
    strategy. Then it has been seen whether what is known holds here, and where it does not little is lost.
    """
    rules = strategies(family, space)
    return [*known[:1], *rules[:1]] if known else rules[:RULES_FIRST]


def measure_all(problem: Problem, searcher: Searcher, budget: int, *, ended: str) -> Found:
    """Asks, measures and tells until the searcher has no more, the time is up, or the user interrupts.

    Only plans are begun that should end in time; one that the search's end cuts off counts as never begun.
    """
    observed = [trial_of(problem.original, GIVEN)]
    problem.on_outcome(problem.original)
    problem.callbacks.on_measurement(observed[0], settled=0, budget=budget, best=Plan())
    began = time.monotonic()
    clock = _Clock(problem)
    try:
        while True:
            proposal = clock.ask(searcher, budget)
            if proposal is None:
                ended = ended if searcher.settled >= budget else "time" if clock.refused else "space"
                break
            taught = searcher.settled or problem.evidence  # the original alone foretells nothing
            predicted = predicted_of(proposal.expected) if taught else {}
            started = time.monotonic()
            problem.on_plan(proposal.plan)
            outcome = problem.measurer.measure(proposal.plan, proposal.purpose)
            if clock.cut_off(outcome):
                problem.callbacks.on_note(f"{outcome.plan} was cut off at the search's end: it is not counted")
                ended = "time"
                break
            clock.learn(outcome, proposal.purpose, time.monotonic() - started)
            searcher.tell(outcome)
            ended_s = time.monotonic()
            trial = trial_of(outcome, proposal.purpose)
            observed.append(replace(trial, at_s=ended_s - began, busy_s=ended_s - started, predicted=predicted))
            problem.on_outcome(outcome)
            best = searcher.recommend()
            problem.callbacks.on_measurement(
                observed[-1], settled=searcher.settled, budget=budget, best=best.plan if best.feasible else None
            )
    except KeyboardInterrupt:
        ended = "interrupted"
        problem.callbacks.on_note("interrupted: keeping what was found")
    return Found(conclusion=conclude(searcher, observed), observed=tuple(observed), ended=ended)


class _Clock:
    """How much time a search has left, and what can still be measured in it."""

    def __init__(self, problem: Problem) -> None:
        self._until, self._grace_s = problem.explore_until, problem.grace_s
        self._whole_s = np.inf if self._until is None else self._until - time.monotonic()
        self._seconds = PlanSeconds(problem.expected)
        self._measured: set[str] = set()
        self._spent: list[float] = []
        self.refused = False
        """Whether the last answer of `ask` left plans out that would take too long."""

    def ask(self, searcher: Searcher, budget: int) -> Proposal | None:
        """The searcher's best plan among those that should end in time, with enough left to verify the leader."""
        self.refused = False
        if self._until is None:
            return searcher.ask()
        while True:
            proposal = self._ask_in_time(searcher, budget, self._until - time.monotonic())
            if proposal is None or self._fits(proposal.plan, self._until - time.monotonic()):
                return proposal  # planning may take long where its kernels have to be compiled first

    def _ask_in_time(self, searcher: Searcher, budget: int, left_s: float) -> Proposal | None:
        if self._spent:  # leaders are verified before the time is up
            plans = left_s / max(float(np.median(self._spent)), 1e-9)
            searcher.budget = int(min(budget, searcher.settled + max(plans, 1.0)))
        verify_s = self._verify_s(searcher)

        def fits(plan: Plan) -> bool:
            fitting = self._fits(plan, left_s - (0.0 if plan.key in self._measured else verify_s))
            self.refused |= not fitting
            return fitting

        return searcher.ask(owned=fits)

    def _fits(self, plan: Plan, left_s: float) -> bool:
        purpose = Purpose.VERIFY if plan.key in self._measured else Purpose.EXPLORE
        return self._seconds.fits(plan, purpose, left_s, self._whole_s)

    def _verify_s(self, searcher: Searcher) -> float:
        """Seconds to keep for measuring the plan that leads once more; none where it needs none, or nothing leads."""
        if not self._spent or not searcher.verifications:
            return 0.0
        best = searcher.recommend().plan
        return self._seconds.quantile(best, Purpose.VERIFY, 0.5) if best.key in self._measured else 0.0

    def cut_off(self, outcome: Outcome) -> bool:
        """Whether the search's end, not the plan, is what failed."""
        late = self._until is not None and time.monotonic() >= self._until + self._grace_s
        return isinstance(outcome, Failure) and late

    def learn(self, outcome: Outcome, purpose: Purpose, seconds: float) -> None:
        """A plan was measured, or failed, after `seconds`."""
        self._seconds.learn(outcome, purpose, seconds)
        self._measured.add(outcome.plan.key)
        self._spent.append(seconds)


def trial_of(outcome: Outcome, purpose: str) -> Trial:
    """What a plan came to, not yet said when."""
    return Trial(plan=outcome.plan, purpose=str(purpose), outcome=outcome)


def original_of(baseline: Mapping[str, float]) -> Measurement:
    """The model as it is, beside itself: no plan has to be measured for that. `baseline` is what the evaluator says."""
    exact = {"log_size_ratio": 0.0, "log_speedup": 0.0, "latency_ms": baseline["latency_ms"], "accuracy_drop": 0.0}
    return Measurement(plan=Plan(), samples={metric: (value,) for metric, value in exact.items()})
