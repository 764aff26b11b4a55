"""`model-opt explain`: what a result says of the knowledge that its search started from."""

import json

import pytest
from typer.testing import CliRunner

from model_opt.autotuner.figures import Figure
from model_opt.autotuner.result import CompressionResult
from model_opt.cli.main import app
from model_opt.search.evaluator import Measurement
from model_opt.search.plan import Choice, Plan
from model_opt.search.trial import Trial

FAST = Plan((Choice(decision="precision", option="int8_static"), Choice(decision="runtime", option="openvino")))
ORIGIN = "ab" * 32


def trial(plan: Plan, at_s: float, metrics: dict) -> Trial:
    outcome = Measurement(plan=plan, samples={name: (value,) for name, value in metrics.items()})
    return Trial(plan=plan, purpose="explore", outcome=outcome, at_s=at_s)


def result(knowledge: dict) -> CompressionResult:
    metrics = {"log_speedup": 1.5, "log_size_ratio": 1.3, "accuracy_drop": 0.004}
    seen = (
        trial(Plan(), 1.0, dict.fromkeys(metrics, 0.0)),
        trial(FAST, 2.0, metrics),
    )
    names = ("speedup", "compression_ratio", "accuracy_drop", "latency_ms")
    return CompressionResult(
        figures={name: Figure.exact(1.0) for name in names},
        plan=FAST,
        techniques=(),
        feasible=True,
        constraints={"max_accuracy_drop": 0.01},
        method="hybrid",
        accuracy_source="labelled data",
        baseline={"latency_ms": 1.0, "size_bytes": 1.0, "accuracy": 1.0},
        context={},
        signature={},
        pareto=(),
        observations=seen,
        seconds={"total": 2.0},
        ended="budget",
        knowledge=knowledge,
    )


KNOWN = {
    "rows": 12,
    "samples": 84,
    "exact": False,
    "origins": [ORIGIN],
    "signatures": {"cd" * 16: 0.991},
    "sources": [
        {
            "signature": "cd" * 16,
            "similarity": 0.991,
            "plans": 12,
            "samples": {ORIGIN: 84},
            "shares": {ORIGIN: 1.0},
            "confidence": {"log_speedup": 0.93},
            "outliers": [],
            "here": True,
        }
    ],
    "expected": [
        {"plan": {"precision": "int8_static", "runtime": "openvino"}, "metrics": {"log_speedup": 1.4}},
        {"plan": {"precision": "bf16"}, "metrics": {"log_speedup": 0.4}},
    ],
    "heeded": {"cd" * 16: {"log_speedup": 0.88}},
}


@pytest.fixture
def folder(tmp_path):
    result(KNOWN).save(tmp_path / "known")
    result({"rows": 0, "origins": []}).save(tmp_path / "new")
    return tmp_path


def test_it_names_origins_samples_confidence_and_what_came_of_it(folder):
    told = json.loads(CliRunner().invoke(app, ["explain", str(folder / "known"), "--json"]).stdout)
    assert told["origins"] == [ORIGIN] and told["started_from"]["samples"] == 84
    assert told["sources"][0]["confidence"] == {"log_speedup": 0.93}
    assert told["from_knowledge"] and told["settled_after"] == 2 and told["measured"] == 2
    assert [plan["measured_at"] for plan in told["first_plans"]] == [2]
    assert told["first_plans"][0]["here"]["log_speedup"] == 1.5
    shown = CliRunner().invoke(app, ["explain", str(folder / "known")], env={"COLUMNS": "200"}).stdout
    assert ORIGIN[:12] in shown and "84" in shown and "93%" in shown and "88%" in shown


def test_a_search_that_started_from_nothing_says_so(folder):
    shown = CliRunner().invoke(app, ["explain", str(folder / "new")])
    assert shown.exit_code == 0 and "started from nothing" in shown.stdout
