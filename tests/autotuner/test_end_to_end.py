"""A model goes in, a measured model comes out: through the real measuring process, on this machine."""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from networks import TwoInputs, small_cnn

from model_opt.autotuner import Callbacks, CompressionResult, IntelligentOptimizer, load_model
from model_opt.compression.machine import inspect
from model_opt.errors import InvalidInput, StoreCorrupt, UnknownName

EXAMPLE = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
IMAGES = torch.randn(128, 3, 32, 32, generator=torch.Generator().manual_seed(2))
COMPILERS = ["aot_inductor", "torch_compile"]
QUICK = {"exclude": ["openvino", "onnxruntime", "aot_inductor", "torch_compile", "token_merging", "distillation"]}
LOWER = "bf16" if inspect("cpu").bf16 else "int8_dynamic"
"""A precision that this processor offers for linear layers."""


class Notes(Callbacks):
    def __init__(self):
        self.notes, self.settled = [], []

    def on_note(self, text):
        self.notes.append(text)

    def on_measurement(self, observed, **rest):
        self.settled.append(observed)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    model = small_cnn()
    notes = Notes()
    optimizer = IntelligentOptimizer(knowledge_base_path=folder / "kb.json", callbacks=notes)
    optimised, result = optimizer.optimize_auto(
        model, "mcts", 6, constraints={"max_accuracy_drop": 0.5}, example_input=EXAMPLE,
        calibration_data=IMAGES.split(32), output=folder / "out", exclude=COMPILERS,
    )  # fmt: skip
    return {"folder": folder, "model": model, "optimised": optimised, "result": result, "notes": notes}


def test_the_result_says_what_was_measured(run):
    result = run["result"]
    assert len(result.measured) == 6 == len(run["notes"].settled) - 1
    first = result.observations[0]
    assert result.observations[1:] == result.measured and first.purpose == "given" and first.plan.choices == ()
    assert (first.metrics["log_speedup"], first.metrics["accuracy_drop"]) == (0.0, 0.0)
    assert all(seen.plan.choices for seen in result.measured)
    assert not any(math.log(p.speedup) < 0 and p.compression_ratio < 1 for p in result.pareto)
    assert result.feasible and result.accuracy_drop <= 0.5
    assert result.accuracy_source == "fidelity"
    assert set(result.figures) >= {"speedup", "compression_ratio", "accuracy_drop"}
    for figure in result.figures.values():
        assert figure.low <= figure.value <= figure.high
    assert result.seconds["total"] >= result.seconds["search"] > 0
    assert result.context["threads"] == torch.get_num_threads() and result.context["batch"] == 4


def test_the_optimised_model_runs_where_the_original_did(run):
    with torch.inference_mode():
        made, expected = run["optimised"](IMAGES[:64]), run["model"](IMAGES[:64])
    assert made.shape == expected.shape
    held = (made.argmax(1) == expected.argmax(1)).float().mean()
    assert held >= 0.4


def test_the_result_reads_back_equal(run):
    again = CompressionResult.load(run["folder"] / "out")
    assert json.loads(again.to_json()) == json.loads(run["result"].to_json())
    assert again.plan == run["result"].plan and again.techniques == run["result"].techniques


def test_the_saved_model_gives_equal_outputs_in_a_fresh_process(run):
    with torch.inference_mode():
        expected = run["optimised"](EXAMPLE)
    torch.save(EXAMPLE, run["folder"] / "x.pt")
    code = (
        "import torch, sys; from model_opt.autotuner import load_model; torch.set_num_threads(int(sys.argv[2]));"
        "m = load_model(sys.argv[1] + '/out/model.pt'); x = torch.load(sys.argv[1] + '/x.pt');"
        "torch.save(m(x).detach(), sys.argv[1] + '/y.pt')"
    )
    arguments = [sys.executable, "-c", code, str(run["folder"]), str(torch.get_num_threads())]
    subprocess.run(arguments, check=True, timeout=120)
    torch.testing.assert_close(torch.load(run["folder"] / "y.pt"), expected, rtol=1e-4, atol=1e-4)
    assert isinstance(load_model(run["folder"] / "out" / "model.pt"), torch.nn.Module)


def test_a_second_run_starts_from_the_knowledge_base_and_says_so(run):
    text = (run["folder"] / "kb.json").read_text()
    assert "cnn" in text and '"n"' in text
    notes = Notes()
    optimizer = IntelligentOptimizer(knowledge_base_path=run["folder"] / "kb.json", callbacks=notes)
    _, result = optimizer.optimize_auto(
        run["model"], "rule_based", constraints={"max_accuracy_drop": 0.5}, example_input=EXAMPLE,
        calibration_data=IMAGES.split(32), exclude=COMPILERS,
    )  # fmt: skip
    assert result.knowledge["exact"] and result.knowledge["rows"] >= 4
    assert any("starting from" in note and "this very architecture" in note for note in notes.notes)
    assert len(result.measured) <= 4


def test_a_plan_that_kills_its_process_costs_one_measurement(tmp_path):
    def deadly(model):
        if "torch.nn" not in type(model).__module__:  # anything but the original
            os._exit(3)
        return 0.9

    _, result = IntelligentOptimizer(tmp_path / "kb.json").optimize_auto(
        small_cnn(), "mcts", 3, example_input=EXAMPLE, calibration_data=[IMAGES[:32]], eval_fn=deadly,
        plans=[{"precision": "int8_static"}], **QUICK,
    )  # fmt: skip
    failed = [seen for seen in result.observations if seen.failure]
    assert failed and "crash" in failed[0].failure
    assert len(result.measured) == 3


def test_an_eval_fn_that_never_returns_ends_with_the_time(tmp_path):
    def hangs(model):
        if "torch.nn" not in type(model).__module__:
            time.sleep(3600)
        return 0.9

    began = time.monotonic()
    _, result = IntelligentOptimizer(tmp_path / "kb.json").optimize_auto(
        small_cnn(), "mcts", 3, 30.0, example_input=EXAMPLE, calibration_data=[IMAGES[:32]], eval_fn=hangs,
        plans=[{"precision": "int8_static"}], **QUICK,
    )  # fmt: skip
    assert time.monotonic() - began < 120
    assert result.ended == "time"
    assert result.measured == ()  # what the search's end cuts off is no failure of the plan
    assert result.plan.choices == () and result.feasible


def test_an_eval_fn_that_raises_on_the_original_is_an_error(tmp_path):
    def broken(model):
        raise KeyError("labels")

    with pytest.raises(InvalidInput, match=r"eval_fn raised KeyError.*labels"):
        IntelligentOptimizer(tmp_path / "kb.json").optimize_auto(small_cnn(), example_input=EXAMPLE, eval_fn=broken)
    assert not (tmp_path / "kb.json").exists()


def test_what_nothing_satisfies_comes_back_marked(tmp_path):
    _, result = IntelligentOptimizer(tmp_path / "kb.json").optimize_auto(
        small_cnn(), "mcts", 2, constraints={"min_speedup": 1e5, "max_accuracy_drop": 1.0}, example_input=EXAMPLE,
        calibration_data=[IMAGES[:32]], plans=[{"prune": "0.25"}], **QUICK,
    )  # fmt: skip
    assert not result.feasible
    assert any("no measured plan keeps every constraint" in note for note in result.notes)


@pytest.mark.parametrize("method", ["mcts", "rule_based"])
def test_a_damaged_knowledge_base_is_refused_before_anything_is_measured(method, tmp_path):
    path = tmp_path / "kb.json"
    path.write_text('{"records": [')
    with pytest.raises(StoreCorrupt, match="move it away"):
        IntelligentOptimizer(path).optimize_auto(
            small_cnn(), method, 1, example_input=EXAMPLE, calibration_data=[IMAGES[:32]], **QUICK
        )
    assert path.read_text() == '{"records": ['


def test_a_mapping_is_an_input_and_plans_may_be_frozen(tmp_path):
    example = {"left": torch.randn(4, 8), "right": torch.randn(4, 8)}
    optimised, result = IntelligentOptimizer(tmp_path / "kb.json").optimize_auto(
        TwoInputs(), "mcts", 2, constraints={"max_accuracy_drop": 1.0}, example_input=example,
        freeze={"precision": LOWER}, **QUICK,
    )  # fmt: skip
    assert "may lose all of the accuracy" in result.notes[0] and "random noise" in result.notes[1]
    assert optimised(**example).shape == (4, 5)
    assert all(seen.plan.option("precision") == LOWER for seen in result.observations[1:])


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({"method": "genetic"}, UnknownName, "hybrid, mcts, rule_based"),
        ({"n_simulations": 0}, InvalidInput, "n_simulations must be a positive whole number"),
        ({"timeout_seconds": -1}, InvalidInput, "timeout_seconds must be positive"),
        ({"exclude": ["int9"]}, UnknownName, "int8"),
        ({"workers": 2, "name": "night"}, InvalidInput, "only a cluster can use workers and name"),
        ({"ray_address": "local"}, InvalidInput, "'rule_based' does not search"),
        ({"freeze": {"precison": "bf16"}}, UnknownName, "precision"),
        ({"plans": [{"precision": "fp64"}]}, UnknownName, "fp32"),
        ({"constraints": {"max_loss": 1}}, UnknownName, "max_accuracy_drop"),
    ],
)
def test_wrong_arguments_are_named_before_anything_starts(tmp_path, given, kind, message):
    optimizer = IntelligentOptimizer(tmp_path / "kb.json")
    with pytest.raises(kind, match=message):
        optimizer.optimize_auto(small_cnn(), example_input=EXAMPLE, calibration_data=[IMAGES[:32]], **given)
    assert not list(Path(tmp_path).iterdir())
