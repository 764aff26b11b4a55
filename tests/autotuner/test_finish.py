"""The interval of a speed-up over fresh processes, and which plans may be the answer."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from model_opt.autotuner.engine import Found, trial_of
from model_opt.autotuner.figures import interval_text
from model_opt.autotuner.finish import BUSY, _candidates, _doubts, _speedup, pareto_front
from model_opt.autotuner.fresh_starts import USUAL_DEGREES, USUAL_DRIFT, USUAL_SPREAD, _figures, prediction
from model_opt.compression.evaluation.fresh import Comparison
from model_opt.search import Decision, Limit, Measurement, Objective, Plan, Searcher, SearchSpace
from model_opt.search.conclusion import conclude
from model_opt.search.trial import GIVEN


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
        trial_of(Measurement(plan=plan, samples=told), "explore" if plan.choices else GIVEN)
        for plan, told in samples.items()
    )
    found = Found(conclusion=conclude(searcher, observed), observed=observed, ended="budget")
    assert _candidates(found, wanted)[:2] == [fast, Plan()]
    without = Found(conclusion=conclude(searcher, observed), observed=observed[:1] + observed[2:], ended="budget")
    assert {point.plan for point in pareto_front(without)} == {Plan(), lossy}


def found_with(plan, *log_speedups, disturbed=()):
    """A search that has measured `plan`, each time with one of `log_speedups`."""
    space = SearchSpace([Decision("prune", ["0", "0.25"], True)])
    wanted = Objective(metric="log_speedup", maximize=True)
    original = Measurement(plan=Plan(), samples={"log_speedup": (0.0,)})
    searcher = Searcher(space, wanted, budget=3, given=[original], noise={"log_speedup": 0.001})
    for value in log_speedups:
        searcher.tell(Measurement(plan=plan, samples={"log_speedup": (value,)}))
    observed = tuple(
        trial_of(Measurement(plan=plan, samples={"log_speedup": (value,)}, disturbed=frozenset(disturbed)), "explore")
        for value in log_speedups
    )
    return Found(conclusion=conclude(searcher, observed), observed=observed, ended="budget")


def starts(*log_speedups, quiet=True):
    return _figures(
        [
            Comparison(
                log_speedup=value, baseline_ms=math.exp(value), plan_ms=1.0, peak_bytes=None, busy=0.5, quiet=quiet
            )
            for value in log_speedups
        ],
        None,
    )


PRUNED = SearchSpace([Decision("prune", ["0", "0.25"], True)]).plan({"prune": "0.25"})


def test_a_busy_machines_figure_is_never_handed_out_as_one():
    found = found_with(PRUNED, 1.0)
    figure = _speedup(PRUNED, found, starts(4.0, 4.2, quiet=False))
    assert figure.doubt == BUSY
    assert figure.value == pytest.approx(math.e)
    assert figure.low < math.exp(1.0) < math.exp(4.1) < figure.high
    assert interval_text(figure).startswith("too uncertain to say, not measured: other programs kept the machine busy")


def test_where_the_search_was_disturbed_too_nothing_is_claimed():
    found = found_with(PRUNED, 3.0, disturbed=("log_speedup",))
    assert _speedup(PRUNED, found, None).doubt == BUSY
    assert _speedup(PRUNED, found, starts(4.0, 4.2, quiet=False)).doubt == BUSY
    quiet = _speedup(PRUNED, found, starts(1.0, 1.1))
    assert (quiet.doubt, quiet.value) == ("", pytest.approx(math.exp(1.05)))


@pytest.mark.parametrize("disturbed", [(), ("log_speedup",)])
def test_that_nothing_beats_the_original_says_so_of_a_busy_machine(disturbed):
    found = found_with(PRUNED, -1.0, disturbed=disturbed)
    (said,) = _doubts(Plan(), None, found, True)
    assert said.startswith("nothing that was measured beats the model as it is")
    assert said.endswith("disturbed the timing of 1 of them: search again on a quiet machine") is bool(disturbed)


@pytest.mark.parametrize(("lost", "why"), [(0, "in the time there was"), (3, "workers were lost 3 times")])
def test_where_no_plan_could_be_measured_that_is_what_is_said(lost, why):
    (said,) = _doubts(Plan(), None, replace(found_with(PRUNED), fleet={"expired": lost}), True)
    assert said.startswith("no plan could be measured") and why in said


def test_disturbed_starts_are_left_out_where_there_are_enough_others():
    seen = [starts(1.0, 1.1), starts(5.0, quiet=False)]
    mixed = _figures(
        [
            Comparison(log_speedup=v, baseline_ms=1.0, plan_ms=1.0, peak_bytes=None, busy=None, quiet=v < 2)
            for v in (1.0, 5.0, 1.1)
        ],
        None,
    )
    assert mixed.quiet and not seen[1].quiet
    assert mixed.speedup == seen[0].speedup


def test_a_search_and_fresh_processes_that_contradict_each_other_are_both_covered():
    found = found_with(PRUNED, 2.0)
    figure = _speedup(PRUNED, found, starts(1.0, 1.05, 0.95, 1.0))
    assert figure.doubt and figure.low < math.exp(1.0) and figure.high > math.exp(2.0)
    assert not _speedup(PRUNED, found_with(PRUNED, 1.1), starts(1.0, 1.05, 0.95, 1.0)).doubt
