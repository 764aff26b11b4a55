"""What an evaluator hands back, checked once where it comes in: plain values, or a failure that says what is none."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from model_opt.search.evaluator import Failure, Measurement, Outcome, Reason
from model_opt.search.is_number import is_number
from model_opt.search.plan import Plan

LARGEST = 1e150
"""The squares of samples have to be finite."""
MOST_SAMPLES = 100_000
"""Of one metric in one measurement."""


def checked(outcome: Outcome, plan: Plan) -> Outcome:
    """`outcome` of `plan` in Python's own values, which can be written and added up; where it is none, is another
    plan's, or a sample is no finite number, the failure that says so."""
    if not isinstance(outcome, Measurement | Failure) or outcome.plan != plan:
        got = f"for {outcome.plan}" if isinstance(outcome, Measurement | Failure) else f"{outcome!r:.80}"
        return Failure(plan=plan, reason=Reason.WRONG_OUTPUT, message=f"the evaluator answered {got}, asked for {plan}")
    seconds = {str(name): float(value) for name, value in _pairs(outcome.seconds).items() if is_number(value)}
    if isinstance(outcome, Failure):
        return replace(outcome, message=str(outcome.message), seconds=seconds)
    samples: dict[str, tuple[float, ...]] = {}
    for name, values in _pairs(outcome.samples).items():
        wrong = _what_is_wrong(values)
        if wrong:
            return Failure(
                plan=outcome.plan, reason=Reason.WRONG_OUTPUT, message=f"{str(name)[:80]} {wrong}", seconds=seconds
            )
        samples[str(name)] = tuple(map(float, values))
    return Measurement(
        plan=outcome.plan,
        samples=samples,
        seconds=seconds,
        partial=bool(outcome.partial),
        disturbed=frozenset(_texts(outcome.disturbed)),
        notes=tuple(_texts(outcome.notes)),
    )


def _texts(given: object) -> Iterable[str]:
    """The texts of `given`, whatever the evaluator put in the place of several."""
    return map(str, given) if isinstance(given, Iterable) and not isinstance(given, str | bytes) else ()


def _pairs(given: object) -> Mapping[object, Any]:
    """`given`, whatever the evaluator put in the place of a mapping."""
    return given if isinstance(given, Mapping) else {}


def _what_is_wrong(values: object) -> str:
    """Why `values` are no samples; empty where they are."""
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        return f"has {values!r:.80} in the place of samples"
    listed = list(values)
    if len(listed) > MOST_SAMPLES:
        return f"has {len(listed)} samples; {MOST_SAMPLES} are the most"
    wrong = [value for value in listed if not is_number(value) or abs(value) > LARGEST]
    return f"is {wrong[0]!r:.80}, which is no number to add up" if wrong else ""
