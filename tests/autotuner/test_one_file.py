"""A new runtime, technique and metric are one declaration each: everything that lists them has them then."""

import copy

import pytest
from networks import small_cnn
from torch import nn

from model_opt.autotuner.expected import expected_seconds
from model_opt.autotuner.preview import preview
from model_opt.autotuner.strategies import prior
from model_opt.cli.checks import checks
from model_opt.compression.runtimes.declared import OWN, RUNTIMES, add_runtime
from model_opt.compression.runtimes.runtime import Runtime, always
from model_opt.compression.sign_model import sign_model
from model_opt.compression.technique import Technique
from model_opt.errors import UnknownName
from model_opt.metrics import METRICS, named, plain
from model_opt.search.space import Decision, SearchSpace


def made(model: nn.Module, precision: str, material: object) -> nn.Module:
    return copy.deepcopy(model)


EAGER = Runtime(
    name="eager",
    make=made,
    technique=Technique.CUSTOM,
    more={"a_package_that_is_not_here": "nothing"},
    precisions={"fp32": always},
    weight=7.0,
    seconds={"": (100.0, 0.0, 0.0)},
)


@pytest.fixture
def eager():
    add_runtime(EAGER)
    yield EAGER
    del RUNTIMES["eager"], OWN["eager"]


def test_a_runtime_is_offered_foretold_and_examined(eager):
    model = small_cnn()
    told = preview(model, None, freeze={}, exclude=(), simulations=4)
    assert "eager" in told.decisions["runtime"]
    assert {check.what for check in checks("cpu")} >= {"a_package_that_is_not_here"}
    space = SearchSpace([Decision("runtime", ["torch", "eager"])])
    assert prior(space)["runtime", "eager"] == 7.0
    expected = expected_seconds(sign_model(model), 1.0, kept=True)
    assert frozenset({("runtime", "eager")}) in expected.added_s
    with pytest.raises(UnknownName, match="eager"):
        add_runtime(EAGER)


def test_a_metric_says_all_there_is_to_say_of_it():
    assert set(named(lambda metric: metric.kept)) < set(METRICS)
    assert plain("log_speedup", 0.0) == ("speedup", 1.0) and plain("latency_ms", 3.0) == ("latency_ms", 3.0)
    assert plain("of the user's", 2.0) == ("of the user's", 2.0)
    for metric in METRICS.values():
        assert metric.least < metric.most and bool(metric.ratio) == bool(metric.less)
