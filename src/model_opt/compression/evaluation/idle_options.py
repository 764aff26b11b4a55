"""What a plan's failure says of other plans: what cannot be done to a model is found out once, not once a plan."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from model_opt.compression.stages import SAME, stages
from model_opt.compression.technique import HANDLERS, ORDER, Handler, Material
from model_opt.errors import CannotExport, TechniqueError
from model_opt.search.plan import Plan

_LOOKING_S = 4.0
"""What looking at a technique may take, for its libraries have to be loaded."""
_LAST = ("precision", "runtime")
_CLEAN = "clean"

IDLE_S = 10.0
"""How long it may take to find out which options would change nothing in a model."""


def refuse_known(plan: Plan, material: Material) -> None:
    """Raises `TechniqueError` where what `plan` has in it failed before, for certain."""
    for group, message in material.findings.hopeless.items():
        if all((plan.option(decision) or _left_alone(decision)) == option for decision, option in group):
            raise _blaming(TechniqueError(message), group)


def idle_options(material: Material, most_s: float) -> dict[tuple[str, str], str]:
    """(decision, option) → why it would change nothing in this model; what can be known in about `most_s` seconds.

    The clean graph is always looked at, for nearly every plan begins with it.
    """
    end, found = time.monotonic() + most_s, dict[tuple[str, str], str]()
    for name in ORDER:
        if name in HANDLERS and (name == _CLEAN or time.monotonic() + _LOOKING_S < end):
            found |= idle_of(HANDLERS[name], material)
    return found


def describe_idle(idle: Mapping[tuple[str, str], str]) -> list[str]:
    """What is left out, a line a decision: "left out: clean fused (nothing to rewrite)"."""
    lines = []
    for decision in dict.fromkeys(decision for decision, _ in idle if "/" not in decision):
        options = [option for name, option in idle if name == decision]
        lines.append(f"left out: {decision} {', '.join(options)} ({idle[decision, options[0]]})")
    return lines


def idle_of(handler: Handler, material: Material) -> Mapping[tuple[str, str], str]:
    """What `Handler.idle` says, asked once a model."""
    if handler.idle is None:
        return {}
    kept = material.findings.idle
    if handler.decision not in kept:
        kept[handler.decision] = handler.idle(material)
    return kept[handler.decision]


@contextmanager
def blame(handler: Handler, plan: Plan, material: Material, *, alone: str | None = None) -> Iterator[None]:
    """Inside, the step of `plan` that `handler` does is made: where that raises `TechniqueError`, what is to blame
    is worked out, kept, and put into the error. `alone`: the option fails whatever else is in a plan."""
    try:
        yield
    except TechniqueError as error:
        if not error.blamed:
            group = {handler.decision: alone} if alone else _to_blame(handler, plan, material, error)
            material.findings.hopeless[frozenset(group.items())] = str(error)
            _blaming(error, frozenset(group.items()))
        raise


def _to_blame(handler: Handler, plan: Plan, material: Material, error: TechniqueError) -> Mapping[str, str]:
    """The options that settle what this step was given: of its own decision and those before it.

    The clean graph is the same for all that build on it. What cannot be run, or exported, as it is cannot be once it
    was pruned or factorised either.
    """
    place = ORDER.index(handler.decision)
    before = [name for name in ORDER[:place] if name in HANDLERS and name != _CLEAN]
    if handler.decision not in _LAST:
        return _options([*before, handler.decision], plan, material)
    structure = _options([name for name in before if name not in _LAST], plan, material)
    last = _options([name for name in _LAST if name in HANDLERS], plan, material)
    if any(option != _left_alone(decision) for decision, option in structure.items()):
        return {**_options([_CLEAN], plan, material), **structure, **last}
    return {handler.decision: last[handler.decision]} if isinstance(error, CannotExport) else last


def _options(names: list[str], plan: Plan, material: Material) -> dict[str, str]:
    """What `plan` has of the decisions called `names` and of their stages, left alone or not."""
    found = dict[str, str]()
    for name in names:
        staged = [f"{name}/{stage}" for stage in stages(material.teacher)] if HANDLERS[name].per_stage else []
        found |= {each: plan.option(each) or _left_alone(each) for each in (name, *staged)}
    return found


def _left_alone(decision: str) -> str:
    name, _, stage = decision.partition("/")
    return SAME if stage else HANDLERS[name].leave_alone


def _blaming(error: TechniqueError, group: frozenset[tuple[str, str]]) -> TechniqueError:
    error.blamed = group
    return error
