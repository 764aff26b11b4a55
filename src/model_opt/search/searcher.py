"""The search: asks for plans to measure, learns from what is told, recommends. Pure: no clock, no I/O, no threads."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_opt.errors import InvalidInput
from model_opt.search.beliefs import Beliefs, Estimate, Judged
from model_opt.search.encoding import Encoding
from model_opt.search.evaluator import Failure, Measurement, Outcome, Purpose
from model_opt.search.expected_improvement import log_expected_improvement
from model_opt.search.hypercube import draw, hypercube
from model_opt.search.is_number import is_whole
from model_opt.search.ledger import Evidence, Ledger
from model_opt.search.objective import Objective
from model_opt.search.plan import Plan
from model_opt.search.planner import EVALUATIONS, NODES, Planner, Ranking
from model_opt.search.recommendation import Recommendation, or_better, pareto_front, recommend
from model_opt.search.space import SearchSpace
from model_opt.search.tree import Tree

Codes = NDArray[np.int16]
Owned = Callable[[Plan], bool]

FIRST_PLANS = 10
"""Plans before the model takes over, in budgets of 40 and more."""
_CONTENDS = 3.0  # standard deviations behind the leader beyond which a plan is not measured again
_REPEATS = 4  # measurements of a leader, verification included
_ENOUGH = 5  # figures of the objective from which a model tells more than distance does, to many workers that begin
_DRAWN = 512
_PENDING = 64
_SHORTLIST = 64


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A plan to measure, why, and what is expected of it."""

    plan: Plan
    purpose: Purpose
    expected: Mapping[str, Estimate]


@dataclass(frozen=True, kw_only=True)
class OptionSummary:
    """An option as the tree sees it: estimated simulations through it, their mean value in [0, 1], plans measured (or
    given)."""

    decision: str
    option: str
    visits: int
    value: float
    measured: int
    below: tuple["OptionSummary", ...] = ()


class Searcher:
    """Sequential model-based search over the plans of one space.

    What `ask` answers depends on the seed and on what was told and asked before, in order, and on nothing else.

    Parameters
    ----------
    space
        The decisions, and what is not allowed together.
    objective
        The metric that is made small or large, and the limits.
    budget
        How many outcomes may be settled, failures included; it may be set anew at any time.
    seed
        At least 0.
    noise
        The variance of one observation per metric: 0 or absent is exact, None unknown.
    first
        Plans to try before others, after the one that leaves every decision alone.
    given
        Figures that need no measuring, such as those of the user's model beside itself: taken as exact and recommended
        like others, but neither proposed nor counted. A plan that the space does not have (a decision is frozen) is
        compared with in the end, and teaches nothing, and leaving every decision alone is then a plan like others.
    prior
        Weights of (decision, option) pairs, 1 where nothing is said.
    evidence
        What is known of plans from elsewhere.
    evaluations
        How many plans are looked at for a suggestion.
    tree_nodes
        Bounds the tree's memory: a node of 12 options takes 198 bytes, and a full tree is searched on without growing.

    Raises
    ------
    InvalidInput
        For a `first` plan that the space does not allow, and for numbers that mean nothing.
    """

    def __init__(
        self,
        space: SearchSpace,
        objective: Objective,
        *,
        budget: int,
        seed: int = 0,
        noise: Mapping[str, float | None] | None = None,
        first: Sequence[Plan] = (),
        given: Sequence[Measurement] = (),
        prior: Mapping[tuple[str, str], float] | None = None,
        evidence: Sequence[Evidence] = (),
        evaluations: int = EVALUATIONS,
        tree_nodes: int = NODES,
    ) -> None:
        for plan in first:
            if not space.fits(plan):
                raise InvalidInput(f"the space does not allow the plan {plan}: {_why_not(space, plan)}")
        if budget < 1:
            raise InvalidInput(f"budget must be at least 1, not {budget}")
        if not is_whole(tree_nodes) or tree_nodes < 1:
            raise InvalidInput(f"tree_nodes must be a whole number of at least 1, not {tree_nodes!r}")
        if not is_whole(seed) or seed < 0:
            raise InvalidInput(f"seed must be a whole number of at least 0, not {seed!r}")
        self.space, self.objective, self.budget, self.verify = space, objective, budget, True
        self._seed = seed
        self._encoding = Encoding(space)
        self._ledger = Ledger(self._encoding, noise or {}, evidence)
        self._hopeless: list[Mapping[str, str]] = []
        self._given = [measurement for measurement in given if space.fits(measurement.plan)]
        self._outside = [measurement for measurement in given if not space.fits(measurement.plan)]
        for measurement in self._given:
            self._ledger.add(measurement, exact=True)
        self._beliefs = Beliefs(self._encoding, self._ledger)
        self._planner = Planner(self._encoding, evaluations=evaluations, nodes=tree_nodes)
        self._prior = self._weights(prior or {})
        self._tree: Tree | None = None
        known = {measurement.plan for measurement in given}
        alone = [] if self._outside else [space.plan({})]
        named = list(dict.fromkeys([*alone, *first]))
        self._beforehand = 1 + len(first) + len(evidence)
        drawn = [plan for plan in self._draw_first(self._room()) if plan not in named]
        self._named, self._drawn = ([plan for plan in plans if plan not in known] for plans in (named, drawn))

    # the budget -----------------------------------------------------------------------------------------------------

    @property
    def settled(self) -> int:
        """Outcomes told, failures included."""
        return len(self._ledger.outcomes) - len(self._given)

    @property
    def observations(self) -> tuple[Outcome, ...]:
        """Every outcome, in the order in which it was told."""
        return tuple(self._ledger.outcomes[len(self._given) :])

    @property
    def verifications(self) -> int:
        """How many of the budget are for measuring the leaders again, those done included; none without `verify`."""
        if not self.verify:
            return 0
        noisy = any(self._ledger.noisy(metric) for metric in self.objective.metrics)
        return max(3, math.ceil(0.08 * self.budget)) if noisy and self.budget >= 12 else 0

    def _verifications_left(self) -> int:
        """Those of `verifications` that are not done yet; one at least, for the plan that leads in the end."""
        wanted = self.verifications
        return min(wanted, max(1, wanted - self._ledger.repeats))

    # asking ---------------------------------------------------------------------------------------------------------

    def ask(self, *, owned: Owned | None = None, pending: Sequence[Plan] = ()) -> Proposal | None:
        """The plan to measure next, or None: the budget is settled, or there is nothing left that is `owned`.

        `pending` are plans in flight elsewhere: they are not proposed, and are taken as measured at what is expected.
        """
        return next(iter(self.ask_many(1, owned=owned, pending=pending)), None)

    def ask_many(self, many: int, *, owned: Owned | None = None, pending: Sequence[Plan] = ()) -> list[Proposal]:
        """Up to `many` distinct plans, best first, each chosen as if those before it were in flight."""
        if many < 1:
            raise InvalidInput(f"at least one plan must be asked for, not {many}")
        if self.settled + len(pending) >= self.budget:
            return []
        mine = self._promising(owned)
        rng = np.random.default_rng([self._seed, self.settled, len(pending)])
        if self.settled + len(pending) >= self.budget - self._verifications_left():
            leaders = self._leaders(mine, pending, contend=True)[:many]
            if leaders:
                return self._proposals(leaders, Purpose.VERIFY)
        plans = [plan for plan in self._waiting_first_plans(pending) if mine(plan)][:many]
        if len(plans) < many and not (plans and self.settled < len(self._start)):
            plans += self._explore(many - len(plans), mine, [*pending, *plans], rng)
        if (
            not plans and self.verifications
        ):  # nothing is left to explore: the rest of the budget makes the leaders surer
            return self._proposals(self._leaders(mine, pending)[:many], Purpose.VERIFY)
        return self._proposals(plans, Purpose.EXPLORE)

    def _promising(self, owned: Owned | None) -> Owned:
        """Which plans are `owned` and have nothing in them that failed for certain."""
        groups = self._hopeless

        def mine(plan: Plan) -> bool:
            if owned is not None and not owned(plan):
                return False
            has = self.space.assignment(plan) if groups else {}
            return not any(all(has.get(name, option) == option for name, option in group.items()) for group in groups)

        return mine

    def _proposals(self, plans: Sequence[Plan], purpose: Purpose) -> list[Proposal]:
        expected = self.predict(plans)
        return [Proposal(plan=p, purpose=purpose, expected=e) for p, e in zip(plans, expected, strict=True)]

    def _room(self) -> int:
        """How many plans are drawn before the model takes over: with those named and what is known from elsewhere a
        quarter of the budget as it stands, at most as it stood at first, up to `FIRST_PLANS`."""
        return max(0, min(FIRST_PLANS, max(4, self.budget // 4)) - self._beforehand)

    def _draw_first(self, many: int) -> list[Plan]:
        """A Latin hypercube of distinct plans."""
        rng = np.random.default_rng([self._seed])
        cube = hypercube(self._encoding, many, self._prior, rng) if many else ()
        return list(dict.fromkeys(self._encoding.decode(codes) for codes in cube))

    @property
    def _start(self) -> list[Plan]:
        """Leave-alone, the plans that were named, and those drawn that the budget has room for: time may run out."""
        return [*self._named, *self._drawn[: self._room()]]

    def _waiting_first_plans(self, pending: Sequence[Plan]) -> Iterator[Plan]:
        """Drawn ones only while the start lasts: time that was gained since is the model's."""
        taken = {plan.key for plan in pending} | self._ledger.records.keys()
        start = self._start if self.settled < len(self._start) else self._named
        return (plan for plan in start if plan.key not in taken)

    def _explore(self, many: int, mine: Owned, pending: Sequence[Plan], rng: np.random.Generator) -> list[Plan]:
        """The best plans by acquisition that are neither settled nor in flight."""
        assumed = self._encoding.encode(pending[-_PENDING:])
        known = np.unique(np.concatenate([self._ledger.codes, self._encoding.encode(pending)]), axis=0)
        if self._planner.every is not None and len(known) >= len(self._planner.every):
            return []
        if self.settled < len(self._start) and self._ledger.figures(self.objective.metric) < _ENOUGH:
            far = self._far_apart(many, mine, known, rng)
            if far:
                return [self._encoding.decode(codes) for codes in far]
        self._beliefs.refresh(self.objective)
        self._beliefs.add_pending(self.objective, assumed)
        judged = self._beliefs.judged(self.objective)
        score = self._beliefs.acquisition(self.objective, _incumbent(judged))
        ranking = self._planner.rank(
            score,
            known=known,
            incumbents=self._incumbents(judged),
            importance=self._beliefs.importance(self.objective),
            prior=self._prior,
            rng=rng,
        )
        self._tree = ranking.tree
        shortlist = self._shortlist(ranking, many, mine, known, rng)
        chosen = self._spread(shortlist, many, judged)
        self._beliefs.forget()
        return [self._encoding.decode(codes) for codes in chosen]

    def _far_apart(self, many: int, mine: Owned, known: Codes, rng: np.random.Generator) -> list[NDArray[np.int16]]:
        """Up to `many` plans drawn at random, each as far as any from those known and those before it: by how many
        decisions it differs from the nearest."""
        drawn = np.unique(draw(self._encoding, _DRAWN, self._prior, rng), axis=0)
        drawn = rng.permutation(drawn[[mine(self._encoding.decode(codes)) for codes in drawn]])
        nearest = np.full(len(drawn), len(self._encoding.sizes))
        for codes in known:
            nearest = np.minimum(nearest, (drawn != codes).sum(axis=1))
        chosen: list[NDArray[np.int16]] = []
        while len(chosen) < many and nearest.max(initial=0) > 0:
            chosen.append(drawn[int(np.argmax(nearest))])
            nearest = np.minimum(nearest, (drawn != chosen[-1]).sum(axis=1))
        return chosen

    def _incumbents(self, judged: Judged) -> Codes:
        """The five plans to search from, best first, `[plans, decisions]`: feasible ones by score, then by
        feasibility."""
        if not judged.records:
            measured = self._ledger.succeeded()
            return measured[:5] if len(measured) else np.zeros((1, len(self._encoding.sizes)), dtype=np.int16)
        likely = judged.feasible >= 0.5
        order = np.lexsort((judged.score, np.where(likely, 0.0, -judged.feasible), ~likely))
        return np.array([judged.records[i].codes for i in order[:5]], dtype=np.int16)

    def _shortlist(self, ranking: Ranking, many: int, mine: Owned, known: Codes, rng: np.random.Generator) -> Codes:
        """The first plans of the ranking that are `mine`; where none is, some drawn at random."""
        wanted = 1 if many == 1 else max(_SHORTLIST, many)
        found: list[NDArray[np.int16]] = []
        for codes in ranking.codes:
            if mine(self._encoding.decode(codes)):
                found.append(codes)
                if len(found) == wanted:
                    break
        if not found and self._planner.every is None:
            seen = {row.tobytes() for row in known}
            drawn = draw(self._encoding, 256, self._prior, rng)
            found = [c for c in drawn if c.tobytes() not in seen and mine(self._encoding.decode(c))][:1]
        return np.array(found, dtype=np.int16).reshape(len(found), len(self._encoding.sizes))

    def _spread(self, shortlist: Codes, many: int, judged: Judged) -> list[NDArray[np.int16]]:
        """`many` of the shortlist: each the best by acquisition once those before it are believed."""
        chosen: list[NDArray[np.int16]] = []
        score = self._beliefs.acquisition(self.objective, _incumbent(judged))
        while len(shortlist) and len(chosen) < many:
            best = 0 if not chosen else int(np.argmax(score(shortlist)))
            chosen.append(shortlist[best])
            if len(chosen) < many:
                self._beliefs.add_pending(self.objective, shortlist[best : best + 1])
            shortlist = np.delete(shortlist, best, axis=0)
        return chosen

    def _leaders(self, mine: Owned, pending: Sequence[Plan], *, contend: bool = False) -> list[Plan]:
        """Measured plans worth another measurement: the answer as it stands where it was measured once, then the others
        by the same acquisition, from what is believed of them; to `contend`, only those that may yet be the best."""
        self._beliefs.refresh(self.objective)
        judged = self._beliefs.judged(self.objective)
        incumbent = _incumbent(judged)
        with np.errstate(divide="ignore"):
            value = np.log(judged.feasible)
        if incumbent is not None:
            value = value + log_expected_improvement(judged.score, judged.std, incumbent)
            behind = judged.score - incumbent > _CONTENDS * judged.std
            value = np.where(behind & contend, -np.inf, value)
        answer = recommend(judged, self.objective, self._ledger).plan.key
        unsure = [record.plan.key == answer and record.attempts == 1 for record in judged.records]
        value = np.where(unsure, np.inf, value)
        taken = {plan.key for plan in pending}
        order = (judged.records[i] for i in np.argsort(-value, kind="stable") if value[i] > -np.inf)
        again = (record for record in order if record.attempts < _REPEATS and not record.exact)
        return [record.plan for record in again if record.plan.key not in taken and mine(record.plan)]

    # telling and answering ------------------------------------------------------------------------------------------

    def tell(self, outcome: Outcome) -> None:
        """Settles one outcome. A measurement may lack metrics; without any finite sample it counts as failed. Raises
        `InvalidInput` or `UnknownName` for a plan that the space does not have."""
        if not self.space.fits(outcome.plan):
            raise InvalidInput(f"told of {outcome.plan}, which the space lacks: {_why_not(self.space, outcome.plan)}")
        self._ledger.add(outcome)
        if isinstance(outcome, Failure) and outcome.blamed:
            self._hopeless.append(dict(outcome.blamed))

    def hopeless(self, samples: Mapping[str, Sequence[float]], errors: Mapping[str, float] | None = None) -> bool:
        """Whether `samples` of a plan rule out that it is feasible; see `Objective.hopeless`. The noise of a metric
        whose noise is unknown is taken from repeats; without those nothing is ruled out. `errors` are standard errors
        of metrics that had only a first look, in place of their noise."""
        known = {}
        for limit in self.objective.limits:
            if values := samples.get(limit.metric):
                error = (errors or {}).get(limit.metric)
                noise = math.sqrt(self._ledger.variance(limit.metric) / len(values)) if error is None else error
                known[limit.metric] = (float(np.mean(values)), math.inf if math.isnan(noise) else noise)
        return self.objective.hopeless(known)

    def recommend(self, objective: Objective | None = None) -> Recommendation:
        """The best posterior mean among plans that are feasible with probability 0.95; else the least violated, marked.

        With another `objective` over metrics that were measured, the answer to that: no new search is needed.
        """
        wanted = objective or self.objective
        return or_better(recommend(self._beliefs.judged(wanted), wanted, self._ledger), self._outside, wanted)

    def pareto(self, metrics: Sequence[str | tuple[str, bool]]) -> list[Plan]:
        """The measured plans that no other beats in all of `metrics`, by what is believed of them.

        A metric's direction is the objective's (limits and tie included; otherwise small is better), or is given:
        (name, maximize). Raises `InvalidInput` where none is named, or nothing is known of one.
        """
        if not metrics:
            raise InvalidInput("a Pareto set needs at least one metric")
        pairs = [(m, self.objective.maximizes(m)) if isinstance(m, str) else m for m in metrics]
        objective = Objective(metric=pairs[0][0])
        judged = self._beliefs.judged(objective)
        return [judged.records[i].plan for i in pareto_front(judged, pairs)]

    def predict(self, plans: Sequence[Plan]) -> list[Mapping[str, Estimate]]:
        """What is believed of plans, measured or not, for every metric that there is knowledge of."""
        return self._beliefs.estimates(plans, self.objective)

    def importance(self) -> Mapping[str, float]:
        """Share of each decision in what moves the objective and the limited metrics."""
        self._beliefs.refresh(self.objective)
        return dict(zip(self._encoding.names, map(float, self._beliefs.importance(self.objective)), strict=True))

    def source_weights(self) -> Mapping[str, Mapping[str, float]]:
        """How far each source of evidence is believed now, within 0 and 1, by metric: what was learnt of it here."""
        return self._beliefs.source_weights(self.objective)

    def tree_summary(self) -> tuple[OptionSummary, ...]:
        """The options of the tree's first decision, and below each those of the second, from the last suggestion."""
        return () if self._tree is None else self._summarise(self._tree, 0, 0, {})

    def _summarise(self, tree: Tree, node: int, depth: int, above: Mapping[int, int]) -> tuple[OptionSummary, ...]:
        decision = int(tree.order[depth])
        codes = self._ledger.succeeded()
        out = []
        for option, name in enumerate(self._encoding.options[decision]):
            path = {**above, decision: option}
            visits, child = int(tree.visits[node, option]), int(tree.children[node, option])
            deeper = child >= 0 and depth == 0 and len(tree.order) > 1
            out.append(
                OptionSummary(
                    decision=self._encoding.names[decision],
                    option=name,
                    visits=visits,
                    value=float(tree.total[node, option]) / max(visits, 1),
                    measured=int(np.all([codes[:, d] == o for d, o in path.items()], axis=0).sum()),
                    below=self._summarise(tree, child, 1, path) if deeper else (),
                )
            )
        return tuple(out)

    def _weights(self, prior: Mapping[tuple[str, str], float]) -> NDArray[np.float64]:
        """`[decisions, widest]`, each row summing to 1."""
        table = np.zeros((len(self._encoding.sizes), self._encoding.widest))
        for d, (name, options) in enumerate(zip(self._encoding.names, self._encoding.options, strict=True)):
            for o, option in enumerate(options):
                table[d, o] = prior.get((name, option), 1.0)
                if not (table[d, o] >= 0 and math.isfinite(table[d, o])):
                    raise InvalidInput(f"prior of {name}={option} must be finite and not negative, not {table[d, o]}")
            if table[d].sum() == 0:
                table[d, : len(options)] = 1.0
        return np.asarray(table / table.sum(axis=1, keepdims=True))


def _incumbent(judged: Judged) -> float | None:
    """The best believed score among measured plans that are more likely feasible than not."""
    likely = judged.feasible >= 0.5
    return float(judged.score[likely].min()) if likely.any() else None


def _why_not(space: SearchSpace, plan: Plan) -> str:
    lacking = [f"{choice.decision}={choice.option}" for choice in space.frozen if choice not in plan.choices]
    if lacking:
        return f"it lacks {', '.join(lacking)}, which every plan has"
    return space.why_not(plan) or "another version of a technique"


__all__ = ["Evidence", "OptionSummary", "Proposal", "Recommendation", "Searcher"]
