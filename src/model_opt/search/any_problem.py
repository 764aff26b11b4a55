"""The front door for any problem: a space, a function to evaluate, a budget."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from model_opt.errors import InvalidInput, MeasurementFailed, TechniqueError
from model_opt.search.evaluator import Failure, Measurement, Outcome, Purpose, Reason
from model_opt.search.is_number import is_number, is_whole
from model_opt.search.ledger import Evidence
from model_opt.search.objective import Limit, Objective
from model_opt.search.plan import Plan
from model_opt.search.planner import NODES
from model_opt.search.recommendation import Recommendation
from model_opt.search.searcher import Searcher
from model_opt.search.space import SearchSpace

Constraint = float | tuple[str, float]
"""An upper limit, or ("<=" or ">=", limit)."""
Part = Mapping[str, float | tuple[float, float]]
"""Metrics by name; a first look is (value, standard error), and the value is yielded again once it is final."""
Evaluation = Part | Iterator[Part]
Evaluate = Callable[[Mapping[str, str]], Evaluation]
"""Measures a plan (every decision's option by name), at once or by yielding metrics as they come, cheap ones first."""

_LARGEST = 1e150
_RETURNED_NO = "evaluate returned no"
_FIRST = 5
"""Where so many evaluations, from the first, lack the same metrics, these are taken to be misnamed."""


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One call of `evaluate`: the full plan, what came back, and why it failed if it did. `dropped`: a limit was
    certainly broken before all that the objective needs had come, and the rest was not measured."""

    plan: Mapping[str, str]
    metrics: Mapping[str, float]
    purpose: Purpose = Purpose.EXPLORE
    failure: str | None = None
    dropped: bool = False


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """What a search found. `observations` has one entry per call of `evaluate`, in order; `pareto` are the measured
    plans that none beats in the objective and the limited metrics at once."""

    recommendation: Recommendation
    observations: Sequence[Observation]
    pareto: Sequence[Mapping[str, str]]
    searcher: Searcher = field(repr=False)

    @property
    def plan(self) -> Plan:
        """The recommended plan."""
        return self.recommendation.plan

    @property
    def best(self) -> dict[str, str]:
        """The recommended plan, every decision with its option."""
        return self.searcher.space.assignment(self.plan)

    @property
    def feasible(self) -> bool:
        """Whether the recommended plan holds the limits with probability 0.95."""
        return self.recommendation.feasible

    def answer(
        self,
        *,
        minimize: str | None = None,
        maximize: str | None = None,
        constraints: Mapping[str, Constraint] | None = None,
    ) -> "SearchResult":
        """The answer under another objective or other constraints, from the same observations. Without `minimize` and
        `maximize` the objective stays. Raises `InvalidInput` for a metric that nothing was measured of."""
        old = self.searcher.objective
        if minimize is None and maximize is None:
            minimize, maximize = (None, old.metric) if old.maximize else (old.metric, None)
        objective = make_objective(minimize, maximize, constraints or {})
        known = {metric for observation in self.observations for metric in observation.metrics}
        for metric in objective.metrics:
            if metric not in known:
                raise InvalidInput(
                    f"metric {metric!r} was not measured; measured: {', '.join(sorted(known)) or 'none'}"
                )
        return _result(self.searcher, objective, self.observations)


def search(
    space: SearchSpace,
    evaluate: Evaluate,
    *,
    budget: int,
    minimize: str | None = None,
    maximize: str | None = None,
    constraints: Mapping[str, Constraint] | None = None,
    seed: int = 0,
    noise: Mapping[str, float | None] | None = None,
    first: Sequence[Mapping[str, str]] = (),
    prior: Mapping[tuple[str, str], float] | None = None,
    evidence: Sequence[Evidence] = (),
    tree_nodes: int = NODES,
    on_observation: Callable[[Observation], None] | None = None,
) -> SearchResult:
    """Searches `space` for the plan with the smallest (largest) metric within `constraints`.

    Parameters
    ----------
    space
        The decisions with their options, and what is not allowed together.
    evaluate
        Measures a plan, given as every decision's option by name. It returns the metrics by name, or yields them as
        they come, cheap ones first. Where it raises, or a value is not finite, the plan has failed.
    budget
        How many evaluations there may be.
    minimize, maximize
        The one metric that is made small, or large.
    constraints
        Upper limits of metrics by name, `(">=", x)` for lower ones.
    seed
        Of the search.
    noise
        The variance of one observation by metric, None where it is unknown. By default metrics are exact, and no plan
        is evaluated twice.
    first
        Plans that are tried first.
    prior
        Weights of (decision, option) pairs.
    evidence
        What is known of plans from elsewhere.
    tree_nodes
        The most nodes of the tree: its memory.
    on_observation
        Is told every evaluation.

    Returns
    -------
    SearchResult
        The recommended plan, every observation, and the plans that none beats.

    Raises
    ------
    InvalidInput, UnknownName
        For what cannot be; also where each of the first five evaluations lacks the same metric that is asked for.
    """
    objective = make_objective(minimize, maximize, constraints or {})
    searcher = Searcher(
        space,
        objective,
        budget=_whole(budget),
        seed=seed,
        noise=_checked_noise(noise or {}),
        first=[space.plan(choices) for choices in first],
        prior=_checked_prior(space, prior or {}),
        evidence=evidence,
        tree_nodes=tree_nodes,
    )
    observations: list[Observation] = []
    while (proposal := searcher.ask()) is not None:
        outcome, dropped = _measure(searcher, evaluate, proposal.plan)
        searcher.tell(outcome)
        observations.append(_observation(space, outcome, proposal.purpose, dropped))
        if on_observation is not None:
            on_observation(observations[-1])
        if len(observations) == _FIRST:
            _check_names(observations)
    return _result(searcher, objective, observations)


def _check_names(observations: Sequence[Observation]) -> None:
    """Raises `InvalidInput` where every evaluation lacked the same metrics."""
    told = [(observation.failure or "").removeprefix(f"{Reason.WRONG_OUTPUT}: ") for observation in observations]
    lacking = {message.partition(";")[0] for message in told}
    if len(lacking) == 1 and told[0].startswith(_RETURNED_NO):
        raise InvalidInput(told[0])


def make_objective(minimize: str | None, maximize: str | None, constraints: Mapping[str, Constraint]) -> Objective:
    """The objective in words of the front door; raises `InvalidInput`."""
    if (minimize is None) == (maximize is None):
        raise InvalidInput("name exactly one metric: minimize=... or maximize=...")
    metric = minimize if minimize is not None else maximize
    if not isinstance(metric, str) or not metric:
        raise InvalidInput(f"a metric is named by a string, not {metric!r}")
    limits = tuple(_limit(name, constraint) for name, constraint in constraints.items())
    return Objective(metric=metric, maximize=maximize is not None, limits=limits)


def _limit(metric: str, constraint: Constraint) -> Limit:
    sign, bound = constraint if isinstance(constraint, tuple) and len(constraint) == 2 else ("<=", constraint)
    if sign not in ("<=", ">=") or not is_number(bound):
        raise InvalidInput(f'constraint on {metric!r}: a number or ("<=" or ">=", number), not {constraint!r}')
    return Limit(metric=metric, bound=float(bound), at_most=sign == "<=")


def _whole(budget: int) -> int:
    if not is_whole(budget) or budget < 1:
        raise InvalidInput(f"budget must be a whole number of at least 1, not {budget!r}")
    return int(budget)


def _checked_noise(noise: Mapping[str, float | None]) -> Mapping[str, float | None]:
    for metric, variance in noise.items():
        if variance is not None and not (is_number(variance) and variance >= 0):
            raise InvalidInput(f"noise of {metric!r} is a variance, or None where it is unknown, not {variance!r}")
    return noise


def _checked_prior(space: SearchSpace, prior: Mapping[tuple[str, str], float]) -> Mapping[tuple[str, str], float]:
    for decision, option in prior:
        space.plan({decision: option})  # raises UnknownName
    return prior


def _measure(searcher: Searcher, evaluate: Evaluate, plan: Plan) -> tuple[Outcome, bool]:
    """Evaluates one plan; every error of `evaluate` becomes a failure."""
    metrics: dict[str, float] = {}
    errors: dict[str, float] = {}
    dropped = False
    try:
        with contextlib.closing(_Parts(evaluate(searcher.space.assignment(plan)))) as parts:
            for part in parts:
                _take(part, metrics, errors)
                if plan.choices and searcher.hopeless({name: (value,) for name, value in metrics.items()}, errors):
                    dropped = parts.unfinished and not _complete(searcher.objective, metrics, errors)
                    break
    except TechniqueError as error:
        return Failure(plan=plan, reason=Reason.ILLEGAL, message=str(error)), False
    except MeasurementFailed as error:
        return Failure(plan=plan, reason=Reason.WRONG_OUTPUT, message=str(error)), False
    except Exception as error:  # the user's code may raise anything
        return Failure(plan=plan, reason=Reason.ERROR, message=f"{type(error).__name__}: {error}"), False
    wrong = _what_is_wrong(metrics, errors, searcher.objective, dropped)
    if wrong is not None:
        return Failure(plan=plan, reason=Reason.WRONG_OUTPUT, message=wrong), False
    samples = {name: (value,) for name, value in metrics.items() if dropped or name not in errors}
    return Measurement(plan=plan, samples=samples, partial=dropped and bool(errors)), dropped


def _take(part: Part, metrics: dict[str, float], errors: dict[str, float]) -> None:
    """Adds what an evaluation yielded: a first look has a standard error, which a final value takes away."""
    for name, given in part.items():
        value, error = given if isinstance(given, tuple) else (given, None)
        metrics[str(name)] = float(value)
        errors.pop(str(name), None)
        if error is not None:
            errors[str(name)] = float(error)


def _complete(objective: Objective, metrics: Mapping[str, float], errors: Mapping[str, float]) -> bool:
    """Whether all that the objective needs is there, and final."""
    return all(metric in metrics and metric not in errors for metric in objective.metrics)


def _what_is_wrong(
    metrics: Mapping[str, float], errors: Mapping[str, float], objective: Objective, dropped: bool
) -> str | None:
    for name, value in metrics.items():
        if not abs(value) <= _LARGEST:  # nor NaN
            return f"{name} is {value}"
    for name, error in errors.items():
        if not 0 <= error <= _LARGEST:
            return f"the standard error of {name} is {error}"
        if name in objective.metrics and not dropped:
            return f"evaluate yielded a first look at {name}, and no final value"
    missing = [metric for metric in objective.metrics if metric not in metrics]
    if not missing or dropped:
        return None
    return f"{_RETURNED_NO} {', '.join(missing)}; it returned {', '.join(sorted(metrics)) or 'nothing'}"


class _Parts:
    """An evaluation as an iterator over its parts, whether it came whole or piece by piece."""

    def __init__(self, evaluation: Evaluation) -> None:
        self._whole = isinstance(evaluation, Mapping)
        self._parts: Iterator[Part] = iter((evaluation,)) if isinstance(evaluation, Mapping) else evaluation

    @property
    def unfinished(self) -> bool:
        """Whether stopping now leaves something out."""
        return not self._whole

    def __iter__(self) -> Iterator[Part]:
        return iter(self._parts)

    def close(self) -> None:
        """Lets a generator clean up."""
        close = getattr(self._parts, "close", None)
        if close is not None:
            close()


def _observation(space: SearchSpace, outcome: Outcome, purpose: Purpose, dropped: bool) -> Observation:
    plan = space.assignment(outcome.plan)
    if isinstance(outcome, Failure):
        return Observation(plan=plan, metrics={}, purpose=purpose, failure=f"{outcome.reason}: {outcome.message}")
    metrics = {name: values[0] for name, values in outcome.samples.items()}
    return Observation(plan=plan, metrics=metrics, purpose=purpose, dropped=dropped)


def _result(searcher: Searcher, objective: Objective, observations: Sequence[Observation]) -> SearchResult:
    directions = [(metric, objective.maximizes(metric)) for metric in objective.metrics]
    return SearchResult(
        recommendation=searcher.recommend(objective),
        observations=tuple(observations),
        pareto=[searcher.space.assignment(plan) for plan in searcher.pareto(directions)],
        searcher=searcher,
    )
