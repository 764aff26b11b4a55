"""A newcomer's path in seconds: from clone to first result, from result to report, from one machine to a cluster.

    python benchmarks/newcomer.py [--json] [--install]

Every step is a command that the documentation names, run in a clone, with data of its own. Without `--install` the
clone uses the environment that runs this; with it, one is made and filled as `make run` does (minutes, gigabytes).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODEL = """
import torch
from torch import nn


def make():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(64, 10),
    )
    images = torch.randn(256, 3, 32, 32)
    return {"model": model, "example_input": images[:8], "calibration_data": images.split(16)}
"""


def walk(install: bool) -> dict[str, float]:
    """Seconds of each step, by what it leads to."""
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="newcomer-") as folder:
        home, clone = Path(folder), Path(folder) / "model_opt"
        seconds["clone_s"] = _timed(["git", "clone", "-q", str(ROOT), str(clone)], home)
        python = sys.executable
        if install:
            seconds["venv_s"] = _timed([sys.executable, "-m", "venv", ".venv"], clone)
            python = str(clone / ".venv/bin/python")
            seconds["install_s"] = _timed([python, "-m", "pip", "install", "-q", "-e", ".[cpu,report]"], clone)
        (home / "my_model.py").write_text(MODEL)
        command = [python, "-m", "model_opt.cli.main"]
        seconds["first_screen_s"] = _timed(command, home)
        usual = ["my_model.py:make", "--simulations", "5", "--max-accuracy-drop", "0.2", "--knowledge", "kb.json"]
        seconds["first_result_s"] = _timed([*command, "optimize", *usual, "--output", "out"], home)
        seconds["report_s"] = _timed([*command, "report", "out", "-o", "report.html"], home)
        cluster = ["--workers", "2", "--name", "trial", "--output", "fleet", "--state", str(home / "state")]
        seconds["cluster_result_s"] = _timed([*command, "search", *usual, *cluster], home)
        seconds["cluster_report_s"] = _timed([*command, "report", "fleet", "-o", "fleet.html"], home)
        assert (home / "report.html").stat().st_size > 1e6 and (home / "fleet.html").stat().st_size > 1e6
    return {name: round(value, 1) for name, value in seconds.items()}


def _timed(command: list[str], folder: Path) -> float:
    environment = os.environ | {"XDG_DATA_HOME": str(folder / "data"), "RAY_AUTH_MODE": "disabled"}
    began = time.monotonic()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--install", action="store_true", help="make and fill a fresh environment first")
    parser.add_argument("--json", action="store_true", help="figures as JSON")
    given = parser.parse_args()
    figures = walk(given.install)
    if given.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:20} {value:8.1f}")


if __name__ == "__main__":
    main()
