"""What an optimisation tells while it runs: on standard error by default, for whoever listens otherwise."""

import io
import time

import pytest
import torch
from torch import nn

from model_opt.autotuner import Callbacks, IntelligentOptimizer
from model_opt.autotuner.callbacks import LineProgress
from model_opt.search.plan import Choice, Plan

QUICK = {"exclude": ["openvino", "onnxruntime", "aot_inductor", "torch_compile"], "n_simulations": 2, "method": "mcts"}
PLAN = Plan((Choice(decision="prune", option="0.5"),))


class Heard(Callbacks):
    def __init__(self):
        self.phases, self.notes = [], []

    def on_phase(self, name, plan):
        self.phases.append((name, plan))

    def on_note(self, text):
        self.notes.append(text)


def optimise(folder, **given):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))
    rows = torch.randn(64, 1, 8, 8)
    arguments = QUICK | {"example_input": rows[:4], "calibration_data": rows.split(16)} | given
    callbacks = {"callbacks": arguments.pop("callbacks")} if "callbacks" in arguments else {}
    return IntelligentOptimizer(folder / "kb.json", **callbacks).optimize_auto(model, **arguments)[1]


def test_a_line_a_plan_is_printed_unless_it_is_asked_to_be_quiet(tmp_path, capsys):
    result = optimise(tmp_path)
    told = capsys.readouterr()
    lines = told.err.splitlines()
    assert told.out == "" and "ms a call" in told.err and "measuring at most 2" in told.err
    assert [line for line in lines if "] 1/2  " in line] and [line for line in lines if "] 2/2  " in line]
    assert len(result.measured) == 2
    optimise(tmp_path, callbacks=Callbacks())
    told = capsys.readouterr()
    assert told.out == told.err == ""


def test_every_phase_of_a_plan_names_the_plan(tmp_path):
    heard = Heard()
    result = optimise(tmp_path, callbacks=heard, constraints={"max_accuracy_drop": "100%"}, calibration_data=None)
    named = {plan for name, plan in heard.phases if name in ("prepare", "time", "accuracy") and plan is not None}
    assert {seen.plan for seen in result.measured if seen.failure is None} <= named
    phases = [name for name, _ in heard.phases]
    assert phases.index("baseline") < phases.index("search") < phases.index("final figures")
    assert heard.notes[:2] == list(result.notes[:2]) and "may lose all" in result.notes[0]
    assert "random noise" in result.notes[1]


@pytest.fixture
def hasty(monkeypatch):
    """Lines whose waits are short."""
    monkeypatch.setattr(LineProgress, "PHASE_S", 0.05)
    monkeypatch.setattr(LineProgress, "PLAN_S", 0.05)
    stream = io.StringIO()
    with LineProgress(stream) as lines:
        yield lines, stream


def wait_for(stream, text):
    end = time.monotonic() + 30
    while text not in stream.getvalue() and time.monotonic() < end:
        time.sleep(0.01)
    return stream.getvalue()


def test_what_takes_long_is_named_once_for_each_plan(hasty):
    lines, stream = hasty
    lines.on_phase("load", None)
    assert "loading the model …" in wait_for(stream, "loading")
    lines.on_phase("prepare", PLAN)
    wait_for(stream, "preparing")
    lines.on_phase("time", PLAN)
    lines.on_phase("remember", None)
    told = wait_for(stream, "keeping")
    assert told.count("prune=0.5") == 1 and "preparing: prune=0.5 …" in told and "timing" not in told
    for number in (1, 2):
        lines.on_phase(f"fresh process {number} of 4", PLAN)
        assert f"fresh process {number} of 4: prune=0.5 …" in wait_for(stream, f"process {number}")


def test_nothing_is_said_after_the_end(hasty):
    lines, stream = hasty
    lines.on_phase("load", None)
    lines.__exit__(None, None, None)
    time.sleep(0.2)
    assert stream.getvalue() == ""
