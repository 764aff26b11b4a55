"""What cannot be added up or written is a failure that says so, and everything else plain Python."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from model_opt.search.checked import LARGEST, checked
from model_opt.search.evaluator import Failure, Measurement, Reason
from model_opt.search.plan import Choice, Plan


@pytest.mark.parametrize(
    "samples", [(math.nan,), (1.0, math.inf), ("0.5",), "0.5", 0.5, (None,), (True,), (2 * LARGEST,), (1j,)]
)
def test_what_is_no_sample_fails_its_plan(samples) -> None:
    told = Measurement(plan=Plan(), samples={"latency_ms": (1.0,), "cost": samples}, seconds={"time": 1.0})
    outcome = checked(told, Plan())
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
    outcome = checked(told, Plan())
    assert isinstance(outcome, Measurement) and outcome.samples == {"cost": (1.0, 2.0)} and outcome.partial is True
    assert json.dumps([dict(outcome.samples), dict(outcome.seconds), outcome.notes]) == (
        '[{"cost": [1.0, 2.0]}, {"time": 0.5}, ["a note"]]'
    )
    assert checked(outcome, Plan()) == outcome


def test_a_failure_stays_one() -> None:
    failure = Failure(plan=Plan(), reason=Reason.CRASH, message="signal 11", blamed=frozenset({("a", "b")}))
    assert checked(failure, Plan()) == failure


def test_an_answer_that_is_none_or_for_another_plan_fails_the_one_that_was_asked_for() -> None:
    asked, other = (Plan((Choice(decision="n", option=option),)) for option in "12")
    for told in (None, 5, Measurement(plan=other, samples={"cost": (1.0,)})):
        outcome = checked(told, asked)  # type: ignore[arg-type]
        assert isinstance(outcome, Failure) and outcome.plan == asked and outcome.reason is Reason.WRONG_OUTPUT
        assert "asked for n=1" in outcome.message


def test_what_stands_where_several_texts_should_is_none_of_them() -> None:
    told = Measurement(plan=Plan(), samples={}, notes=None, disturbed=5)  # type: ignore[arg-type]
    outcome = checked(told, Plan())
    assert isinstance(outcome, Measurement) and (outcome.notes, outcome.disturbed) == ((), frozenset())
