import math
from collections.abc import Mapping

import numpy as np
import pytest
from synthetic import Table

from model_opt.errors import InvalidInput
from model_opt.search import (
    Choice,
    Decision,
    Evidence,
    Failure,
    Forbid,
    Limit,
    Measurement,
    Objective,
    Plan,
    Purpose,
    Reason,
    Searcher,
    SearchSpace,
    owned_by,
)

LIMIT = 1.0
BEST_WITHIN = Objective(metric="value", maximize=True, limits=(Limit(metric="cost", bound=LIMIT),))


def measure(table: Table, plan: Plan, noise: float = 0.0, rng: np.random.Generator | None = None) -> Measurement:
    metrics = table.evaluate(table.space.assignment(plan))
    jitter = rng.normal(size=2) * noise if rng is not None else np.zeros(2)
    return Measurement(plan=plan, samples={m: (v + j,) for (m, v), j in zip(metrics.items(), jitter, strict=True)})


def run(table: Table, budget: int, seed: int, noise: float = 0.0) -> Searcher:
    variance = {"value": noise**2, "cost": noise**2}
    searcher = Searcher(table.space, BEST_WITHIN, budget=budget, seed=seed, noise=variance)
    rng = np.random.default_rng([seed, 1])
    while (proposal := searcher.ask()) is not None:
        searcher.tell(measure(table, proposal.plan, noise, rng))
    return searcher


def test_regret_is_a_small_part_of_random_searchs() -> None:
    ours, at_random = [], []
    for seed in range(6):
        table = Table(seed)
        answer = run(table, 60, seed).recommend()
        assert answer.feasible
        metrics = table.evaluate(table.space.assignment(answer.plan))
        assert metrics["cost"] <= LIMIT
        ours.append(table.optimum(LIMIT) - metrics["value"])
        value, cost = table.metrics(np.random.default_rng(seed).integers(0, 4, (60, 6)))
        at_random.append(table.optimum(LIMIT) - max(0.0, *value[cost <= LIMIT]))
    assert np.mean(ours) < 0.25 * np.mean(at_random)


def test_with_noise_the_answer_is_feasible_and_the_end_verifies() -> None:
    violated, regret = 0, []
    for seed in range(5):
        table = Table(seed)
        searcher = run(table, 60, seed, noise=0.1)
        metrics = table.evaluate(table.space.assignment(searcher.recommend().plan))
        violated += metrics["cost"] > LIMIT + 0.05
        regret.append(table.optimum(LIMIT) - metrics["value"])
        plans = [outcome.plan.key for outcome in searcher.observations]
        assert len(set(plans[:55])) == 55
        assert set(plans[55:]) <= set(plans[:55])
    assert violated == 0
    assert np.mean(regret) < 0.5


def test_the_same_seed_asks_the_same() -> None:
    first, again, other = (
        [outcome.plan.key for outcome in run(Table(4), 30, seed, noise=0.05).observations] for seed in (7, 7, 8)
    )
    assert first == again
    assert first != other


def test_asking_twice_without_telling_asks_the_same() -> None:
    searcher = Searcher(Table(4).space, BEST_WITHIN, budget=20)
    assert searcher.ask() == searcher.ask()


def test_leave_alone_then_the_users_plans_come_first() -> None:
    table = Table(0)
    mine = [table.space.plan({"d3": "2"}), table.space.plan({"d0": "1", "d5": "3"})]
    searcher = Searcher(table.space, BEST_WITHIN, budget=20, first=mine)
    asked = []
    for _ in range(3):
        proposal = searcher.ask()
        assert proposal is not None
        asked.append(proposal.plan)
        searcher.tell(measure(table, proposal.plan))
    assert asked == [Plan(), *mine]


def test_a_budget_that_time_cuts_short_draws_fewer_first_plans() -> None:
    def asked(budgets: list[int]) -> list[Plan]:
        """What is asked while the budget stands at each of `budgets` in turn."""
        table = Table(0)
        searcher, plans = Searcher(table.space, BEST_WITHIN, budget=40), []
        for budget in budgets:
            searcher.budget = budget
            proposal = searcher.ask()
            assert proposal is not None
            plans.append(proposal.plan)
            searcher.tell(measure(table, proposal.plan))
        return plans

    drawn, cut = asked([40] * 10), asked([40] * 2 + [20] * 8)
    assert cut[:5] == drawn[:5]
    assert set(cut[5:]).isdisjoint(drawn[5:])
    again = asked([40] * 2 + [20] * 8 + [40] * 5)
    assert set(again[5:]).isdisjoint(drawn[5:]), "time that was gained since is the model's"


def test_plans_in_flight_are_not_proposed_and_count() -> None:
    table = Table(0)
    searcher = run(table, 20, 0)
    searcher.budget = 40
    pending: list[Plan] = []
    while (proposal := searcher.ask(pending=pending)) is not None:
        assert proposal.plan not in pending
        assert proposal.plan.key not in {outcome.plan.key for outcome in searcher.observations}
        pending.append(proposal.plan)
    assert len(pending) == 20


def test_workers_that_know_nothing_yet_begin_far_apart() -> None:
    """Three quarters of the decisions differ between plans drawn at random, as there are four options."""
    table = Table(0, decisions=8)
    roster = {f"w{i}": 1.0 for i in range(16)}
    asked = []
    for worker in roster:
        proposal = Searcher(table.space, BEST_WITHIN, budget=100, seed=0).ask(owned=owned_by(worker, roster))
        assert proposal is not None
        asked.append(table.space.encode(proposal.plan))
    codes = np.array(asked)
    apart = (codes[:, None] != codes[None]).sum(axis=2)[np.triu_indices(16, 1)]
    assert apart.min() >= 2
    assert apart.mean() > 0.7 * 8


def test_many_are_distinct_and_begin_with_the_one() -> None:
    searcher = run(Table(0), 20, 0)
    searcher.budget = 60
    proposals = searcher.ask_many(8)
    one = searcher.ask()
    assert one is not None
    assert len({p.plan.key for p in proposals}) == 8
    assert proposals[0].plan == one.plan


def test_workers_that_own_plans_never_repeat_one_another() -> None:
    """Four workers that see what the others measured only at the end of every round."""
    table, roster = Table(1), dict.fromkeys("abcd", 1.0)
    searchers = {w: Searcher(table.space, BEST_WITHIN, budget=80, seed=i) for i, w in enumerate(roster)}
    measured: list[Measurement] = []
    for _ in range(10):
        news = []
        for worker, searcher in searchers.items():
            proposal = searcher.ask(owned=owned_by(worker, roster))
            assert proposal is not None
            news.append(measure(table, proposal.plan))
        for searcher in searchers.values():
            for outcome in news:
                searcher.tell(outcome)
        measured += news
    assert len({m.plan.key for m in measured}) == len(measured) == 40
    answer = searchers["a"].recommend()
    assert answer == searchers["d"].recommend()
    assert table.optimum(LIMIT) - answer.estimates["value"].mean < 0.4


@pytest.mark.parametrize("options", [["0"], ["0", "1"], ["0", "1", "2", "3"]])
def test_tiny_spaces_are_exhausted(options: list[str]) -> None:
    space = SearchSpace([Decision("fixed", ["only"]), Decision("d", options)])
    searcher = Searcher(space, Objective(metric="m"), budget=50)
    for _ in range(len(options)):
        proposal = searcher.ask()
        assert proposal is not None
        value = float(space.assignment(proposal.plan)["d"])
        searcher.tell(Measurement(plan=proposal.plan, samples={"m": (-value,)}))
    assert searcher.ask() is None
    assert space.assignment(searcher.recommend().plan) == {"fixed": "only", "d": options[-1]}


def test_a_space_without_decisions_has_one_plan() -> None:
    searcher = Searcher(SearchSpace([]), Objective(metric="m"), budget=5)
    proposal = searcher.ask()
    assert proposal is not None and proposal.plan == Plan()
    searcher.tell(Measurement(plan=Plan(), samples={"m": (1.0,)}))
    assert searcher.ask() is None
    assert searcher.recommend().feasible


def test_large_spaces_work() -> None:
    table = Table(0, decisions=20, options=5)
    searcher = run(table, 30, 0)
    assert searcher.settled == 30
    assert searcher.recommend().estimates["value"].mean > 0


def fail_where(table: Table, bad: Mapping[str, str], budget: int) -> list[bool]:
    """Searches a table in which plans with all of `bad` fail; which outcomes failed."""
    searcher = Searcher(table.space, Objective(metric="value", maximize=True), budget=budget)
    failed = []
    while (proposal := searcher.ask()) is not None:
        failed.append(all(table.space.assignment(proposal.plan)[d] == o for d, o in bad.items()))
        if failed[-1]:
            searcher.tell(Failure(plan=proposal.plan, reason=Reason.ILLEGAL, message="no"))
        else:
            searcher.tell(measure(table, proposal.plan))
    return failed


def test_an_option_behind_all_failures_is_avoided() -> None:
    table = Table(0)
    best = table.all_codes()[np.argmax(table.metrics(table.all_codes())[0])]
    decision = int(np.flatnonzero(best)[-1])
    failed = fail_where(table, {f"d{decision}": str(best[decision])}, 50)
    assert sum(failed[25:]) <= 1


def test_all_plans_failing_is_survived_and_counted() -> None:
    table = Table(0)
    searcher = Searcher(table.space, BEST_WITHIN, budget=25)
    keys = set()
    while (proposal := searcher.ask()) is not None:
        keys.add(proposal.plan.key)
        searcher.tell(Failure(plan=proposal.plan, reason=Reason.CRASH, message="boom"))
    assert searcher.settled == len(keys) == 25
    answer = searcher.recommend()
    assert (answer.plan, answer.feasible, answer.probability_feasible) == (Plan(), False, 0.0)
    assert searcher.pareto(["value", "cost"]) == []


def test_where_nothing_is_feasible_the_least_violated_is_marked() -> None:
    table = Table(0)
    impossible = Objective(metric="value", maximize=True, limits=(Limit(metric="cost", bound=-1.0),))
    searcher = Searcher(table.space, impossible, budget=30)
    while (proposal := searcher.ask()) is not None:
        searcher.tell(measure(table, proposal.plan))
    answer = searcher.recommend()
    assert not answer.feasible
    assert answer.plan == Plan()  # costs nothing, which is nearest to -1


def test_constant_metrics_and_missing_ones_are_survived() -> None:
    table = Table(0)
    searcher = Searcher(table.space, BEST_WITHIN, budget=30, noise={"value": None})
    for i in range(30):
        proposal = searcher.ask()
        assert proposal is not None
        samples = {"cost": (0.5,)} if i % 3 else {"cost": (0.5,), "value": (1.0,)}
        searcher.tell(Measurement(plan=proposal.plan, samples=samples, partial=bool(i % 3)))
    assert searcher.recommend().feasible
    only_cost = Searcher(table.space, BEST_WITHIN, budget=5)
    only_cost.tell(Measurement(plan=Plan(), samples={"cost": (0.5,), "value": (math.nan,)}))
    assert not only_cost.recommend().feasible
    assert only_cost.ask() is not None


def test_a_plan_cut_short_is_never_the_answer() -> None:
    table = Table(0)
    searcher = Searcher(table.space, Objective(metric="value", maximize=True), budget=10)
    searcher.tell(measure(table, Plan()))
    dropped = table.space.plan({"d0": "1"})
    searcher.tell(Measurement(plan=dropped, samples={"value": (100.0,)}, partial=True))
    assert searcher.recommend().plan == Plan()


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_what_is_given_is_exact_and_neither_proposed_nor_counted(noise: float) -> None:
    table, rng = Table(0), np.random.default_rng(0)
    original = measure(table, Plan())
    variance = {"value": noise**2, "cost": noise**2}
    searcher = Searcher(table.space, BEST_WITHIN, budget=14, noise=variance, given=[original])
    assert searcher.settled == 0 and not searcher.observations
    assert searcher.recommend().plan == Plan() and searcher.recommend().feasible
    asked = []
    while (proposal := searcher.ask()) is not None:
        asked.append(proposal.plan)
        searcher.tell(measure(table, proposal.plan, noise, rng))
    assert len(asked) == 14 and Plan() not in asked
    assert [outcome.plan for outcome in searcher.observations] == asked
    told = searcher.predict([Plan()])[0]
    assert {metric: (one.mean, one.std) for metric, one in told.items()} == {
        metric: (values[0], 0.0) for metric, values in original.samples.items()
    }


def test_what_is_given_outside_the_space_is_compared_with_in_the_end() -> None:
    space = SearchSpace([Decision("a", "01"), Decision("b", "01")], frozen=[Choice(decision="clean", option="fused")])
    fused, original = space.plan({}), Measurement(plan=Plan(), samples={"cost": (0.0,)})
    wanted = Objective(metric="cost")
    searcher = Searcher(space, wanted, budget=4, given=[original])
    asked = []
    while (proposal := searcher.ask()) is not None:
        asked.append(proposal.plan)
        cost = -1.0 if proposal.plan == fused else 1.0
        assert searcher.recommend().plan == (fused if fused in asked[:-1] else Plan())
        searcher.tell(Measurement(plan=proposal.plan, samples={"cost": (cost,)}))
    assert len(set(asked)) == 4 and fused in asked  # its codes are those of the empty plan
    assert searcher.recommend().plan == fused


def test_a_search_with_frozen_choices_measures_nothing_without_them() -> None:
    space = SearchSpace([Decision("a", "01"), Decision("b", "01")], frozen=[Choice(decision="clean", option="fused")])
    searcher = Searcher(space, Objective(metric="cost"), budget=8)
    asked = []
    while (proposal := searcher.ask()) is not None:
        asked.append(proposal.plan)
        searcher.tell(Measurement(plan=proposal.plan, samples={"cost": (float(len(proposal.plan.choices)),)}))
    assert len(asked) == 4 and all(space.fits(plan) for plan in asked)
    assert searcher.recommend().plan == asked[0] == space.plan({})
    with pytest.raises(InvalidInput, match="it lacks clean=fused"):
        searcher.tell(Measurement(plan=Plan(), samples={"cost": (0.0,)}))


def test_later_samples_of_what_is_given_change_nothing() -> None:
    table = Table(0)
    searcher = Searcher(table.space, BEST_WITHIN, budget=3, given=[measure(table, Plan())])
    told = searcher.predict([Plan()])
    searcher.tell(Measurement(plan=Plan(), samples={"value": (9.0,), "cost": (9.0,)}))
    assert searcher.predict([Plan()]) == told and searcher.settled == 1


def test_repeats_are_averaged_and_unknown_noise_is_learnt() -> None:
    space = SearchSpace([Decision("d", [str(i) for i in range(8)], ordered=True), Decision("e", ["0", "1", "2"])])
    searcher = Searcher(space, Objective(metric="m"), budget=60, noise={"m": None}, seed=3)
    rng = np.random.default_rng(0)
    purposes = []
    while (proposal := searcher.ask()) is not None:
        purposes.append(proposal.purpose)
        codes = space.encode(proposal.plan)
        truth = (codes[0] - 5) ** 2 + codes[1]
        searcher.tell(Measurement(plan=proposal.plan, samples={"m": tuple(truth + 0.3 * rng.normal(size=4))}))
    assert purposes.count(Purpose.VERIFY) >= 5
    answer = searcher.recommend()
    assert space.assignment(answer.plan) == {"d": "5", "e": "0"}
    assert 0 < answer.estimates["m"].std < 0.5
    assert abs(answer.estimates["m"].mean) < 0.7


def test_the_answer_is_measured_again_before_others_are() -> None:
    """Its limit is noisy: what is wanted is exact, so nothing else could gain by another measurement of it."""
    table, rng = Table(2), np.random.default_rng(0)
    searcher = Searcher(table.space, BEST_WITHIN, budget=40, noise={"cost": 0.04}, seed=1)
    while (proposal := searcher.ask()) is not None:
        answer = searcher.recommend().plan if proposal.purpose is Purpose.VERIFY else None
        if answer is not None and not any(o.plan == answer for o in searcher.observations[36:]):
            assert proposal.plan == answer
        found = table.evaluate(table.space.assignment(proposal.plan))
        samples = {"value": (found["value"],), "cost": (found["cost"] + 0.2 * rng.normal(),)}
        searcher.tell(Measurement(plan=proposal.plan, samples=samples))
    assert sum(outcome.plan == searcher.recommend().plan for outcome in searcher.observations) > 1


def test_a_budget_that_is_cut_short_still_ends_in_verification() -> None:
    table = Table(0)
    searcher = Searcher(table.space, BEST_WITHIN, budget=60, noise={"value": 0.01})
    for _ in range(15):
        proposal = searcher.ask()
        assert proposal is not None and proposal.purpose is Purpose.EXPLORE
        searcher.tell(measure(table, proposal.plan))
    searcher.budget = 18
    while (proposal := searcher.ask()) is not None:
        assert proposal.purpose is Purpose.VERIFY
        searcher.tell(measure(table, proposal.plan))
    assert searcher.settled == 18


def test_time_that_is_left_after_verification_is_explored_in_and_the_last_plan_is_verified() -> None:
    table = Table(0)
    searcher = Searcher(table.space, BEST_WITHIN, budget=60, noise={"value": 0.01})
    for _ in range(15):
        searcher.tell(measure(table, searcher.ask().plan))
    purposes = []
    for left in (3, 3, 3, 3, 2, 1):  # verifying takes less time than was reckoned with
        searcher.budget = searcher.settled + left
        proposal = searcher.ask()
        purposes.append(proposal.purpose)
        searcher.tell(measure(table, proposal.plan))
    assert purposes[0] is purposes[-1] is Purpose.VERIFY
    assert purposes.count(Purpose.VERIFY) >= 3 and Purpose.EXPLORE in purposes


def test_evidence_guides_but_is_neither_counted_nor_recommended() -> None:
    table = Table(5)
    codes = table.all_codes()
    value, cost = table.metrics(codes)
    some = np.random.default_rng(0).permutation(len(codes))[:80]
    evidence = [
        Evidence(plan=table.space.decode(codes[i]), metric=metric, mean=float(metrics[i]), variance=0.04)
        for i in some
        for metric, metrics in (("value", value), ("cost", cost))
    ]
    searcher = Searcher(table.space, BEST_WITHIN, budget=8, evidence=evidence)
    while (proposal := searcher.ask()) is not None:
        searcher.tell(measure(table, proposal.plan))
    assert searcher.settled == 8
    answer = searcher.recommend()
    assert answer.plan.key in {outcome.plan.key for outcome in searcher.observations}
    assert table.optimum(LIMIT) - answer.estimates["value"].mean < 0.8


def test_ties_are_decided_by_the_tie_breaker() -> None:
    space = SearchSpace([Decision("d", ["0", "1", "2"])])
    searcher = Searcher(space, Objective(metric="ms", tie=("ratio", True)), budget=3)
    for option, ratio in (("0", 1.0), ("1", 4.0), ("2", 2.0)):
        searcher.tell(Measurement(plan=space.plan({"d": option}), samples={"ms": (5.0,), "ratio": (ratio,)}))
    assert searcher.recommend().plan == space.plan({"d": "1"})


def test_pareto_importance_prediction_and_tree() -> None:
    table = Table(0)
    searcher = run(table, 40, 0)
    front = searcher.pareto(["value", "cost"])
    points = [table.evaluate(table.space.assignment(plan)) for plan in front]
    for a in points:
        assert not any(b["value"] >= a["value"] and b["cost"] <= a["cost"] and b != a for b in points)
    assert searcher.recommend().plan in front
    importance = searcher.importance()
    assert list(importance) == [d.name for d in table.space.decisions]
    assert math.isclose(sum(importance.values()), 1.0)
    measured = searcher.observations[5].plan
    unseen = table.space.plan({f"d{i}": "2" for i in range(6)})
    exact, guess = searcher.predict([measured, unseen])
    truth = table.evaluate(table.space.assignment(measured))
    assert exact["value"].mean == pytest.approx(truth["value"]) and exact["value"].std == 0
    assert guess["value"].std > 0
    summary = searcher.tree_summary()
    assert {s.option for s in summary} == {"0", "1", "2", "3"}
    assert sum(s.visits for s in summary) > 3
    assert sum(s.measured for s in summary) == 40
    assert any(s.below for s in summary)


def test_what_makes_no_sense_is_refused() -> None:
    space = SearchSpace([Decision("a", ["0", "1"]), Decision("b", ["0", "1"])], [Forbid({"a": ["1"], "b": ["1"]})])
    with pytest.raises(InvalidInput, match="does not allow"):
        Searcher(space, Objective(metric="m"), budget=5, first=[space.plan({"a": "1", "b": "1"})])
    with pytest.raises(InvalidInput, match="budget"):
        Searcher(space, Objective(metric="m"), budget=0)
    with pytest.raises(InvalidInput, match="prior"):
        Searcher(space, Objective(metric="m"), budget=5, prior={("a", "1"): -1.0})
    with pytest.raises(InvalidInput, match="tree_nodes"):
        Searcher(space, Objective(metric="m"), budget=5, tree_nodes=0)
    searcher = Searcher(space, Objective(metric="m"), budget=5)
    for plan in (space.plan({"a": "1", "b": "1"}), Plan((Choice(decision="a", option="1", version=9),))):
        with pytest.raises(InvalidInput, match="which the space lacks"):
            searcher.tell(Measurement(plan=plan, samples={"m": (1.0,)}))
    assert searcher.settled == 0
    with pytest.raises(InvalidInput, match="at least one plan"):
        searcher.ask_many(-1)
    with pytest.raises(InvalidInput, match="at least one metric"):
        searcher.pareto([])
    for wrong in ({"mean": float("nan")}, {"variance": -1.0}, {"unlike": 0.0}):
        with pytest.raises(InvalidInput, match="evidence on 'm'"):
            Evidence(**{"plan": Plan(), "metric": "m", "mean": 0.0, "variance": 1.0} | wrong)  # type: ignore[arg-type]


def test_a_rule_that_needs_another_option_of_a_settled_decision_never_holds() -> None:
    space = SearchSpace([Decision("a", ["0", "1"]), Decision("f", ["0"])], [Forbid({"a": ["1"], "f": []})])
    searcher = Searcher(space, Objective(metric="m"), budget=5)
    asked = []
    while (proposal := searcher.ask()) is not None:
        asked.append(proposal.plan)
        searcher.tell(Measurement(plan=proposal.plan, samples={"m": (float(len(asked)),)}))
    assert asked == [Plan(), space.plan({"a": "1"})]


def test_a_tree_bounded_to_a_few_nodes_still_proposes() -> None:
    table = Table(0, decisions=8)
    searcher = Searcher(table.space, BEST_WITHIN, budget=16, tree_nodes=2)
    while (proposal := searcher.ask()) is not None:
        searcher.tell(measure(table, proposal.plan))
    assert len(searcher.observations) == 16
    assert sum(bool(option.below) for option in searcher.tree_summary()) <= 1


@pytest.mark.soak
def test_thousands_of_observations_still_work() -> None:
    """Beyond what a surrogate is conditioned on: what is proposed is new, and better than what was drawn at random."""
    table = Table(0, decisions=10)
    searcher = Searcher(table.space, BEST_WITHIN, budget=4000)
    rng = np.random.default_rng(0)
    for codes in np.unique(rng.integers(0, 4, (2500, 10)).astype(np.int16), axis=0):
        searcher.tell(measure(table, table.space.decode(codes)))
    before = searcher.recommend()
    for _ in range(25):
        proposal = searcher.ask()
        assert proposal is not None
        assert proposal.plan.key not in {outcome.plan.key for outcome in searcher.observations}
        searcher.tell(measure(table, proposal.plan))
    after = searcher.recommend()
    assert after.feasible
    assert after.estimates["value"].mean > before.estimates["value"].mean
