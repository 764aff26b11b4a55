"""When a search is given up that no worker can begin."""

from model_opt.fleet.bad_starts import ALONE_TRIES, TRIES, BadStarts


def failing(times: dict[str, int]) -> BadStarts:
    starts = BadStarts()
    for worker, tries in times.items():
        starts.begun(worker)
        for number in range(tries):
            starts.failed(worker, f"try {number}")
    return starts


def test_everybody_has_to_fail_more_than_once_and_in_a_row() -> None:
    assert not failing({}).all_failed([])
    assert not failing({"a": 1}).all_failed(["a"])
    assert failing({"a": TRIES}).all_failed(["a"])
    assert not failing({"a": TRIES, "b": TRIES - 1}).all_failed(["a", "b"])
    starts = failing({"a": TRIES, "b": TRIES})
    assert starts.all_failed(["a", "b"]) and starts.reasons == {"a": "try 1", "b": "try 1"}
    starts.worked("b")
    assert not starts.all_failed(["a", "b"]) and starts.reasons == {"a": "try 1"}


def test_one_that_is_loading_is_waited_for_and_one_without_a_place_only_for_a_while() -> None:
    assert not failing({"a": 99, "loading": 0}).all_failed(["a", "loading"])
    assert not failing({"a": ALONE_TRIES - 1}).all_failed(["a", "has no place"])
    assert failing({"a": ALONE_TRIES}).all_failed(["a", "has no place"])
    assert not failing({"gone": 99}).all_failed(["new"])


def test_an_extension_forgets_what_failed() -> None:
    starts = failing({"a": TRIES})
    starts.forget()
    assert not starts.all_failed(["a"]) and not starts.reasons
