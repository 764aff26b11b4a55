"""What the hardware does not do by itself weighs less in the prior, and is offered all the same."""

import dataclasses

from model_opt.autotuner.engine import start_with
from model_opt.autotuner.strategies import WEIGHTS, prior, strategies
from model_opt.compression.machine import inspect
from model_opt.compression.runtimes.declared import RUNTIMES
from model_opt.search.model_signature import Family
from model_opt.search.plan_seconds import ExpectedSeconds
from model_opt.search.space import Decision, SearchSpace

SPACE = SearchSpace(
    [
        Decision("clean", ["none", "fused"]),
        Decision("precision", ["fp32", "bf16", "int8_static", "int8_dynamic"]),
        Decision("runtime", ["torch", "openvino", "onnxruntime"]),
    ]
)


def test_what_the_hardware_lacks_weighs_less() -> None:
    full = dataclasses.replace(inspect(), bf16=True, int8_dot=True)
    bare = dataclasses.replace(full, bf16=False, int8_dot=False)
    assert prior(SPACE, None, full) == prior(SPACE)
    for name in ("bf16", "int8_static", "int8_dynamic"):
        weight = prior(SPACE, None, bare)["precision", name]
        assert 0 < weight < prior(SPACE, None, full)["precision", name] == WEIGHTS["precision", name]


def test_convolutional_networks_and_transformers_begin_with_int8() -> None:
    for family in (Family.CNN, Family.VIT):
        first = strategies(family, SPACE)[0]
        assert first.option("precision") == "int8_static"
        assert first.option("runtime") == "openvino"


def test_a_search_begins_with_int8_in_each_runtime_that_quantises_by_itself() -> None:
    runtimes = ["openvino", "onnxruntime", "aot_inductor"]
    space = SearchSpace(
        [
            Decision("clean", ["none", "fused"]),
            Decision("prune", ["0", "0.25", "0.5"], ordered=True),
            Decision("token_merging", ["0", "4"], ordered=True),
            Decision("precision", ["fp32", "bf16", "int8_static", "int8_dynamic"]),
            Decision("runtime", ["torch", *runtimes]),
        ]
    )
    for family in (Family.CNN, Family.VIT, Family.HYBRID, Family.OTHER):
        first = start_with((), family, space)
        assert {plan.option("runtime") for plan in first if plan.option("precision") == "int8_static"} >= {*runtimes}


def test_what_takes_longer_than_a_search_has_for_a_plan_weighs_less() -> None:
    expected = ExpectedSeconds(plan_s=1.0, added_s={frozenset({("runtime", "openvino")}): 8.0})
    assert prior(SPACE, expected=expected) == prior(SPACE)
    hurried = prior(SPACE, expected=expected, plan_s=8.0)
    assert hurried["runtime", "openvino"] == RUNTIMES["openvino"].weight / 2
    assert hurried["runtime", "onnxruntime"] == RUNTIMES["onnxruntime"].weight
