"""Workers with real trees against a real coordinator and its file, as threads of one process."""

import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from made_up import OBJECTIVE, SPACE, Sleeping
from model_opt.fleet.coordinator_service import CoordinatorService
from model_opt.fleet.coordinator_state import CoordinatorState, FleetRules
from model_opt.fleet.leases import Holder
from model_opt.fleet.messages import CoordinatorSnapshot, Reply
from model_opt.fleet.proposer import Proposals, Search, TreeProposer
from model_opt.fleet.time_left import TimeLeft
from model_opt.fleet.worker_loop import WorkerLoop
from model_opt.fleet.worker_state import WorkerState
from model_opt.search.evaluator import Measurement, Outcome, Purpose
from model_opt.search.objective import Limit, Objective
from model_opt.search.ownership import Shares, shares_of
from model_opt.search.plan import Plan
from model_opt.search.plan_seconds import ExpectedSeconds
from model_opt.search.space import Decision, SearchSpace

SEARCH = Search(space=SPACE, objective=OBJECTIVE)


def loop(name: str, link: object, *, seconds: float = 0.0, life: str = "1", search: Search = SEARCH) -> WorkerLoop:
    evaluator = Sleeping(seconds)

    def measure(plan: Plan, purpose: Purpose) -> Outcome:
        return evaluator.measure(plan, purpose, lambda phase: None)

    return WorkerLoop(
        WorkerState(Holder(worker=name, incarnation=life), "c"),
        link,  # type: ignore[arg-type]
        measure,
        lambda budget: TreeProposer(name, search, budget, {}),
        heartbeat_s=0.2,
    )


def run_all(loops: list[WorkerLoop]) -> list[str]:
    endings: list[str] = []
    threads = [threading.Thread(target=lambda each=each: endings.append(each.run())) for each in loops]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return endings


@pytest.mark.parametrize("workers", [1, 8])
def test_workers_settle_the_budget_and_repeat_nothing(tmp_path: Path, workers: int) -> None:
    service = CoordinatorService.at(tmp_path, FleetRules(budget=60, objective=OBJECTIVE))
    assert set(run_all([loop(f"w{i}", service) for i in range(workers)])) == {"budget"}
    outcomes = [trial.outcome for trial in service.trials()]
    assert len(outcomes) == 60
    assert len({outcome.plan.key for outcome in outcomes}) == 60
    assert service.status()["settled"] == 60
    best = min(o.samples["latency_ms"][0] for o in outcomes if isinstance(o, Measurement))
    assert best < 50.0
    service.close()


def test_a_worker_whose_measuring_raises_ends_and_its_plan_is_leased_again(tmp_path: Path) -> None:
    service = CoordinatorService.at(tmp_path, FleetRules(budget=6, objective=OBJECTIVE))
    broken = loop("w0", service)
    broken._measure = lambda plan, purpose: 1 / 0  # type: ignore[assignment,return-value]
    with pytest.raises(ZeroDivisionError):
        broken.run()
    assert service.status()["granted"] >= 1
    assert run_all([loop("w0", service, life="2")]) == ["budget"]
    assert service.status()["settled"] == 6 and service.status()["failures"] == {}
    service.close()


@pytest.mark.parametrize("workers", [1, 3])
def test_where_no_plan_holds_the_limit_what_is_left_explores(tmp_path: Path, workers: int) -> None:
    """Nobody but the answer is worth another measurement then."""
    impossible = Objective(metric="latency_ms", limits=(Limit(metric="accuracy_drop", bound=-1.0),))
    search = Search(space=SPACE, objective=impossible, noise={"latency_ms": 1.0})
    service = CoordinatorService.at(tmp_path, FleetRules(budget=24, objective=impossible))
    assert set(run_all([loop(f"w{i}", service, seconds=0.05, search=search) for i in range(workers)])) == {"budget"}
    assert service.status()["settled"] == 24
    service.close()


def equal_shares(workers: int) -> Shares:
    (shares,) = shares_of({f"w{i}": 1.0 for i in range(workers)})
    return shares


def test_leaders_are_measured_again_where_a_worker_has_a_few_plans() -> None:
    """Of a budget of 24 three are for leaders; with fewer than four plans a worker everything explores."""
    search = Search(space=SPACE, objective=OBJECTIVE, noise={"latency_ms": 1.0})
    evaluator, proposer = Sleeping(0.0), TreeProposer("w0", search, 24, {})
    for _ in range(19):
        plan, purpose = proposer.propose(1, pending=[], shares=equal_shares(1), budget=24)[0]
        proposer.tell(evaluator.measure(plan, purpose, lambda phase: None))
    pending = [plan for plan, _ in proposer.propose(2, pending=[], shares=equal_shares(1), budget=24)]
    for workers, expected, until in ((1, Purpose.VERIFY, 21), (6, Purpose.VERIFY, 21), (7, Purpose.EXPLORE, 24)):
        proposals = proposer.propose(3, pending=pending, shares=equal_shares(workers), budget=24)
        assert {purpose for _, purpose in proposals} == {expected}
        assert proposer.explores_until == until


def test_where_nothing_is_left_to_explore_leaders_are_measured_again_however_many_workers_there_are() -> None:
    space = SearchSpace([Decision("d", [str(option) for option in range(20)], ordered=True)])
    objective = Objective(metric="latency_ms")
    search = Search(space=space, objective=objective, noise={"latency_ms": 1.0})
    evaluator, proposer = Sleeping(0.0), TreeProposer("w0", search, 40, {})
    purposes = []
    for _ in range(24):
        plan, purpose = proposer.propose(1, pending=[], shares=equal_shares(16), budget=40)[0]
        proposer.tell(evaluator.measure(plan, purpose, lambda phase: None))
        purposes.append(purpose)
    assert purposes == [Purpose.EXPLORE] * 20 + [Purpose.VERIFY] * 4


def test_leaders_are_measured_again_before_the_time_is_up() -> None:
    """A plan a second and 30 seconds, of a budget that would last for hours."""
    search = Search(space=SPACE, objective=OBJECTIVE, noise={"latency_ms": 1.0})
    evaluator, proposer = Sleeping(0.0), TreeProposer("w0", search, 10_000, {})
    rules = FleetRules(budget=10_000, objective=OBJECTIVE, deadline_s=30.0, lease_s=60.0)
    coordinator = CoordinatorState(rules, CoordinatorSnapshot(), term=1, epoch="e" * 32, now=0.0)
    worker = WorkerState(Holder(worker="w0", incarnation="1"), "c")

    def turn(now: float, proposals: Proposals, wanted: int) -> Reply:
        ask = worker.question(proposals=proposals, wanted=wanted, seen=0, leaving=False, exhausted=False)
        reply, _ = coordinator.handle(ask, now)
        worker.hear(reply)
        return reply

    purposes = []
    for second in range(30):
        reply = turn(float(second), [], 0)
        for outcome in reply.news:
            proposer.tell(outcome)
        turn(float(second), proposer.propose(1, pending=[], shares=reply.shares, budget=reply.budget), 1)
        grant = worker.start()
        assert grant is not None
        purposes.append(grant.purpose)
        worker.finish(evaluator.measure(grant.plan, grant.purpose, lambda phase: None), 1.0)
    assert Purpose.VERIFY not in purposes[:20]
    assert purposes[27:] == [Purpose.VERIFY] * 3


@pytest.mark.parametrize("workers", [1, 2])
def test_no_plan_is_begun_that_would_not_end_in_time(tmp_path: Path, workers: int) -> None:
    """Plans of 50 ms, and of 10 s with the option that the search is told to expect that of, and a few seconds."""
    space = SearchSpace([Decision("a", "01234567"), Decision("b", "012345"), Decision("compiled", ["no", "yes"])])
    slow = {frozenset({("compiled", "yes")}): 10.0}
    search = Search(space=space, objective=OBJECTIVE, expected=ExpectedSeconds(plan_s=0.05, added_s=slow))
    begun: list[Plan] = []

    def measure(plan: Plan, purpose: Purpose) -> Outcome:
        begun.append(plan)
        time.sleep(10.0 if plan.option("compiled") else 0.05)
        return Measurement(plan=plan, samples={"latency_ms": (1.0,), "accuracy_drop": (0.0,)})

    rules = FleetRules(budget=10_000, objective=OBJECTIVE, deadline_s=time.time() + 6.0)
    service = CoordinatorService.at(tmp_path, rules)
    loops = [
        WorkerLoop(
            WorkerState(Holder(worker=name, incarnation="1"), "c"),
            service,
            measure,
            lambda budget, name=name: TreeProposer(name, search, budget, {}),
            left=TimeLeft(search.expected),
            heartbeat_s=0.2,
        )
        for name in [f"w{i}" for i in range(workers)]
    ]
    assert set(run_all(loops)) == {"time"}
    assert begun and all(plan.option("compiled") is None for plan in begun)
    assert service.status()["settled"] == len(begun)
    service.close()


def test_one_worker_leaves_and_another_goes_on(tmp_path: Path) -> None:
    service = CoordinatorService.at(tmp_path, FleetRules(budget=30, objective=OBJECTIVE))
    first = loop("a", service, seconds=0.02)
    threading.Timer(0.3, first.leave).start()
    assert first.run() == "left"
    assert service.status()["workers"] == 0
    assert loop("b", service).run() == "budget"
    assert service.status()["settled"] == 30
    service.close()


def test_a_coordinator_that_comes_back_has_forgotten_nothing(tmp_path: Path) -> None:
    rules = FleetRules(budget=40, objective=OBJECTIVE)

    class Moving:
        """A link to whoever is the coordinator now."""

        def __init__(self) -> None:
            self.service = CoordinatorService.at(tmp_path, rules)

        def ask(self, ask):
            return self.service.ask(ask)

        def heartbeat(self, holder, held) -> None:
            self.service.heartbeat(holder, held)

    link = Moving()
    old = link.service
    worker = threading.Thread(target=loop("a", link, seconds=0.01).run)
    worker.start()
    while old.status()["settled"] < 10:
        time.sleep(0.01)
    link.service = CoordinatorService.at(tmp_path, rules)  # as after a kill: the old one lives on, and cannot write
    worker.join(60)
    assert not worker.is_alive()
    status = link.service.status()
    assert (status["settled"], status["term"], status["ending"]) == (40, 2, "budget")
    positions = Counter(trial.plan.key for trial in link.service.trials())
    assert max(positions.values()) == 1
    link.service.close()
    old.close()


def test_a_space_that_runs_out_ends_the_search(tmp_path: Path) -> None:
    from model_opt.search.space import Decision, SearchSpace

    small = Search(space=SearchSpace([Decision("a", "012"), Decision("b", "01")]), objective=OBJECTIVE)
    service = CoordinatorService.at(tmp_path, FleetRules(budget=60, objective=OBJECTIVE))
    evaluator = Sleeping(0.0)
    worker = WorkerLoop(
        WorkerState(Holder(worker="a", incarnation="1"), "c"),
        service,
        lambda plan, purpose: evaluator.measure(plan, purpose, lambda phase: None),
        lambda budget: TreeProposer("a", small, budget, {}),
    )
    assert worker.run() == "exhausted"
    assert service.status()["settled"] == 6
    service.close()
