"""What the search's benchmarks compute with: ratios by hand, and a simulated fleet on a small made-up table."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from synthetic import Table as MadeUp

from model_opt.search import Limit, Objective, Purpose

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

from searching.fleet import Fleet, Simulation
from searching.problems import Problem, Table
from searching.ratios import floor, geometric, ratio


@pytest.fixture
def problem() -> Problem:
    made_up = MadeUp(0, decisions=5, options=3)
    value, cost = made_up.metrics(made_up.all_codes())
    samples = {"loss": -value[:, None], "time": cost[:, None]}
    objective = Objective(metric="loss", limits=(Limit(metric="time", bound=1.0),))
    return Problem(
        name="made up", table=Table(name="made up", space=made_up.space, samples=samples), objective=objective
    )


def test_a_table_finds_its_plans_again(problem: Problem) -> None:
    table = problem.table
    assert [table.row(table.codes(row)) for row in range(3**5)] == list(range(3**5))
    assert list(table.codes(7)) == [0, 0, 0, 2, 1]
    assert len(table.rows) == 3**5
    assert problem.measure(0, np.random.default_rng(0)) == {"loss": 0.0, "time": 0.0}
    assert not table.noisy("loss")


def test_regret_is_nought_at_the_best_feasible_plan_and_fixed_beyond_the_limit(problem: Problem) -> None:
    loss, time = problem.table.means["loss"], problem.table.means["time"]
    inside = time <= 1.0
    assert problem.regrets.min() == 0.0
    assert problem.regrets[inside].argmin() == loss[inside].argmin()
    assert set(problem.regrets[~inside]) == {np.median(loss[inside] - loss[inside].min())}


def test_ratios_by_hand() -> None:
    """(1 + 0.5) / (5.5 + 0.5) = 1/4 and (3 + 0) / (3 + 0) = 1: geometric mean 1/2. Equal runs leave no doubt."""
    assert floor(np.array([20.0, 30.0])) == 0.5
    ones, fives, threes = np.ones(4), np.full(4, 5.5), np.full(3, 3.0)
    part = ratio(ones, fives, 0.5)
    assert part.value == pytest.approx(0.25) and part.low == pytest.approx(part.high) == pytest.approx(0.25)
    assert geometric([(ones, fives, 0.5), (threes, threes, 0.0)]).value == pytest.approx(0.5)
    spread = ratio(np.array([0.0, 2.0]), np.array([1.0, 3.0]), 0.1)
    assert spread.low < spread.value < spread.high


def test_a_fleet_with_late_views_uses_its_budget_and_repeats_nothing(problem: Problem) -> None:
    """Three workers of unequal speed, one of which ends for good: its measurement is lost, its share goes on."""
    simulation = Simulation(problem, Fleet(speeds=(1.0, 1.0, 0.5), dies_at=2.5), budget=16, seed=0)
    found = simulation.run()
    done = [flight for flight in simulation.flights if flight.outcome is not None]
    assert len(done) == 16
    assert len(simulation.flights) == 17
    assert found.distinct == 1.0
    assert all(flight.end < 2.5 for flight in done if flight.worker == 0)
    assert {flight.purpose for flight in done} == {Purpose.EXPLORE}
    assert math.isfinite(problem.regrets[found.row])
