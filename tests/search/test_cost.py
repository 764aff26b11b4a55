"""What plans take: expected, learnt, foretold with a quantile that holds."""

import numpy as np
import pytest

from model_opt.search.evaluator import Failure, Measurement, Purpose, Reason
from model_opt.search.plan import Plan
from model_opt.search.plan_seconds import ExpectedSeconds, PlanSeconds, picked_by, seconds_of
from model_opt.search.space import Decision, SearchSpace

SPACE = SearchSpace(
    [
        Decision("prune", ["0", "0.25", "0.5"]),
        Decision("prune/stage1", ["same", "0", "0.5"]),
        Decision("precision", ["fp32", "int8"]),
        Decision("runtime", ["torch", "openvino", "compiled"]),
    ]
)
EXPECTED = ExpectedSeconds(
    plan_s=1.0,
    verify_s=2.0,
    added_s={
        frozenset({("prune", "0.5")}): 2.0,
        frozenset({("runtime", "openvino")}): 3.0,
        frozenset({("runtime", "openvino"), ("precision", "int8")}): 6.0,
        frozenset({("runtime", "compiled")}): 40.0,
    },
)


def plan(**choices):
    return SPACE.plan(choices)


def measured(of, seconds=None):
    return Measurement(plan=of, samples={"x": (1.0,)}, seconds=seconds or {})


def test_what_is_expected_adds_up_and_pairs_count_only_whole():
    assert EXPECTED.of(plan(), Purpose.EXPLORE) == 1.0
    assert EXPECTED.of(plan(runtime="openvino"), Purpose.EXPLORE) == 4.0
    assert EXPECTED.of(plan(runtime="openvino", precision="int8"), Purpose.VERIFY) == 12.0
    assert EXPECTED.of(SPACE.plan({"prune/stage1": "0.5"}), Purpose.EXPLORE) == 3.0


def test_before_anything_is_measured_a_plan_fits_if_it_is_expected_to():
    seconds = PlanSeconds(EXPECTED)
    assert seconds.fits(plan(runtime="openvino"), Purpose.EXPLORE, 4.1)
    assert not seconds.fits(plan(runtime="openvino"), Purpose.EXPLORE, 3.9)
    assert not seconds.fits(plan(runtime="compiled"), Purpose.EXPLORE, 30.0)
    assert PlanSeconds().fits(plan(runtime="compiled"), Purpose.EXPLORE, 0.1)


def test_a_slow_machine_is_learnt_from_any_plan():
    seconds = PlanSeconds(EXPECTED)
    for each in (plan(), plan(prune="0.5"), plan(prune="0.25")):
        seconds.learn(measured(each), Purpose.EXPLORE, 4 * EXPECTED.of(each, Purpose.EXPLORE))
    foretold = seconds.quantile(plan(runtime="compiled"), Purpose.EXPLORE, 0.5)
    assert 100 < foretold < 200 and seconds.learnt == 3


def test_a_dear_option_is_learnt_for_itself():
    seconds = PlanSeconds(EXPECTED)
    for _ in range(3):
        seconds.learn(measured(plan(runtime="openvino")), Purpose.EXPLORE, 20.0)
        seconds.learn(measured(plan(prune="0.5")), Purpose.EXPLORE, 3.0)
    assert seconds.quantile(plan(runtime="openvino"), Purpose.EXPLORE, 0.5) > 12
    assert seconds.quantile(plan(prune="0.5"), Purpose.EXPLORE, 0.5) < 5


def test_a_quick_failure_says_nothing_and_a_long_one_that_it_takes_as_long():
    seconds = PlanSeconds(EXPECTED)
    gone = Failure(plan=plan(runtime="compiled"), reason=Reason.ILLEGAL, message="no compiler")
    seconds.learn(gone, Purpose.EXPLORE, 0.1)
    assert seconds.learnt == 0
    before = seconds.quantile(gone.plan, Purpose.EXPLORE, 0.5)
    seconds.learn(gone, Purpose.EXPLORE, 300.0)
    assert seconds.quantile(gone.plan, Purpose.EXPLORE, 0.5) > before


@pytest.mark.parametrize("expected", [EXPECTED, None], ids=["expected", "nothing known"])
def test_the_upper_quantile_holds_about_as_often_as_it_says(expected):
    """On made-up machines whose pace, options and plans are off at random."""
    held, of = 0, 0
    for number in range(60):
        rng = np.random.default_rng(number)
        pace, off = rng.normal(0, 0.5), {}
        seconds = PlanSeconds(expected)
        for turn in range(12):
            each = SPACE.decode(rng.integers(0, SPACE.sizes))
            mean = pace + sum(off.setdefault(one, rng.normal(0, 0.4)) for one in sorted(picked_by(each)))
            base = EXPECTED.of(each, Purpose.EXPLORE) if expected else 3.0
            taken = base * float(np.exp(mean + rng.normal(0, 0.25)))
            if turn >= 3:
                held, of = held + (taken <= seconds.quantile(each, Purpose.EXPLORE, 0.85)), of + 1
            seconds.learn(measured(each), Purpose.EXPLORE, taken)
    assert 0.80 <= held / of <= 0.97


def test_seconds_of_an_outcome_are_those_of_its_phases():
    assert seconds_of(measured(Plan(), {"prepare": 2.0, "time": 0.5})) == 2.5
    assert seconds_of(Failure(plan=Plan(), reason=Reason.ERROR, message="", seconds={"prepare": 1.0})) == 1.0


def test_no_plan_takes_a_large_part_of_a_search_unless_all_do():
    seconds = PlanSeconds(EXPECTED)
    assert seconds.fits(plan(runtime="compiled"), Purpose.EXPLORE, 60.0, 100.0)  # nothing is known yet
    for _ in range(2):
        seconds.learn(measured(plan(runtime="openvino")), Purpose.EXPLORE, 4.0)
    assert not seconds.fits(plan(runtime="compiled"), Purpose.EXPLORE, 90.0, 100.0)
    assert seconds.fits(plan(runtime="compiled"), Purpose.VERIFY, 90.0, 100.0)
    assert seconds.fits(plan(runtime="compiled"), Purpose.EXPLORE, 900.0, 1000.0)
    for _ in range(4):
        seconds.learn(measured(plan(runtime="compiled")), Purpose.EXPLORE, 40.0)
    assert seconds.fits(plan(runtime="compiled"), Purpose.EXPLORE, 90.0, 100.0)


def test_what_a_process_does_once_is_not_expected_again_and_others_do_it_too():
    first = ExpectedSeconds(plan_s=1.0, once_s={frozenset({("runtime", "openvino")}): 9.0}, again=0.0)
    here, there = plan(runtime="openvino"), plan(runtime="openvino", prune="0.5")
    seconds = PlanSeconds(first)
    seconds.learn(measured(here), Purpose.EXPLORE, 10.0, own=False)
    assert seconds.quantile(here, Purpose.EXPLORE, 0.5) == pytest.approx(10.0)
    seconds.learn(measured(here), Purpose.EXPLORE, 10.0)
    assert seconds.quantile(there, Purpose.EXPLORE, 0.5) == pytest.approx(1.0)
    assert first.of(here, Purpose.VERIFY) == 1.0
