"""Ten minutes of everything that can go wrong, three times; see benchmarks/chaos.py."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

CHAOS = Path(__file__).parents[2] / "benchmarks" / "chaos.py"


@pytest.mark.soak
@pytest.mark.timeout(2400)
@pytest.mark.parametrize(("seed", "store"), [(0, "redis"), (1, "neo4j"), (2, "redis")])
def test_budgets_and_rows_stay_exact_while_everything_goes_wrong(seed: int, store: str) -> None:
    words = [sys.executable, str(CHAOS), "--minutes", "10", "--seed", str(seed), "--store", store, "--json"]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, timeout=2100)
    if done.returncode == 2:
        pytest.skip(f"{store} is not installed: make servers")
    found = json.loads(done.stdout)
    print(json.dumps(found, indent=1))
    assert found["wrong"] == [] and found["settled"] > 0
