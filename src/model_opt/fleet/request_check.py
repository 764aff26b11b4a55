"""Whether a worker's message is what it claims to be: looked at before it changes anything, so that it changes nothing
where it is not."""

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from model_opt.errors import FleetError
from model_opt.fleet.leases import Holder
from model_opt.fleet.messages import LeaseResult, WorkRequest
from model_opt.search.evaluator import Failure, Measurement, Purpose, Reason
from model_opt.search.plan import Choice, Plan
from model_opt.search.trial import Trial

MOST = 1 << 53
"""No count is larger."""
_PURPOSES = frozenset(Purpose)


def check_request(ask: WorkRequest) -> None:
    """Raises `FleetError`, with the field, for a message that no worker of this version sends."""
    if not isinstance(ask, WorkRequest):
        raise FleetError(f"a worker sent a {type(ask).__name__} in the place of a request")
    wrong = next(_wrong(ask), None)
    if wrong is not None:
        raise FleetError(
            f"a message of worker {ask.holder!r:.80} cannot be used: {wrong}. Is its model_opt of another version?"
        )


def check_heartbeat(holder: Holder, held: Collection[str]) -> None:
    """The same for a heartbeat."""
    if not (_is_holder(holder) and _are_texts(held)):
        raise FleetError(f"a heartbeat of worker {holder!r:.80} cannot be used")


def _wrong(ask: WorkRequest) -> Iterator[str]:
    """The fields that are wrong, with what they hold."""
    if not _is_holder(ask.holder):
        yield f"holder is {ask.holder!r:.80}"
    for name in ("serial", "term", "wanted", "cursor", "seen"):
        if not _is_count(getattr(ask, name)):
            yield f"{name} is {getattr(ask, name)!r:.80}"
    if type(ask.context) is not str:
        yield f"context is {ask.context!r:.80}"
    if not _is_length(ask.speed):
        yield f"speed is {ask.speed!r:.80}"
    for name in ("exhausted", "late", "leaving"):
        if type(getattr(ask, name)) is not bool:
            yield f"{name} is {getattr(ask, name)!r:.80}"
    for name in ("held", "returned"):
        if not _are_texts(getattr(ask, name)):
            yield f"{name} is {getattr(ask, name)!r:.80}"
    if type(ask.proposals) is not tuple or not all(map(_is_proposal, ask.proposals)):
        yield f"proposals are {ask.proposals!r:.200}"
    if type(ask.results) is not tuple or not all(map(_is_result, ask.results)):
        yield f"results are {ask.results!r:.200}"


def _is_holder(value: Any) -> bool:
    return isinstance(value, Holder) and type(value.worker) is str and type(value.incarnation) is str


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < MOST


def _is_length(value: Any) -> bool:
    """Whether it is a number of seconds, or of something a second."""
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


def _are_texts(value: Any) -> bool:
    return isinstance(value, frozenset) and all(type(one) is str for one in value)


def _is_plan(value: Any) -> bool:
    return (
        type(value) is Plan
        and type(value.choices) is tuple
        and all(
            type(c) is Choice and type(c.decision) is str and type(c.option) is str and type(c.version) is int
            for c in value.choices
        )
    )


def _is_proposal(value: Any) -> bool:
    return type(value) is tuple and len(value) == 2 and _is_plan(value[0]) and type(value[1]) is Purpose


def _is_result(value: Any) -> bool:
    return (
        type(value) is LeaseResult
        and type(value.lease_id) is str
        and _is_count(value.attempt)
        and value.position is None
        and type(value.trial) is Trial
        and _is_trial(value.trial)
    )


def _is_trial(value: Trial) -> bool:
    """Of the outcome only what `search.checked` does not look at."""
    outcome = value.outcome
    known = type(outcome) is Measurement or (
        type(outcome) is Failure
        and type(outcome.reason) is Reason
        and isinstance(outcome.blamed, frozenset)
        and all(_is_pair(one) for one in outcome.blamed)
    )
    return (
        known
        and _is_plan(value.plan)
        and outcome is not None
        and _is_plan(outcome.plan)
        and type(value.purpose) in (str, Purpose)
        and value.purpose in _PURPOSES
        and _is_length(value.busy_s)
        and _is_length(value.at_s)
        and type(value.context) is str
        and type(value.worker) is str
        and isinstance(value.predicted, Mapping)
        and not value.predicted
    )


def _is_pair(value: Any) -> bool:
    return type(value) is tuple and len(value) == 2 and type(value[0]) is str and type(value[1]) is str
