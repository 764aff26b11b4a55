"""Figures in words, plans by what became of them, and how long the rest will take."""

import math

import pytest

from model_opt.autotuner.constraints import Constraints
from model_opt.autotuner.figures import Figure, duration, faster, figure_text, interval_text, lost, smaller
from model_opt.autotuner.pace import Pace
from model_opt.autotuner.tally import Tally, of_tried
from model_opt.errors import InvalidInput
from model_opt.search.evaluator import Failure, Measurement, Outcome, Reason
from model_opt.search.plan import Choice, Plan
from model_opt.search.trial import GIVEN, Trial


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (faster(5.1), "5.10x faster"),
        (faster(0.8), "1.25x slower"),
        (faster(1.0), "1.00x faster"),
        (smaller(1 / 76), "76.00x larger"),
        (smaller(0.999), "1.00x smaller"),
        (smaller(1234.5), "1,234x smaller"),
        (lost(0.004), "0.40% lost"),
        (lost(-0.0208), "2.08% gained"),
        (lost(-0.00001), "0.00% lost"),
        (duration(45), "45 s"),
        (duration(200), "3 min"),
        (duration(9000), "2.5 h"),
    ],
)
def test_figures_are_said_as_people_say_them(said, expected):
    assert said == expected


def test_an_interval_over_a_factor_of_four_is_called_too_uncertain():
    narrow, wide = Figure(value=5.0, low=2.6, high=10.0), Figure(value=5.11, low=0.34, high=76.24)
    assert (figure_text(narrow), interval_text(narrow)) == ("5.00x", "2.60x … 10.00x")
    assert (figure_text(wide), interval_text(wide)) == ("?", "too uncertain to say (2.94x slower … 76.24x)")
    doubtful = Figure(value=61.3, low=35.0, high=106.0, doubt="not measured")
    assert (figure_text(doubtful), interval_text(doubtful)) == ("?", "not measured (35.00x … 106x)")
    assert interval_text(Figure.exact(3.9)) == "exact"
    assert interval_text(Figure(value=0.29, low=0.25, high=0.5), "more") == "4.00x … 2.00x more"


def seen(option: str, purpose: str = "explore", failure: str | None = None) -> Trial:
    plan = Plan((Choice(decision="prune", option=option),) if option else ())
    outcome: Outcome = Measurement(plan=plan, samples={"log_speedup": (math.log(2),)})
    if failure:
        reason, _, message = failure.partition(": ")
        outcome = Failure(plan=plan, reason=Reason(reason), message=message)
    return Trial(plan=plan, purpose=purpose, outcome=outcome, at_s=1.0)


def test_plans_are_counted_by_what_became_of_them():
    tried = [
        seen("", GIVEN),
        seen("0.25"),
        seen("0.25", "verify"),
        seen("0.5"),
        seen("0.7", failure="illegal: nothing to prune"),
        seen("0.8", failure="wrong_output: 3 dB"),
        seen("0.9", failure="deadline: the search's time was up"),
        seen("0.95", failure="crash: signal 11"),
    ]
    assert str(Tally.of(tried)) == "6 plans tried: 2 measured, 2 refused, 1 cut off, 1 failed; 1 measured again"
    assert str(Tally.of(tried[:2])) == "1 plan measured"
    status = {"settled": 8, "failures": {"illegal": 2, "deadline": 4}}
    assert str(Tally.of_status(status)) == "8 plans tried: 2 measured, 2 refused, 4 cut off"


def test_a_decision_that_no_plan_had_is_of_no_known_importance():
    shares = of_tried({"prune": 0.3, "precision": 0.5, "runtime": 0.2}, [seen("", GIVEN), seen("0.5")])
    assert shares == {"prune": 1.0}
    assert of_tried({"prune": 1.0}, [seen("")]) == {}


def test_the_rest_is_foretold_by_the_pace_and_ends_with_the_time():
    pace = Pace(100.0, timeout_s=60.0)
    pace.begin(110.0, budget=10)
    assert pace.left_s(112.0) is None
    pace.settle(120.0, 2, 10)
    assert pace.left_s(120.0) == 40.0 and pace.left_s(123.0) == 37.0
    assert pace.limit_s(150.0) == 10.0 and pace.left_s(150.0) == 10.0
    assert Pace(100.0).limit_s(150.0) is None


def test_a_share_may_be_said_in_percent_and_much_is_warned_of():
    assert Constraints.read({"max_accuracy_drop": "2%"}) == Constraints.read({"max_accuracy_drop": 0.02})
    assert Constraints.read({"max_accuracy_drop": "0.02"}).max_accuracy_drop == 0.02
    assert Constraints.read({"max_accuracy_drop": 0.49}).warning == ""
    assert "may lose 50% of the accuracy" in Constraints.read({"max_accuracy_drop": "50%"}).warning
    assert "may lose all of the accuracy" in Constraints.read({"max_accuracy_drop": 1.0}).warning
    for wrong in ("two", "2 points", "200%", "%"):
        with pytest.raises(InvalidInput, match=r"0.02 or 2% is two points"):
            Constraints.read({"max_accuracy_drop": wrong})
    with pytest.raises(InvalidInput, match="must be a number"):
        Constraints.read({"min_speedup": "2%"})
