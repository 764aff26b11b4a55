import math

import pytest

from model_opt.autotuner.constraints import Constraints
from model_opt.errors import InvalidInput, UnknownName

BASELINE = {"latency_ms": 10.0, "size_bytes": 8e6}


def test_without_constraints_at_most_one_point_may_be_lost():
    objective = Constraints.read(None).objective(BASELINE)
    assert [(limit.metric, limit.bound) for limit in objective.limits] == [("accuracy_drop", 0.01)]
    assert (objective.metric, objective.maximize, objective.tie) == ("log_speedup", True, ("log_size_ratio", True))


def test_absolute_bounds_become_ratios_and_the_tighter_of_two_counts():
    given = {"max_latency_ms": 5.0, "min_speedup": 3.0, "max_size_mb": 1.0, "min_compression_ratio": 2.0}
    bounds = {limit.metric: limit.bound for limit in Constraints.read(given).objective(BASELINE).limits}
    assert bounds["log_speedup"] == pytest.approx(math.log(3.0))
    assert bounds["log_size_ratio"] == pytest.approx(math.log(8.0))


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UnknownName, match="max_accuracy_drop, max_latency_ms, max_size_mb"):
        Constraints.read({"max_accuracy": 0.02})


@pytest.mark.parametrize("value", [-0.1, 1.5, math.nan, math.inf, True, "two", None])
def test_impossible_values_are_refused(value):
    with pytest.raises(InvalidInput, match="max_accuracy_drop"):
        Constraints.read({"max_accuracy_drop": value})


@pytest.mark.parametrize("name", ["min_speedup", "max_latency_ms", "max_size_mb", "min_compression_ratio"])
def test_nought_is_no_bound(name):
    with pytest.raises(InvalidInput, match=name):
        Constraints.read({name: 0})
