"""The command line as a user runs it: exit codes, standard output that is only JSON, errors of one line."""

import json
import os
import re
import subprocess
import sys

import pytest

from model_opt.cli import checks, optimize
from model_opt.cli.main import main

FACTORY = """
import torch
from torch import nn


def make():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))
    images = torch.randn(96, 1, 8, 8)
    return {"model": model, "example_input": images[:4], "calibration_data": images.split(16)}


def nothing():
    return 7
"""


def run(*arguments, folder, timeout=240):
    command = [sys.executable, "-m", "model_opt.cli.main", *arguments]
    own = os.environ | {"XDG_DATA_HOME": str(folder / "home")}  # keys and outgoing streams are the user's
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=timeout, env=own)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("cli")
    (made / "net.py").write_text(FACTORY)
    return made


@pytest.fixture(scope="module")
def optimised(folder):
    return run(
        "optimize", "net.py:make", "--method", "mcts", "--simulations", "4", "--max-accuracy-drop", "0.5",
        "--knowledge", "kb.json", "--output", "out", "--json", "--exclude", "aot_inductor", "--exclude",
        "torch_compile", folder=folder,
    )  # fmt: skip


def test_json_is_all_that_is_printed(optimised):
    assert optimised.returncode == 0, optimised.stderr
    said = json.loads(optimised.stdout)
    for name in ("compression_ratio", "speedup", "accuracy_drop"):
        assert said[name]["low"] <= said[name]["value"] <= said[name]["high"]
    assert said["feasible"] is True and isinstance(said["techniques"], list) and isinstance(said["plan"], dict)
    assert "4/4" in optimised.stderr


def test_a_result_can_be_shown_and_drawn(optimised, folder):
    shown = run("show", "out", folder=folder)
    assert shown.returncode == 0 and "latency" in shown.stdout and "95 % interval" in shown.stdout
    drawn = run("show", "out", "--plot", "pareto.svg", folder=folder)
    assert drawn.returncode == 0, drawn.stderr
    assert "<svg" in (folder / "pareto.svg").read_text()
    assert json.loads(run("show", "out", "--json", folder=folder).stdout)["method"] == "mcts"


def test_the_knowledge_can_be_looked_at_and_moved(optimised, folder):
    shown = json.loads(run("knowledge", "show", "--store", "kb.json", "--json", folder=folder).stdout)
    assert shown[0]["plans"] >= 3 and shown[0]["signature"]["family"] == "cnn"
    assert run("knowledge", "export", "--out", "k.bundle", "--store", "kb.json", folder=folder).returncode == 0
    moved = run("knowledge", "import", "k.bundle", "--store", "sqlite:///other.db", "--json", folder=folder)
    assert json.loads(moved.stdout)["new"] == 1
    again = run("knowledge", "import", "k.bundle", "--store", "sqlite:///other.db", "--json", folder=folder)
    assert json.loads(again.stdout)["new"] == 0
    asked = ("knowledge", "revoke", "0ff", "--reason", "x", "--store", "sqlite:///other.db", "--json")
    refused = run(*asked, folder=folder)
    assert refused.returncode == 0 and "nothing of '0ff' is here yet" in refused.stderr
    told = json.loads(refused.stdout)
    assert not told["known"] and told["rows_before"] == told["rows_after"] >= 3 and told["results"] == []


def test_a_dry_run_measures_nothing(folder):
    said = json.loads(run("optimize", "net.py:make", "--dry-run", "--json", "--exclude", "bf16", folder=folder).stdout)
    assert said["decisions"]["prune"][0] == "0" and "bf16" not in said["decisions"]["precision"]
    assert said["plans"] > 100 and said["seconds_in_all"] > said["seconds_each"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optimize", "net.py:missing"], "known: make, nothing"),
        (["optimize", "net.py:nothing"], "returned int, not a torch.nn.Module"),
        (["optimize", "resnet18"], "names no model: torchvision:resnet18"),
        (["optimize", "torchvision:resnet19"], "known: alexnet"),
        (["optimize", "keras:resnet18"], "torchvision"),
        (["optimize", "absent.py:make"], "there is no file absent.py"),
        (["optimize", "net.py:make", "--freeze", "precision"], "decision=option"),
        (["search", "net.py:make", "--max-accuracy-drop", "two"], "0.02 or 2% is two points"),
        (["show", "nowhere"], "no result at"),
        (["show", "net.py"], "not a result of model_opt"),
        (["knowledge", "show", "--store", "oracle://x"], "sqlite"),
        (["search", "net.py:make", "--workers", "many"], "positive number or auto"),
    ],
)
def test_an_error_is_one_line_that_helps(arguments, message, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["model-opt", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr()
    assert ended.value.code == 2 and printed.out == ""
    told = [line for line in printed.err.splitlines() if not re.match(r"\[ *[\d.]+ s\]", line)]  # without the progress
    assert len(told) == 1 and message in told[0]


def test_doctor_says_what_is_here_and_how_to_get_the_rest(folder, monkeypatch, capsys):
    said = json.loads(run("doctor", "--json", folder=folder).stdout)
    assert {"device", "openvino", "C++ compiler"} <= {check["what"] for check in said}
    monkeypatch.setattr(checks, "GOOD_FOR", {"a_package_that_is_not_here": "an [odd] one"})
    monkeypatch.setattr(checks, "packages", dict)  # nothing optional is installed
    monkeypatch.setenv("COLUMNS", "160")
    optimize.doctor()
    shown = capsys.readouterr().out
    assert "pip install 'model_opt[cpu]'" in shown and "an [odd] one" in shown
