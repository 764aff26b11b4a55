"""Ways to search a table: ours and what others would use. Each answers with a plan at given numbers of evaluations."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from model_opt.errors import MissingDependency
from model_opt.search import Searcher
from searching.fleet import description, measured
from searching.problems import Problem

Answers = dict[int, int]
"""Evaluations → the row of the recommended plan."""


class Run:
    """The measurements of one run, and the best of them as observed: what a method without a model recommends."""

    def __init__(self, problem: Problem, seed: int, checkpoints: Sequence[int]) -> None:
        self.problem, self.checkpoints = problem, checkpoints
        self.rng = np.random.default_rng([seed, 14])
        self.answers: Answers = {}
        self._evaluations = 0
        self._best: tuple[tuple[float, float], int] | None = None

    def measure(self, row: int) -> dict[str, float] | None:
        """One measurement, None where the plan cannot be measured; notes the answer at a checkpoint."""
        metrics = self.problem.measure(row, self.rng)
        if metrics is not None:
            key = (self.problem.objective.violation(metrics), metrics[self.problem.objective.metric])
            if self._best is None or key < self._best[0]:
                self._best = (key, row)
        self._evaluations += 1
        if self._evaluations in self.checkpoints and self._best is not None:
            self.answers[self._evaluations] = self._best[1]
        return metrics

    @property
    def finished(self) -> bool:
        """Whether the last checkpoint is reached."""
        return self._evaluations >= max(self.checkpoints)


def ours(problem: Problem, seed: int, checkpoints: Sequence[int], **options: Any) -> Answers:
    """The product's search. Its budget is each checkpoint: runs share their way until the shorter one verifies."""
    rng = np.random.default_rng([seed, 14])
    searcher = Searcher(
        problem.table.space,
        problem.objective,
        budget=max(checkpoints),
        seed=seed,
        noise=description(problem, seed).noise,
        **options,
    )
    answers = {}
    for budget in sorted(checkpoints):
        searcher.budget = budget
        go_on(searcher, problem, rng, until=budget - searcher.verifications)
        last = copy.deepcopy(searcher)
        go_on(last, problem, np.random.default_rng([seed, budget]), until=budget)
        answers[budget] = problem.table.row_of(last.recommend().plan)
    return answers


def go_on(searcher: Searcher, problem: Problem, rng: np.random.Generator, until: int) -> None:
    """Measures what the searcher asks for until so many are settled, or it asks for no more."""
    while searcher.settled < until and (proposal := searcher.ask()) is not None:
        searcher.tell(measured(problem, proposal.plan, rng))


def random(problem: Problem, seed: int, checkpoints: Sequence[int]) -> Answers:
    """Plans drawn uniformly, none twice."""
    run = Run(problem, seed, checkpoints)
    rows = problem.table.rows
    for row in np.random.default_rng(seed).choice(rows, min(max(checkpoints), len(rows)), replace=False):
        run.measure(int(row))
    return run.answers


def evolution(problem: Problem, seed: int, checkpoints: Sequence[int]) -> Answers:
    """Regularised evolution (Real, Aggarwal, Huang and Le 2019): a population of 20, tournaments of 5, one mutation;
    feasible plans win against infeasible ones, those by their violation."""
    run, rng = Run(problem, seed, checkpoints), np.random.default_rng(seed)
    objective = problem.objective
    population: list[tuple[tuple[float, float], np.ndarray]] = []
    while not run.finished:
        if len(population) < 20:
            codes = problem.table.codes(int(rng.choice(problem.table.rows)))
        else:
            some = rng.choice(20, 5, replace=False)
            parent = min((population[-20:][i] for i in some), key=lambda one: one[0])[1]
            codes = _mutated(problem, parent, rng)
        metrics = run.measure(problem.table.row(codes))
        key = (math.inf, math.inf)
        if metrics is not None:
            key = (objective.violation(metrics), metrics[objective.metric])
        population.append((key, codes))
    return run.answers


def _mutated(problem: Problem, parent: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    sizes = problem.table.space.sizes
    free, allowed = np.flatnonzero(sizes > 1), set(problem.table.rows.tolist())
    while True:
        child = parent.copy()
        at = int(rng.choice(free))
        child[at] = rng.choice(np.delete(np.arange(sizes[at]), parent[at]))
        if problem.table.row(child) in allowed:
            return child


def tpe(problem: Problem, seed: int, checkpoints: Sequence[int]) -> Answers:
    """Optuna's TPE as it comes, with the limits as its constraints."""
    optuna = _optuna()
    return _optuna_run(problem, seed, checkpoints, optuna.samplers.TPESampler(seed=seed))


def gp(problem: Problem, seed: int, checkpoints: Sequence[int]) -> Answers:
    """Optuna's Gaussian process sampler as it comes, with the limits as its constraints."""
    optuna = _optuna()
    sampler = optuna.samplers.GPSampler(seed=seed)
    return _optuna_run(problem, seed, checkpoints, sampler)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise MissingDependency("optuna", "bench") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _optuna_run(problem: Problem, seed: int, checkpoints: Sequence[int], sampler: Any) -> Answers:
    """Ordered options are whole numbers, the others categories. A plan that cannot be measured ends as failed."""
    import warnings

    optuna = _optuna()
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    run = Run(problem, seed, checkpoints)
    study = optuna.create_study(sampler=sampler)
    while not run.finished:
        trial = study.ask()
        codes = []
        for decision in problem.table.space.decisions:
            many = len(decision.options)
            if decision.ordered:
                codes.append(trial.suggest_int(decision.name, 0, many - 1))
            else:
                codes.append(trial.suggest_categorical(decision.name, range(many)))
        metrics = run.measure(problem.table.row(codes))
        if metrics is None:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            continue
        objective = problem.objective
        beyond = [metrics[x.metric] - x.bound if x.at_most else x.bound - metrics[x.metric] for x in objective.limits]
        for limit, excess in zip(objective.limits, beyond, strict=True):
            trial.set_constraint(limit.metric, excess)
        study.tell(trial, metrics[objective.metric])
    return run.answers


def smac(problem: Problem, seed: int, checkpoints: Sequence[int]) -> Answers:
    """SMAC's facade for hyperparameters. It knows no constraints: what breaks a limit costs the worst value seen plus
    its relative violation."""
    try:
        import ConfigSpace
        from smac import HyperparameterOptimizationFacade as Facade
        from smac import Scenario
    except ImportError as error:
        raise MissingDependency("smac", "bench") from error
    run, worst = Run(problem, seed, checkpoints), [-math.inf]
    space = ConfigSpace.ConfigurationSpace(seed=seed)
    for decision in problem.table.space.decisions:
        if decision.ordered:
            space.add(ConfigSpace.Integer(decision.name, (0, len(decision.options) - 1)))
        elif len(decision.options) > 1:
            space.add(ConfigSpace.Categorical(decision.name, list(range(len(decision.options)))))

    def cost(config: Mapping[str, int], seed: int = 0) -> float:
        codes = [int(config.get(d.name, 0)) for d in problem.table.space.decisions]
        metrics = run.measure(problem.table.row(codes))
        if metrics is None:
            return worst[0] + 10 if math.isfinite(worst[0]) else 1e3
        value = metrics[problem.objective.metric]
        worst[0] = max(worst[0], value)
        violation = problem.objective.violation(metrics)
        return value if violation == 0 else worst[0] + violation

    with TemporaryDirectory() as folder:
        scenario = Scenario(
            space, n_trials=max(checkpoints), seed=seed, output_directory=Path(folder), deterministic=True
        )
        Facade(scenario, cost, logging_level=False, overwrite=True).optimize()
    return run.answers


METHODS: Mapping[str, Callable[..., Answers]] = {
    "ours": ours,
    "tpe": tpe,
    "random": random,
    "evolution": evolution,
    "gp": gp,
    "smac": smac,
}
SLOW = ("gp", "smac")
