import pickle
from collections import Counter

import pytest

from model_opt.errors import InvalidInput
from model_opt.search import Choice, Plan, owned_by, owner
from model_opt.search.ownership import GROUP, group_of, shares_of

KEYS = [Plan().key[:-6] + f"{i:06x}" for i in range(4000)]


def test_every_plan_has_one_owner_whatever_the_order_of_the_roster() -> None:
    roster = {"a": 1.0, "b": 2.0, "c": 1.0}
    backwards = dict(reversed(roster.items()))
    assert [owner(key, roster) for key in KEYS] == [owner(key, backwards) for key in KEYS]


def test_shares_follow_the_weights() -> None:
    owners = [owner(key, {"a": 1.0, "b": 2.0, "c": 1.0}) for key in KEYS]
    for worker, share in (("a", 0.25), ("b", 0.5), ("c", 0.25)):
        assert abs(owners.count(worker) / len(KEYS) - share) < 0.03


@pytest.mark.parametrize("change", [{"d": 1.0}, {"c": 3.0}])
def test_what_joins_or_speeds_up_takes_and_nothing_else_moves(change: dict[str, float]) -> None:
    before = {"a": 1.0, "b": 1.0, "c": 1.0}
    after = before | change
    (grown,) = change
    moved = [key for key in KEYS if owner(key, before) != owner(key, after)]
    assert moved
    assert {owner(key, after) for key in moved} == {grown}


def test_what_leaves_gives_only_its_own() -> None:
    before = {"a": 1.0, "b": 1.0, "c": 1.0}
    after = {"a": 1.0, "b": 1.0}
    assert all(owner(key, before) == "c" for key in KEYS if owner(key, before) != owner(key, after))


def test_golden_owners() -> None:
    """Any change here would make workers of different versions repeat one another."""
    roster = {"worker-0": 1.0, "worker-1": 1.0, "worker-2": 2.5}
    assert [owner(key, roster)[-1] for key in KEYS[:16]] == list(GOLDEN)


def test_a_roster_that_makes_no_sense_is_refused() -> None:
    for roster in ({}, {"a": 0.0}, {"a": float("nan")}, {"a": -1.0}):
        with pytest.raises(InvalidInput):
            owner(KEYS[0], roster)
    with pytest.raises(InvalidInput, match="not in the roster"):
        owned_by("b", {"a": 1.0})


def test_a_small_fleet_is_one_group_whose_owners_are_those_of_its_roster() -> None:
    roster = {f"w{i}": 1.0 + i % 3 for i in range(GROUP)}
    (shares,) = shares_of(roster)
    assert (shares.members, shares.workers, shares.groups) == (roster, GROUP, b"")
    plans = [numbered(i) for i in range(50)]
    assert {plan: owned_by("w7", shares)(plan) for plan in plans} == {p: owner(p.key, roster) == "w7" for p in plans}


def test_in_a_large_fleet_every_plan_has_one_owner_and_shares_follow_the_weights() -> None:
    roster = {f"worker-{i}": 4.0 if i % 4 == 0 else 1.0 for i in range(300)}
    groups = shares_of(roster)
    asked = {name: owned_by(name, groups[group_of(name, len(groups))]) for name in roster}
    owners = Counter()
    for i in range(400):
        mine = [name for name, owned in asked.items() if owned(numbered(i))]
        assert len(mine) == 1
        owners[roster[mine[0]]] += 1
    assert abs(owners[4.0] / 400 - 300 / 525) < 0.1


def test_a_worker_that_joins_a_large_fleet_takes_what_it_owns_and_little_else_moves() -> None:
    before, after = ({f"worker-{i}": 1.0 for i in range(n)} for n in (300, 301))
    moved = sum(whose(before, i) != whose(after, i) for i in range(300))
    assert moved <= 0.1 * 300


def test_what_ten_thousand_workers_have_to_know_of_one_another_is_short() -> None:
    groups = shares_of({f"worker-{i}": 1.0 for i in range(10_000)})
    assert sum(len(shares.members) for shares in groups) == 10_000
    assert max(len(pickle.dumps(shares)) for shares in groups) < 2_500


def numbered(number: int) -> Plan:
    return Plan((Choice(decision="n", option=str(number)),))


def whose(roster: dict[str, float], number: int) -> str:
    groups = shares_of(roster)
    key = numbered(number).key
    at = int(owner(key, groups[0].group_weights))
    return owner(key, groups[at].members)


GOLDEN = "1210122021102202"
