import pytest

from model_opt.errors import InvalidInput
from model_opt.search import Plan, owned_by, owner

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


GOLDEN = "1210122021102202"
