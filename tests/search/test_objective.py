import math

from model_opt.search import Limit, Objective


def test_violation_is_the_sum_of_relative_excesses() -> None:
    objective = Objective(
        metric="ms", limits=(Limit(metric="drop", bound=0.02), Limit(metric="ratio", bound=4.0, at_most=False))
    )
    assert objective.violation({"drop": 0.02, "ratio": 4.0}) == 0
    assert math.isclose(objective.violation({"drop": 0.03, "ratio": 3.0}), 0.5 + 0.25)
    assert objective.violation({"drop": 0.01}) == math.inf


def test_feasible_first_then_the_metric_then_the_tie_breaker() -> None:
    objective = Objective(metric="ms", limits=(Limit(metric="drop", bound=0.0),), tie=("ratio", True))
    feasible = {"ms": 5.0, "drop": 0.0, "ratio": 2.0}
    assert objective.better(feasible, {"ms": 1.0, "drop": 0.1, "ratio": 9.0})
    assert objective.better({**feasible, "ms": 4.0}, feasible)
    assert objective.better({**feasible, "ratio": 3.0}, feasible)
    assert not objective.better(feasible, feasible)
    assert objective.better({"ms": 1.0, "drop": 0.1}, {"ms": 1.0, "drop": 0.2})


def test_a_missing_objective_is_worst() -> None:
    assert Objective(metric="ms").better({"ms": 1e9}, {"drop": 0.0})
    assert Objective(metric="score", maximize=True).better({"score": 2.0}, {"score": 1.0})


def test_a_limit_is_held_or_broken_for_certain_or_nobody_can_say() -> None:
    limit = Limit(metric="drop", bound=0.02)
    assert limit.certain(0.02, 0.0) is True and limit.certain(0.021, 0.0) is False
    assert limit.certain(0.01, 0.001) is True and limit.certain(0.03, 0.001) is False
    assert limit.certain(0.03, 0.01) is None and limit.certain(0.03, math.inf) is None
    assert Limit(metric="ratio", bound=2.0, at_most=False).certain(1.0, 0.1) is False
    objective = Objective(metric="speed", limits=(limit,))
    assert objective.hopeless({"drop": (0.05, 0.001)}) and not objective.hopeless({"drop": (0.05, 0.02)})
    assert not objective.hopeless({"speed": (0.0, 0.0)})
