"""Leases, the coordinator's logic and its journal: exact under random schedules, without Ray."""

import itertools
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
from fleet_simulation import Simulation, numbered

from model_opt.errors import FleetError, StoreCorrupt
from model_opt.federation.moments import Moments
from model_opt.fleet.coordinator_state import REPLACED, CoordinatorState, FleetRules
from model_opt.fleet.journal import Journal, MemoryJournal, SqliteJournal
from model_opt.fleet.leases import Holder, LeaseBook, LeaseState, LeaseVerdict
from model_opt.fleet.messages import CoordinatorSnapshot, Reply, WorkRequest
from model_opt.fleet.news import MOST_PENDING, TOLD_EVERYBODY
from model_opt.fleet.planning import Planning
from model_opt.fleet.time_left import TimeLeft
from model_opt.fleet.worker_state import WorkerState
from model_opt.search.evaluator import Measurement, Outcome, Purpose
from model_opt.search.objective import Objective
from model_opt.search.plan import Plan

A, B = Holder(worker="a", incarnation="1"), Holder(worker="b", incarnation="1")


def book(budget: int = 3) -> LeaseBook:
    return LeaseBook(budget, lease_s=10.0, prefix="e")


def test_a_budget_is_never_overdrawn_and_an_expired_lease_keeps_its_unit() -> None:
    leases = book(2)
    one = leases.grant(numbered(1), Purpose.EXPLORE, "c", A, 0.0)
    assert one is not None
    assert leases.grant(numbered(1), Purpose.EXPLORE, "c", B, 0.0) is None  # in flight
    assert leases.grant(numbered(2), Purpose.EXPLORE, "c", A, 5.0) is not None
    assert leases.grant(numbered(3), Purpose.EXPLORE, "c", B, 5.0) is None  # no room
    assert leases.expire(12.0) == []
    assert (leases.granted, leases.room) == (1, 0)
    again = leases.regrant("c", B, 13.0)
    assert again is not None
    assert (again.lease_id, again.attempt) == (one.lease_id, 2)
    assert leases.settle(one.lease_id, 1) is LeaseVerdict.SETTLES  # the first worker was only slow
    assert leases.settle(one.lease_id, 2) is LeaseVerdict.EXTRA
    assert leases.settle(one.lease_id, 2) is LeaseVerdict.DUPLICATE
    assert (leases.settled, leases.granted) == (1, 1)


def test_renewing_keeps_a_lease_and_only_its_holder_can() -> None:
    leases = book()
    one = leases.grant(numbered(1), Purpose.EXPLORE, "c", A, 0.0)
    assert one is not None
    leases.renew({one.lease_id}, B, 9.0)
    leases.renew({one.lease_id}, A, 9.0)
    leases.expire(12.0)
    assert leases.granted == 1
    leases.expire(19.0)
    assert leases.granted == 0


def test_a_plan_that_loses_its_workers_is_given_up() -> None:
    leases = book()
    leases.grant(numbered(1), Purpose.EXPLORE, "c", A, 0.0)
    assert leases.release("a") == []
    leases.regrant("c", A, 0.0)
    assert leases.release("a") == []
    leases.regrant("c", A, 0.0)
    (lost,) = leases.release("a")
    assert lost.attempt == 3


def test_plans_that_only_waited_are_not_blamed_for_the_loss_of_their_worker() -> None:
    leases = book(4)
    for number in range(4):
        leases.grant(numbered(number), Purpose.EXPLORE, "c", A, 0.0)
    for _ in range(2):
        assert leases.release("a") == []
        while leases.regrant("c", A, 0.0) is not None:
            pass
    (given_up,) = leases.release("a")
    assert given_up.plan == numbered(0) and leases.expired == 4
    leases.validate()


def rules(budget: int = 10, **more: object) -> FleetRules:
    return FleetRules(budget=budget, objective=Objective(metric="x"), lease_s=5.0, **more)  # type: ignore[arg-type]


def state(**more: object) -> CoordinatorState:
    return CoordinatorState(rules(**more), CoordinatorSnapshot(), term=1, epoch="e" * 32, now=0.0)


def turn(coordinator: CoordinatorState, worker: WorkerState, now: float, **more: object) -> Reply:
    reply, _ = coordinator.handle(worker.question(**more), now)  # type: ignore[arg-type]
    assert worker.hear(reply)
    return reply


def wish(*numbers: int) -> list[tuple[object, Purpose]]:
    return [(numbered(n), Purpose.EXPLORE) for n in numbers]


def finish(worker: WorkerState, value: float = 1.0) -> None:
    grant = worker.start()
    assert grant is not None
    worker.finish(Measurement(plan=grant.plan, samples={"x": (value,)}), 1.0)


def test_nobody_measures_what_another_measures_or_has_measured() -> None:
    coordinator, a, b = state(), WorkerState(A, "c"), WorkerState(B, "c")
    assert [g.plan for g in turn(coordinator, a, 0.0, proposals=wish(1, 2), wanted=1).grants] == [numbered(1)]
    reply = turn(coordinator, b, 0.0, proposals=wish(1, 2), wanted=2)
    assert [g.plan for g in reply.grants] == [numbered(2)]
    assert reply.pending == (numbered(1),)
    finish(a)
    assert [g.plan for g in turn(coordinator, a, 1.0, proposals=wish(1, 3), wanted=1).grants] == [numbered(3)]
    again = turn(coordinator, b, 1.0, proposals=[(numbered(1), Purpose.VERIFY)], wanted=2)
    assert [g.purpose for g in again.grants] == [Purpose.VERIFY]
    assert [o.plan for o in again.news] == [numbered(1)]


def test_contexts_share_the_budget_and_nothing_else() -> None:
    coordinator, a, b = state(), WorkerState(A, "cpu"), WorkerState(B, "gpu")
    turn(coordinator, a, 0.0, proposals=wish(1), wanted=1)
    reply = turn(coordinator, b, 0.0, proposals=wish(1), wanted=1)
    assert (len(reply.grants), reply.pending, list(reply.shares.members)) == (1, (), ["b"])
    finish(a)
    turn(coordinator, a, 1.0)
    assert turn(coordinator, b, 1.0).news == ()
    assert set(coordinator.rows) == {(numbered(1).key, "cpu")}


def test_a_large_fleet_is_told_its_own_the_best_and_the_latest_and_how_much_was_skipped() -> None:
    """A worker that was away while the others settled 900 plans; the eleventh was the best."""
    rules = FleetRules(budget=4000, objective=Objective(metric="x"))
    coordinator = CoordinatorState(rules, CoordinatorSnapshot(), term=1, epoch="e" * 32, now=0.0)
    workers = [WorkerState(Holder(worker=f"w{i}", incarnation="1"), "c") for i in range(2 * TOLD_EVERYBODY)]
    away, others = workers[0], workers[1:301]
    for worker in workers:
        turn(coordinator, worker, 0.0)
    turn(coordinator, away, 0.0, proposals=wish(9_999), wanted=1)
    finish(away)
    for number in range(900):
        worker = others[number % 300]
        turn(coordinator, worker, 0.1, proposals=wish(number), wanted=1)
        finish(worker, 0.5 if number == 11 else 1.0 + number / 1000)
        turn(coordinator, worker, 0.1)
    reply = turn(coordinator, away, 0.2, proposals=wish(3, 2_000), wanted=1)
    told = [outcome.plan for outcome in reply.news]
    assert len(told) + reply.skipped == 901
    assert {numbered(9_999), numbered(11), numbered(899)} <= {*told}
    assert numbered(3) not in told
    assert [outcome.plan for outcome in reply.measured] == [numbered(3)]  # and it is not granted
    assert [grant.plan for grant in reply.grants] == [numbered(2_000)]
    assert reply.cursor == 901
    assert (turn(coordinator, away, 0.3).news, coordinator.handle(away.question(), 0.3)[0].skipped) == ((), 0)


def test_what_is_skipped_is_spent_and_is_told_once_at_most() -> None:
    told: list[Plan] = []
    budgets: list[int] = []

    class Proposer:
        explores_until = 100

        def tell(self, outcome: Outcome) -> None:
            told.append(outcome.plan)

        def propose(self, many: int, *, budget: int, **others: object) -> list[tuple[Plan, Purpose]]:
            budgets.append(budget)
            return [(numbered(500 + len(budgets)), Purpose.EXPLORE)]

    coordinator = state(budget=100)
    worker = WorkerState(A, "c")
    reply = turn(coordinator, worker, 0.0)
    known, late = (Measurement(plan=numbered(n), samples={"x": (1.0,)}) for n in (1, 2))
    planning = Planning(lambda budget: Proposer(), typical_s=lambda: 1.0, left=TimeLeft())
    planning.start()
    planning.hear(replace(reply, news=(known,), skipped=40), [])
    planning.take(1, patience_s=5.0)
    planning.hear(replace(reply, measured=(known, late)), [])
    while len(told) < 2:
        planning.take(1, patience_s=5.0)
    planning.close()
    assert told == [numbered(1), numbered(2)]
    assert budgets[0] == reply.budget - 40
    assert budgets[-1] == reply.budget - 39


def test_a_lost_answer_is_handed_out_again_and_a_life_that_was_replaced_gets_nothing() -> None:
    coordinator, a = state(), WorkerState(A, "c")
    lost, _ = coordinator.handle(a.question(proposals=wish(1), wanted=1), 0.0)
    again = turn(coordinator, a, 0.1, proposals=wish(2), wanted=1)
    assert again.grants == lost.grants
    assert not a.hear(lost)
    born = WorkerState(Holder(worker="a", incarnation="2"), "c")
    (grant,) = turn(coordinator, born, 0.2, proposals=wish(3), wanted=1).grants
    assert (grant.lease_id, grant.attempt) == (again.grants[0].lease_id, 2)
    finish(a)
    assert turn(coordinator, a, 0.3, proposals=wish(4), wanted=1).ending == REPLACED
    assert (coordinator.book.settled, coordinator.book.granted) == (1, 0)
    finish(born)
    turn(coordinator, born, 0.4)
    assert (coordinator.book.settled, coordinator.tally.extra) == (1, 1)
    assert coordinator.rows[numbered(1).key, "c"].moments["x"].n == 2


def test_leaving_hands_leases_to_the_next() -> None:
    coordinator, a, b = state(), WorkerState(A, "c"), WorkerState(B, "c")
    turn(coordinator, a, 0.0, proposals=wish(1), wanted=1)
    turn(coordinator, a, 0.1, leaving=True)
    (grant,) = turn(coordinator, b, 0.1, wanted=1).grants
    assert (grant.plan, grant.attempt) == (numbered(1), 2)


def test_what_the_end_by_time_cuts_off_is_not_counted_and_comes_late_as_an_extra_sample() -> None:
    coordinator, a = state(deadline_s=4.0), WorkerState(A, "c")
    assert turn(coordinator, a, 1.0, proposals=wish(1), wanted=1).left_s == 3.0
    grant = a.start()
    coordinator.tick(4.0)
    assert (coordinator.ending, coordinator.log, coordinator.book.settled) == ("time", [], 0)
    assert coordinator.tally.failures == {}
    a.finish(Measurement(plan=grant.plan, samples={"x": (1.0,)}), 3.5)
    reply = turn(coordinator, a, 4.5)
    assert (reply.ending, reply.left_s, a.unsent) == ("time", 0.0, 0)
    assert (coordinator.book.settled, coordinator.tally.extra) == (0, 1)


def test_what_runs_when_the_time_is_up_may_end_a_little_later() -> None:
    coordinator, a, b = state(deadline_s=4.0, grace_s=2.0), WorkerState(A, "c"), WorkerState(B, "c")
    turn(coordinator, a, 1.0, proposals=wish(1), wanted=1)
    coordinator.tick(5.0)
    assert coordinator.ending is None and turn(coordinator, b, 5.0).left_s == 0.0
    finish(a)
    assert turn(coordinator, a, 5.5).ending == "time" and coordinator.book.settled == 1

    late = state(deadline_s=4.0, grace_s=2.0)
    turn(late, WorkerState(A, "c"), 1.0, proposals=wish(1), wanted=1)
    late.tick(6.0)
    assert (late.ending, late.book.settled) == ("time", 0)


def test_a_lease_that_is_given_back_frees_its_unit_and_whoever_has_time_may_have_its_plan() -> None:
    coordinator, a, b = state(budget=2), WorkerState(A, "c"), WorkerState(B, "c")
    turn(coordinator, a, 0.0, proposals=wish(1, 2), wanted=2)
    a.give_back()
    assert coordinator.book.room == 0
    lost, _ = coordinator.handle(a.question(), 0.1)
    assert coordinator.book.room == 1 and lost.grants == ()
    assert turn(coordinator, a, 0.2).grants == () and a.holds == 1  # said again, for the answer was lost
    assert [g.plan for g in turn(coordinator, b, 0.3, proposals=wish(1), wanted=1).grants] == [numbered(1)]
    finish(a)
    finish(b)
    turn(coordinator, a, 0.4)
    assert turn(coordinator, b, 0.4).ending == "budget"
    assert {trial.plan for trial in coordinator.log} == {numbered(1), numbered(2)}


def test_where_what_is_left_would_take_too_long_the_search_ends_by_time() -> None:
    coordinator, a, b = state(deadline_s=100.0), WorkerState(A, "c"), WorkerState(B, "c")
    turn(coordinator, a, 0.0)
    turn(coordinator, b, 0.1, exhausted=True, late=True)
    assert coordinator.ending is None  # the other may still propose
    assert turn(coordinator, a, 0.2, exhausted=True).ending == "time"


def test_an_extension_asks_everybody_anew_what_could_not_be_proposed_before() -> None:
    coordinator, a, b = state(deadline_s=100.0), WorkerState(A, "c"), WorkerState(B, "c")
    turn(coordinator, a, 0.0)
    turn(coordinator, b, 0.1, exhausted=True, late=True)
    assert turn(coordinator, a, 0.2, exhausted=True).ending == "time"
    coordinator.extend(5, "a request", now=0.3)
    coordinator.tick(0.4)
    assert coordinator.ending is None
    assert turn(coordinator, a, 0.5, exhausted=True).ending is None
    assert turn(coordinator, b, 0.6, exhausted=True).ending == "exhausted"


def test_the_end_by_budget_can_be_extended() -> None:
    coordinator, a = state(budget=1), WorkerState(A, "c")
    turn(coordinator, a, 0.0, proposals=wish(1), wanted=1)
    finish(a)
    assert turn(coordinator, a, 1.0).ending == "budget"
    coordinator.extend(2)
    reply = turn(coordinator, a, 1.0, proposals=wish(2), wanted=1)
    assert (reply.ending, reply.budget, len(reply.grants)) == (None, 3, 1)


def test_an_extension_counts_once_and_lifts_a_time_that_is_up() -> None:
    coordinator, a = state(budget=1, deadline_s=10.0), WorkerState(A, "c")
    assert turn(coordinator, a, 11.0).ending == "time"
    for _ in range(2):
        coordinator.extend(2, "a request", now=11.0)
    reply = turn(coordinator, a, 12.0, proposals=wish(1), wanted=1)
    assert (reply.ending, reply.left_s, coordinator.book.budget, len(reply.grants)) == (None, None, 3, 1)


def test_patience_counts_from_an_extension_in_the_next_life_too() -> None:
    journal = MemoryJournal()
    term, epoch, kept = journal.begin()
    coordinator = CoordinatorState(rules(budget=9, patience=2), kept, term=term, epoch=epoch, now=0.0)
    a = WorkerState(A, "c")

    def kept_turn(now: float, **more: object) -> Reply:
        reply, changes = coordinator.handle(a.question(**more), now)  # type: ignore[arg-type]
        journal.commit(term, [changes])
        assert a.hear(reply)
        return reply

    for number in range(3):  # the first is the best: nothing better follows
        kept_turn(float(number), proposals=wish(number), wanted=1)
        finish(a)
    assert kept_turn(3.0).ending == "converged"
    journal.commit(term, [coordinator.extend(5)])
    term, epoch, kept = journal.begin()
    revived = CoordinatorState(rules(budget=9, patience=2), kept, term=term, epoch=epoch, now=4.0)
    revived.tick(4.0)
    assert revived.ending is None and (len(revived.log), revived.book.budget) == (3, 14)


def test_the_budget_told_is_what_will_be_settled_in_time_in_the_workers_context() -> None:
    coordinator, a, b = state(budget=100, deadline_s=20.0), WorkerState(A, "c"), WorkerState(B, "other")
    for second in range(12):
        turn(coordinator, a, float(second), proposals=wish(second), wanted=1)
        finish(a)
    told = turn(coordinator, a, 12.0).budget
    assert told == 12 + 8  # one a second
    turn(coordinator, b, 12.0, proposals=wish(0), wanted=1)
    finish(b)
    turn(coordinator, b, 13.0)
    assert turn(coordinator, a, 13.0).budget == 12 + 7  # the thirteenth part of which is the other's
    assert turn(coordinator, b, 13.0).budget == 1 + 1
    late = turn(coordinator, a, 19.9, proposals=wish(20), wanted=1)
    assert late.budget > 12 + 1  # what is begun, and one


def test_what_is_measured_elsewhere_and_not_told_of_is_not_in_the_budget_told() -> None:
    coordinator, me = state(budget=1000, deadline_s=math.inf), WorkerState(A, "c")
    for number in range(100):
        other = WorkerState(Holder(worker=f"w{number}", incarnation="1"), "c")
        turn(coordinator, other, 0.0, proposals=wish(number), wanted=1)
    reply = turn(coordinator, me, 0.0)
    assert (len(reply.pending), reply.budget) == (MOST_PENDING, 1000 - (100 - MOST_PENDING))
    for number in range(300):
        turn(coordinator, me, 0.0, proposals=wish(1000 + number), wanted=1)
        finish(me)
    told = turn(coordinator, me, 1.0).budget
    assert told == 1000 - (100 - MOST_PENDING)  # a time limit that never comes limits nothing


def test_without_a_time_limit_one_context_is_told_the_whole_budget() -> None:
    coordinator, a = state(budget=7), WorkerState(A, "c")
    for number in range(6):
        assert turn(coordinator, a, 100.0 * number, proposals=wish(number), wanted=1).budget == 7
        finish(a)


def test_exhaustion_and_convergence_end_a_search() -> None:
    coordinator, a = state(), WorkerState(A, "c")
    turn(coordinator, a, 0.0, proposals=wish(1), wanted=1)
    assert turn(coordinator, a, 0.1, exhausted=True).ending is None  # something is in flight
    finish(a)
    assert turn(coordinator, a, 0.2, exhausted=True).ending is None  # it did not know the news
    assert turn(coordinator, a, 0.3, exhausted=True).ending == "exhausted"
    coordinator, a = state(patience=2), WorkerState(A, "c")
    for number, value in enumerate((2.0, 1.0, 3.0, 1.0)):
        turn(coordinator, a, 0.0, proposals=wish(number), wanted=1)
        finish(a, value)
    assert turn(coordinator, a, 0.0).ending == "converged"


def test_nothing_is_granted_until_the_fleet_has_gathered() -> None:
    coordinator, a, b = state(gather=2, gather_s=60.0), WorkerState(A, "c"), WorkerState(B, "c")
    assert turn(coordinator, a, 0.0, proposals=wish(1), wanted=1).waiting
    assert not turn(coordinator, b, 0.0, proposals=wish(2), wanted=1).waiting
    assert len(turn(coordinator, a, 0.1, proposals=wish(1), wanted=1).grants) == 1


def test_slow_workers_leave_the_last_plans_to_fast_ones() -> None:
    coordinator = state(budget=2)
    fast = [
        WorkRequest(holder=Holder(worker=f"f{i}", incarnation="1"), serial=1, term=0, context="c", speed=1.0)
        for i in range(4)
    ]
    for ask in fast:
        coordinator.handle(ask, 0.0)
    slow = WorkRequest(
        holder=A, serial=1, term=0, context="c", speed=0.1, wanted=1, proposals=((numbered(1), Purpose.EXPLORE),)
    )
    assert coordinator.handle(slow, 0.0)[0].grants == ()


def test_a_lost_state_takes_results_back_by_their_leases() -> None:
    coordinator, a = state(), WorkerState(A, "c")
    for number in range(3):
        turn(coordinator, a, 0.0, proposals=wish(number), wanted=1)
        finish(a)
        turn(coordinator, a, 0.0)
    turn(coordinator, a, 0.0, proposals=wish(9), wanted=1)
    fresh = CoordinatorState(rules(), CoordinatorSnapshot(), term=2, epoch="f" * 32, now=1.0)
    turn(fresh, a, 1.0)
    turn(fresh, a, 1.1)
    assert fresh.book.settled == 3
    assert {row.plan for row in fresh.rows.values()} == {numbered(0), numbered(1), numbered(2)}
    finish(a)
    turn(fresh, a, 1.2)
    assert fresh.book.settled == 4
    assert len(turn(fresh, a, 1.3, proposals=wish(9, 10), wanted=2).grants) == 1


def test_what_a_lost_state_had_granted_beyond_the_budget_is_kept_as_an_extra() -> None:
    coordinator, a, b = state(), WorkerState(A, "c"), WorkerState(B, "c")
    turn(coordinator, a, 0.0, proposals=wish(0, 1), wanted=2)
    fresh = CoordinatorState(rules(budget=1), CoordinatorSnapshot(), term=2, epoch="f" * 32, now=1.0)
    turn(fresh, b, 1.0, proposals=wish(0), wanted=1)
    finish(a)  # what b has been given since
    finish(a)  # there is no room for it
    turn(fresh, a, 1.1)
    turn(fresh, a, 1.2)
    assert (fresh.book.settled, fresh.tally.extra, fresh.tally.unknown) == (0, 2, 2)
    fresh.book.validate()
    finish(b)
    assert turn(fresh, b, 1.3).ending == "budget"
    assert fresh.rows[numbered(0).key, "c"].moments["x"].n == 2
    assert fresh.rows[numbered(1).key, "c"].moments["x"].n == 1


@pytest.fixture(params=["memory", "sqlite"])
def journal(request: pytest.FixtureRequest, tmp_path: Path):
    made: Journal = MemoryJournal() if request.param == "memory" else SqliteJournal(tmp_path / "state.db")
    yield made
    made.close()


def test_what_is_committed_comes_back_and_an_overtaken_term_cannot_write(journal: Journal) -> None:
    term, epoch, kept = journal.begin()
    coordinator, a = CoordinatorState(rules(), kept, term=term, epoch=epoch, now=0.0), WorkerState(A, "c")
    for number in range(4):
        reply, changes = coordinator.handle(a.question(proposals=wish(number), wanted=1), 0.0)  # type: ignore[arg-type]
        a.hear(reply)
        journal.commit(term, [changes])
        if number < 3:
            finish(a, 0.1 * number)
    journal.commit(term, [coordinator.extend(5)])
    later, same, again = journal.begin()
    revived = CoordinatorState(rules(), again, term=later, epoch=same, now=9.0)
    assert (later > term, same) == (True, epoch)
    assert (revived.log, revived.rows, revived.book.budget) == (coordinator.log, coordinator.rows, 15)
    assert revived.book.granted == 1
    assert revived.tally == coordinator.tally
    with pytest.raises(FleetError, match="overtaken"):
        journal.commit(term, [coordinator.stop()])


def test_a_file_that_is_no_state_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(b"not a database, but long enough to be looked at" * 40)
    with pytest.raises(StoreCorrupt, match="cannot be read"):
        SqliteJournal(tmp_path / "state.db")


def check(simulation: Simulation) -> None:
    """Counts are exact, nothing acknowledged is lost, and rows are the moments of the results that were kept."""
    coordinator = simulation.run()
    budget = simulation.rules.budget
    assert coordinator.book.settled == len(coordinator.log) == budget
    _, _, kept = simulation.journal.begin()
    keys = [(k.lease_id, k.attempt) for k in kept.results]
    assert len(set(keys)) == len(keys)
    assert simulation.acknowledged.keys() <= set(keys)
    assert sum(lease.state is LeaseState.SETTLED for lease in kept.leases) == budget
    assert sorted(k.position for k in kept.results if k.position is not None) == list(range(budget))
    made = {(lease, attempt, outcome) for lease, attempt, outcome in map(hashable, simulation.evaluated.outcomes)}
    assert {hashable((k.lease_id, k.attempt, k.outcome)) for k in kept.results if k.attempt} <= made
    values: dict[tuple[str, str], list[float]] = {}
    for item in kept.results:
        if isinstance(item.outcome, Measurement):
            for metric, samples in item.outcome.samples.items():
                values.setdefault((item.outcome.plan.key, metric), []).extend(samples)
    found = {(row.plan.key, metric): m for row in kept.rows for metric, m in row.moments.items()}
    assert found.keys() == values.keys()
    for key, moments in found.items():
        assert close(moments, welford(values[key]))


def hashable(item: tuple[str, int, object]) -> tuple[str, int, str]:
    return item[0], item[1], repr(item[2])


def welford(values: list[float]) -> Moments:
    mean = m2 = 0.0
    for n, value in enumerate(values, start=1):
        delta = value - mean
        mean += delta / n
        m2 += delta * (value - mean)
    low, high = min(values), max(values)
    return Moments(n=len(values), mean=min(max(mean, low), high), m2=max(m2, 0.0), min=low, max=high)


def close(a: Moments, b: Moments) -> bool:
    same = (a.n, a.min, a.max) == (b.n, b.min, b.max)
    return same and abs(a.mean - b.mean) <= 1e-9 * abs(b.mean) and abs(a.m2 - b.m2) <= 1e-9 * max(1.0, b.m2)


def test_random_schedules_of_loss_and_death_leave_exact_counts() -> None:
    first = int(os.environ.get("MODEL_OPT_SEED", "0"))
    print(f"seeds {first} to {first + 99}")
    for seed in range(first, first + 100):
        check(Simulation(seed))


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_ten_thousand_schedules() -> None:
    for seed in range(10_000):
        check(Simulation(seed))


def test_a_schedule_on_disk(tmp_path: Path) -> None:
    for seed in itertools.chain(range(2)):
        journal = SqliteJournal(tmp_path / f"{seed}.db")
        check(Simulation(seed, journal=journal))
        journal.close()
