"""The interval of a speed-up over fresh processes, and which plans may be the answer."""

import math

import numpy as np
import pytest
from scipy import stats

from model_opt.autotuner.engine import Found
from model_opt.autotuner.finish import USUAL_DEGREES, USUAL_DRIFT, USUAL_SPREAD, _candidates, front, prediction
from model_opt.autotuner.result import GIVEN, Observed
from model_opt.search import Decision, Limit, Measurement, Objective, Plan, Searcher, SearchSpace


def test_by_hand():
    figure = prediction(np.array([1.0, 1.1, 0.9, 1.0]))
    variance = (USUAL_DEGREES * USUAL_SPREAD**2 + 0.02) / (USUAL_DEGREES + 3)
    half = stats.t.ppf(0.975, USUAL_DEGREES + 3) * math.sqrt(variance * 1.25 + 2 * USUAL_DRIFT**2)
    assert figure.value == pytest.approx(math.e)
    assert (math.log(figure.low), math.log(figure.high)) == pytest.approx((1 - half, 1 + half))


@pytest.mark.parametrize("starts", [2, 3, 4])
@pytest.mark.parametrize("spread", [0.02, 0.04, 0.06])
def test_one_more_start_at_another_time_lies_within_nine_times_of_ten(starts, spread):
    generator = np.random.default_rng(0)
    inside = 0
    for _ in range(2000):
        then, now = generator.normal(1.0, USUAL_DRIFT, 2)
        figure = prediction(generator.normal(then, spread, starts))
        inside += figure.low <= math.exp(generator.normal(now, spread)) <= figure.high
    assert inside / 2000 >= 0.9


def test_the_original_comes_before_what_is_slower_or_breaks_a_constraint_and_is_in_the_front():
    space = SearchSpace([Decision("prune", ["0", "0.25", "0.5", "0.7"], True)])
    fast, lossy, slow = (space.plan({"prune": option}) for option in ("0.25", "0.5", "0.7"))
    wanted = Objective(metric="log_speedup", maximize=True, limits=(Limit(metric="accuracy_drop", bound=0.01),))
    figures = {Plan(): (0.0, 0.0), fast: (1.0, 0.0), lossy: (0.9, 0.3), slow: (-0.5, 0.1)}
    metrics = {
        plan: {"log_speedup": speed, "accuracy_drop": drop, "log_size_ratio": 0.0}
        for plan, (speed, drop) in figures.items()
    }
    samples = {plan: {name: (value,) for name, value in told.items()} for plan, told in metrics.items()}
    searcher = Searcher(space, wanted, budget=3, given=[Measurement(plan=Plan(), samples=samples[Plan()])])
    for plan in (fast, lossy, slow):
        searcher.tell(Measurement(plan=plan, samples=samples[plan]))
    observed = tuple(
        Observed(plan=plan, purpose="explore" if plan.choices else GIVEN, at_s=0.0, metrics=told)
        for plan, told in metrics.items()
    )
    found = Found(best=searcher.recommend(), observed=observed, searcher=searcher, ended="budget")
    assert _candidates(found, wanted)[:2] == [fast, Plan()]
    without = Found(best=searcher.recommend(), observed=observed[:1] + observed[2:], searcher=searcher, ended="budget")
    assert {point.plan for point in front(without)} == {Plan(), lossy}
