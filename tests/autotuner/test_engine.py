"""The search on one machine, through the real measuring process, over plans that take a known time."""

import random
import time
from dataclasses import dataclass

import pytest
from networks import small_cnn

from model_opt.autotuner.callbacks import Callbacks
from model_opt.autotuner.engine import CompressionTreeSearch, MCTSEngine, Problem
from model_opt.compression.sign_model import sign_model
from model_opt.measuring.child import MeasuringChild
from model_opt.search import Decision, Objective, SearchSpace
from model_opt.search.compiling import start_compiling
from model_opt.search.evaluator import Description, Measurement
from model_opt.search.plan import Choice, Plan
from model_opt.search.plan_seconds import ExpectedSeconds

SPACE = SearchSpace([Decision(f"d{i}", "0123", ordered=True) for i in range(5)])


@dataclass
class Sleepy:
    """Takes `seconds` for any plan; the more is chosen, the faster, give or take some noise."""

    seconds: float

    def describe(self):
        return Description()

    def measure(self, plan, purpose, phase):
        self.sleep(self.seconds)
        speed = sum(int(choice.option) for choice in plan.choices) + random.gauss(0, 0.1)
        return Measurement(plan=plan, samples={"log_speedup": (speed,)})

    def sleep(self, seconds):
        time.sleep(seconds)


@pytest.fixture(scope="module")
def child():
    start_compiling()
    with MeasuringChild(lambda: Sleepy(0.1)) as child:
        child.describe()
        yield child


def found_within(seconds, child, now=None):
    problem = Problem(
        measurer=child,
        space=SPACE,
        signature=sign_model(small_cnn()),
        objective=Objective(metric="log_speedup", maximize=True),
        noise={"log_speedup": 0.01},
        original=Measurement(plan=Plan(), samples={"log_speedup": (0.0,)}),
        explore_until=(time.monotonic() if now is None else now) + seconds,
    )
    return MCTSEngine(10_000).run(problem)


def test_the_leaders_are_measured_again_before_the_time_is_up(child):
    found = found_within(6.0, child)
    purposes = [seen.purpose for seen in found.observed[1:]]
    assert found.ended == "time" and 12 <= len(purposes) < 60
    assert purposes[:8] == ["explore"] * 8  # after a verification one more plan may fit in
    assert found.conclusion.best.plan in {seen.plan for seen in found.observed if seen.purpose == "verify"}


class Clocked(Sleepy):
    """Sleeps on a clock of its own, which nothing else moves; it measures in this process."""

    now = 0.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds

    def measure(self, plan, purpose):
        return super().measure(plan, purpose, None)


def test_the_last_plan_of_a_search_that_ran_out_of_time_is_a_leader_measured_again(monkeypatch):
    start_compiling()
    clock = Clocked(0.1)
    monkeypatch.setattr("model_opt.autotuner.engine.time", clock)
    found = found_within(6.0, clock, now=clock.now)
    purposes = [seen.purpose for seen in found.observed[1:]]
    assert found.ended == "time" and 12 <= len(purposes) < 60
    assert purposes[:8] == ["explore"] * 8 and purposes[-1] == "verify"


def test_where_there_is_time_for_few_plans_they_all_differ(child):
    found = found_within(0.8, child)
    assert found.ended == "time" and 1 <= len(found.observed[1:]) < 12
    assert {seen.purpose for seen in found.observed[1:]} == {"explore"}


@dataclass
class Uneven:
    """Any plan takes 0.1 s, one with the last option of `d0` half a minute."""

    def describe(self):
        return Description()

    def measure(self, plan, purpose, phase):
        phase("prepare")
        time.sleep(30.0 if plan.option("d0") == "3" else 0.1)
        return Measurement(plan=plan, samples={"log_speedup": (random.gauss(len(plan.choices), 0.1),)})


@pytest.fixture(scope="module")
def uneven_child():
    with MeasuringChild(Uneven) as child:
        child.describe()
        yield child


def uneven(child, seconds, *, expected):
    child.deadline = time.monotonic() + seconds
    notes = Notes()
    problem = Problem(
        measurer=child,
        space=SPACE,
        signature=sign_model(small_cnn()),
        objective=Objective(metric="log_speedup", maximize=True),
        noise={"log_speedup": 0.01},
        original=Measurement(plan=Plan(), samples={"log_speedup": (0.0,)}),
        first=[SPACE.plan({"d0": "3"})],
        explore_until=child.deadline,
        expected=expected,
        callbacks=notes,
    )
    return MCTSEngine(10_000).run(problem), notes.said


class Notes(Callbacks):
    def __init__(self):
        self.said = []

    def on_note(self, text):
        self.said.append(text)


def test_a_plan_that_cannot_end_in_time_is_not_begun_be_it_the_first(uneven_child):
    slow = ExpectedSeconds(plan_s=0.1, added_s={frozenset({("d0", "3")}): 30.0})
    found, notes = uneven(uneven_child, 3.0, expected=slow)
    plans = [seen.plan for seen in found.observed[1:]]
    assert found.ended == "time" and len(plans) >= 3 and notes == []
    assert all(plan.option("d0") != "3" for plan in plans)
    assert all(seen.failure is None for seen in found.observed)


def test_a_plan_that_the_end_cuts_off_counts_as_never_begun(uneven_child):
    found, (note,) = uneven(uneven_child, 1.5, expected=None)
    assert found.ended == "time" and "d0=3 was cut off" in note
    assert len(found.observed) == 1


def test_with_frozen_decisions_every_plan_of_the_rules_is_measured_after_the_frozen_ones_alone(child):
    space = SearchSpace(SPACE.decisions, frozen=[Choice(decision="runtime", option="openvino")])
    mine = [space.plan({"d0": str(option)}) for option in (1, 2)]
    problem = Problem(
        measurer=child,
        space=space,
        signature=sign_model(small_cnn()),
        objective=Objective(metric="log_speedup", maximize=True),
        noise={"log_speedup": 0.01},
        original=Measurement(plan=Plan(), samples={"log_speedup": (0.0,)}),
        first=mine,
    )
    found = CompressionTreeSearch().run(problem)
    assert [seen.plan for seen in found.observed[:4]] == [Plan(), space.plan({}), *mine]
