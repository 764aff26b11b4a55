"""A state folder that is older than what its store has of it: nothing is told twice, nothing is lost."""

import shutil
from pathlib import Path

import pytest

from made_up import CONTEXT, OBJECTIVE, SPACE
from model_opt.federation.fold import fold
from model_opt.fleet.coordinator_service import CoordinatorService
from model_opt.fleet.coordinator_state import FleetRules
from model_opt.fleet.flush import Flush, context_fact
from model_opt.fleet.leases import Holder
from model_opt.fleet.submission import Sharing
from model_opt.fleet.worker_state import WorkerState
from model_opt.search.evaluator import Measurement, Purpose
from model_opt.search.model_signature import Family, ModelSignature
from model_opt.search.plan import Plan
from model_opt.storage.open import open_store

SIGNATURE = ModelSignature(family=Family.CNN, parameters=10, layers=2, operators={"linear": 2}, stages=())


class Life:
    """One life of a coordinator whose search is kept in `state`; it tells the store when it ends."""

    def __init__(self, state: Path, store: Path) -> None:
        self.service = CoordinatorService.at(state, FleetRules(budget=1000, objective=OBJECTIVE))
        self.service.remember(context_fact(CONTEXT))
        self._sharing = Sharing(store=str(store), signature=SIGNATURE, origin="me")
        self._worker = WorkerState(
            Holder(worker="a", incarnation=str(self.service.state.term) + state.name), CONTEXT.key
        )

    def measure(self, plan: Plan, latency_ms: float) -> None:
        """Measures `plan`, once more where it was."""
        known = (plan.key, CONTEXT.key) in self.service.state.rows
        purpose = Purpose.VERIFY if known else Purpose.EXPLORE
        self._worker.hear(self.service.ask(self._worker.question(proposals=[(plan, purpose)], wanted=1)))
        assert self._worker.start() is not None
        self._worker.finish(Measurement(plan=plan, samples={"latency_ms": (latency_ms,)}), 0.1)
        self._worker.hear(self.service.ask(self._worker.question()))

    def end(self, *, told: bool = True) -> None:
        """Ends it, and returns when the store has everything, unless it is not to be told."""
        if told:
            flush = Flush(self.service, self._sharing)
            flush.close()
            assert flush.error is None and flush.unflushed == 0
        self.service.close()


def plan(number: int) -> Plan:
    return SPACE.plan({"d0": str(1 + number % 2), "d1": str(number // 2)})


def told(store: Path) -> dict[str, list[float]]:
    """Plan key → samples and mean of all epochs together."""
    with open_store(store) as opened:
        folded = fold(opened.rows(), "latency_ms")
    rows = zip(folded.cells, folded.moments.to_list(), strict=True)
    return {cell.plan: [whole.n, round(whole.mean, 9)] for cell, whole in rows}


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path, Path]:
    """State folder, its back-up, store."""
    return tmp_path / "state", tmp_path / "backup", tmp_path / "kb.db"


def begun(state: Path, store: Path, copy: Path) -> None:
    """A search that has measured one plan and told it, and a copy of its folder."""
    life = Life(state, store)
    life.measure(plan(0), 10.0)
    life.end()
    shutil.copytree(state, copy)


def bring_back(state: Path, backup: Path) -> None:
    shutil.rmtree(state)
    shutil.copytree(backup, state)


@pytest.mark.parametrize("waiting", [False, True], ids=["all was told", "one waited"])
def test_what_is_measured_after_a_back_up_came_back_is_told_once(
    places: tuple[Path, Path, Path], waiting: bool
) -> None:
    state, backup, store = places
    life = Life(state, store)
    life.measure(plan(0), 10.0)
    life.measure(plan(1), 11.0)
    life.end()
    if waiting:
        life = Life(state, store)
        life.measure(plan(2), 12.0)
        life.end(told=False)
    shutil.copytree(state, backup)
    life = Life(state, store)
    life.measure(plan(0), 20.0)
    life.measure(plan(3), 13.0)
    life.end()
    after = told(store)
    bring_back(state, backup)
    life = Life(state, store)
    life.measure(plan(0), 30.0)
    life.measure(plan(4), 14.0)
    life.end()
    expected = after | {plan(0).key: [3, 20.0], plan(4).key: [1, 14.0]}
    assert told(store) == expected
    life = Life(state, store)  # a later life goes on with the new epoch
    life.measure(plan(0), 40.0)
    life.end()
    assert told(store) == expected | {plan(0).key: [4, 25.0]}


def test_a_back_up_that_comes_back_twice_and_a_store_that_knew_nothing_later(places: tuple[Path, Path, Path]) -> None:
    state, backup, store = places
    begun(state, store, backup)
    for again in range(3):
        life = Life(state, store)
        life.measure(plan(0), 10.0)
        life.measure(plan(1 + again), 1.0)
        life.end()
        bring_back(state, backup)
    assert told(store) == {plan(0).key: [4, 10.0]} | {plan(1 + again).key: [1, 1.0] for again in range(3)}
    with open_store(store) as opened:
        assert len({row.epoch for row in opened.rows()}) == 3


def test_a_copy_that_runs_beside_the_first_one(places: tuple[Path, Path, Path]) -> None:
    state, copied, store = places
    begun(state, store, copied)
    first, second = Life(state, store), Life(copied, store)
    first.measure(plan(1), 1.0)
    second.measure(plan(1), 3.0)
    first.end()
    second.end()
    assert told(store) == {plan(0).key: [1, 10.0], plan(1).key: [2, 2.0]}


def test_a_lost_result_of_a_row_that_the_store_has_is_told(places: tuple[Path, Path, Path]) -> None:
    """The store took another row in the number that this folder's next envelope had."""
    state, backup, store = places
    begun(state, store, backup)
    life = Life(state, store)
    life.measure(plan(1), 1.0)
    life.end()
    bring_back(state, backup)
    life = Life(state, store)
    life.measure(plan(0), 20.0)
    life.end(told=False)  # the store could not be reached in the first life after
    life = Life(state, store)
    life.measure(plan(0), 30.0)
    life.end()
    assert told(store) == {plan(0).key: [3, 20.0], plan(1).key: [1, 1.0]}
