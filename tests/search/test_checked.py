"""What cannot be added up or written is a failure that says so, and everything else plain Python."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from model_opt.search.checked import LARGEST, checked
from model_opt.search.evaluator import Failure, Measurement, Reason
from model_opt.search.plan import Plan


@pytest.mark.parametrize(
    "samples", [(math.nan,), (1.0, math.inf), ("0.5",), "0.5", 0.5, (None,), (True,), (2 * LARGEST,), (1j,)]
)
def test_what_is_no_sample_fails_its_plan(samples) -> None:
    outcome = checked(Measurement(plan=Plan(), samples={"latency_ms": (1.0,), "cost": samples}, seconds={"time": 1.0}))
    assert isinstance(outcome, Failure) and outcome.reason is Reason.WRONG_OUTPUT
    assert outcome.message.startswith("cost ") and outcome.seconds == {"time": 1.0}


def test_numpys_values_are_pythons_afterwards() -> None:
    told = Measurement(
        plan=Plan(),
        samples={"cost": np.array([1, 2], dtype=np.float32)},  # type: ignore[dict-item]
        seconds={"time": np.float32(0.5), "wrong": Path("x")},  # type: ignore[dict-item]
        notes=(Path("a note"),),  # type: ignore[arg-type]
        partial=np.bool_(True),  # type: ignore[arg-type]
        disturbed=frozenset({"cost"}),
    )
    outcome = checked(told)
    assert isinstance(outcome, Measurement) and outcome.samples == {"cost": (1.0, 2.0)} and outcome.partial is True
    assert json.dumps([dict(outcome.samples), dict(outcome.seconds), outcome.notes]) == (
        '[{"cost": [1.0, 2.0]}, {"time": 0.5}, ["a note"]]'
    )
    assert checked(outcome) == outcome


def test_a_failure_stays_one() -> None:
    failure = Failure(plan=Plan(), reason=Reason.CRASH, message="signal 11", blamed=frozenset({("a", "b")}))
    assert checked(failure) == failure
