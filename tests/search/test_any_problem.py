import subprocess
import sys
from collections.abc import Iterator, Mapping

import pytest

from model_opt.errors import InvalidInput, TechniqueError, UnknownName
from model_opt.search import Decision, Observation, Purpose, SearchSpace, search

SPACE = SearchSpace(
    [
        Decision("op", ["none", "conv3x3", "conv5x5"]),
        Decision("width", ["16", "32", "64"], ordered=True),
        Decision("fixed", ["only"]),
    ]
)


def cost(plan: Mapping[str, str]) -> dict[str, float]:
    op = SPACE.decision("op").options.index(plan["op"])
    width = int(plan["width"])
    return {"latency_ms": 0.5 + op + width / 32, "error": 1.0 / (1 + op) + 8.0 / width}


def test_best_within_a_limit_and_other_answers_from_the_same_observations() -> None:
    result = search(SPACE, cost, budget=100, minimize="error", constraints={"latency_ms": 3.0}, seed=0)
    assert result.best == {"op": "conv3x3", "width": "32", "fixed": "only"}
    assert result.feasible
    assert len(result.observations) == 9  # every plan once, as metrics are exact
    assert set(result.observations[0].plan) == {"op", "width", "fixed"}
    assert result.observations[0].plan == {"op": "none", "width": "16", "fixed": "only"}
    assert result.observations[0].metrics == cost(result.observations[0].plan)
    assert result.best in result.pareto
    free = result.answer()
    assert free.best == {"op": "conv5x5", "width": "64", "fixed": "only"}
    fast = result.answer(minimize="latency_ms", constraints={"error": 0.6})
    assert cost(fast.best)["error"] <= 0.6
    assert fast.best == {"op": "conv5x5", "width": "32", "fixed": "only"}
    assert not result.answer(constraints={"latency_ms": 0.1}).feasible
    with pytest.raises(InvalidInput, match="not measured; measured: error, latency_ms"):
        result.answer(constraints={"memory": 1.0})


def test_lower_limits_and_maximising() -> None:
    result = search(
        SPACE,
        lambda plan: {"speed": 1 / cost(plan)["latency_ms"], "score": 1 - cost(plan)["error"]},
        budget=20,
        maximize="speed",
        constraints={"score": (">=", 0.2)},
    )
    assert result.best == {"op": "conv3x3", "width": "32", "fixed": "only"}


def test_cheap_metrics_first_and_hopeless_plans_are_closed() -> None:
    finished, closed = [], []

    def evaluate(plan: Mapping[str, str]) -> Iterator[Mapping[str, float]]:
        try:
            yield {"latency_ms": cost(plan)["latency_ms"]}
            finished.append(plan)
            yield {"error": cost(plan)["error"]}
        finally:
            closed.append(plan)

    result = search(SPACE, evaluate, budget=9, minimize="error", constraints={"latency_ms": 2.6})
    assert len(closed) == len(result.observations) == 9
    hopeless = [o for o in result.observations if cost(o.plan)["latency_ms"] > 2.6]
    assert hopeless
    assert all(o.dropped and "error" not in o.metrics for o in hopeless)
    assert len(finished) == 9 - len(hopeless)
    assert result.best == {"op": "conv3x3", "width": "32", "fixed": "only"}


def test_a_plan_that_breaks_a_limit_with_its_last_metric_is_measured_whole() -> None:
    """Another limit, or a metric that came before the plan was closed, then finds it among the answers."""

    def evaluate(plan: Mapping[str, str]) -> Iterator[Mapping[str, float]]:
        yield {"size": float(plan["width"])}
        yield {"latency_ms": cost(plan)["latency_ms"]}
        yield {"error": cost(plan)["error"]}

    result = search(SPACE, evaluate, budget=9, minimize="latency_ms", constraints={"error": 0.6, "size": 40.0})
    assert [o.dropped for o in result.observations] == [o.plan["width"] == "64" for o in result.observations]
    assert any(o.metrics.get("error", 0.0) > 0.6 for o in result.observations)
    assert result.answer(constraints={"error": 10.0}).best == {"op": "none", "width": "16", "fixed": "only"}
    assert result.answer(maximize="size").best["width"] == "64"


def test_a_first_look_closes_a_plan_only_where_its_error_leaves_no_doubt() -> None:
    def evaluate(plan: Mapping[str, str]) -> Iterator[Mapping[str, float | tuple[float, float]]]:
        error = cost(plan)["error"]
        yield {"error": (error + 0.3, 0.1)}
        yield {"error": error, "latency_ms": cost(plan)["latency_ms"]}

    result = search(SPACE, evaluate, budget=9, minimize="latency_ms", constraints={"error": 0.6})
    for one in result.observations:
        assert one.dropped == (cost(one.plan)["error"] > 0.61 and one.plan != result.observations[0].plan)
    assert result.best == {"op": "conv5x5", "width": "32", "fixed": "only"}
    assert not {"none", "conv3x3"} & {plan["op"] for plan in result.pareto if plan["width"] == "32"}


@pytest.mark.parametrize(
    ("look", "reason"),
    [((0.5, 0.1), "no final value"), ((0.5, -0.1), "standard error"), ((0.5, float("nan")), "standard error")],
)
def test_a_first_look_is_not_a_figure(look: tuple[float, float], reason: str) -> None:
    result = search(SPACE, lambda plan: {"error": look, "size": (1.0, 0.1)}, budget=9, minimize="error")
    assert all(reason in (one.failure or "") for one in result.observations)
    final = search(SPACE, lambda plan: {"error": 0.5, "size": (1.0, 0.1)}, budget=9, minimize="error")
    assert all(one.failure is None and one.metrics == {"error": 0.5} for one in final.observations)


def test_a_limit_beyond_reach_does_not_end_the_search() -> None:
    result = search(SPACE, cost, budget=9, minimize="error", constraints={"latency_ms": -1e300})
    assert len(result.observations) == 9
    assert not result.feasible


def test_an_evaluation_that_raises_or_returns_nonsense_costs_one_measurement() -> None:
    def evaluate(plan: Mapping[str, str]) -> dict[str, float]:
        if plan["op"] == "conv5x5":
            raise RuntimeError("no kernel")
        if plan["width"] == "64":
            return {"error": float("nan")}
        if plan["width"] == "32":
            return {"latency_ms": 1.0}
        return cost(plan)

    result = search(SPACE, evaluate, budget=20, minimize="error")
    assert len(result.observations) == 9
    reasons = {(o.plan["op"], o.plan["width"]): o.failure for o in result.observations}
    assert reasons["conv5x5", "16"] == "error: RuntimeError: no kernel"
    assert reasons["none", "64"] == "wrong_output: error is nan"
    assert reasons["none", "32"] == "wrong_output: evaluate returned no error; it returned latency_ms"
    assert result.best == {"op": "conv3x3", "width": "16", "fixed": "only"}


def test_everything_failing_is_an_answer_too() -> None:
    def evaluate(plan: Mapping[str, str]) -> dict[str, float]:
        raise TechniqueError("not here")

    result = search(SPACE, evaluate, budget=5, minimize="error", constraints={"latency_ms": 1.0})
    assert not result.feasible
    assert result.pareto == []
    assert {o.failure for o in result.observations} == {"illegal: not here"}


def test_noise_brings_verification_and_users_plans_come_first() -> None:
    seen: list[Observation] = []
    result = search(
        SPACE, cost, budget=14, minimize="error", noise={"error": 1e-4}, first=[{"op": "conv5x5"}],
        on_observation=seen.append
    )  # fmt: skip
    assert seen == list(result.observations)
    assert len(seen) == 14
    assert seen[1].plan["op"] == "conv5x5"
    assert {o.purpose for o in seen[-3:]} == {Purpose.VERIFY}
    assert result.best == {"op": "conv5x5", "width": "64", "fixed": "only"}


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"minimize": None}, "exactly one"),
        ({"maximize": "error"}, "exactly one"),
        ({"budget": 0}, "budget"),
        ({"budget": 2.5}, "budget"),
        ({"constraints": {"error": "3"}}, "constraint on 'error'"),
        ({"constraints": {"error": ("<", 3.0)}}, "constraint on 'error'"),
        ({"constraints": {"error": float("nan")}}, "constraint on 'error'"),
        ({"noise": {"error": -1.0}}, "noise of 'error'"),
        ({"noise": {"error": "little"}}, "noise of 'error'"),
        ({"seed": -1}, "seed"),
        ({"tree_nodes": 1.5}, "tree_nodes"),
    ],
)
def test_impossible_values_are_refused(wrong: dict[str, object], error: str) -> None:
    arguments: dict[str, object] = {"budget": 5, "minimize": "error"} | wrong
    with pytest.raises(InvalidInput, match=error):
        search(SPACE, cost, **arguments)  # type: ignore[arg-type]


def test_a_metric_that_evaluate_never_returns_ends_the_search_soon() -> None:
    seen: list[Observation] = []
    with pytest.raises(InvalidInput, match=r"^evaluate returned no latency; it returned error, latency_ms$"):
        search(
            SPACE, cost, budget=50, minimize="error", constraints={"latency": 1.0}, on_observation=seen.append
        )  # fmt: skip
    assert len(seen) == 5


def test_evaluations_that_lack_now_this_and_now_that_are_failures() -> None:
    calls = iter([{}, {"error": 1.0}, {"latency_ms": 1.0}] * 20)
    result = search(
        SPACE, lambda plan: next(calls), budget=8, minimize="error", constraints={"latency_ms": 1.0}
    )  # fmt: skip
    assert len(result.observations) == 8 and not result.feasible


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(UnknownName, match="known: conv3x3, conv5x5, none"):
        search(SPACE, cost, budget=5, minimize="error", first=[{"op": "conv7x7"}])
    with pytest.raises(UnknownName, match="known: fixed, op, width"):
        search(SPACE, cost, budget=5, minimize="error", prior={("depth", "1"): 2.0})


def test_importing_the_search_loads_nothing_heavy() -> None:
    heavy = "('torch', 'ray', 'chromadb', 'neo4j')"
    program = f"import sys, model_opt.search; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_example_runs() -> None:
    done = subprocess.run([sys.executable, "examples/any_problem.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "recommended" in done.stdout
