"""Builds the search space of a model: every registered technique that can be used on it, on this machine."""

import itertools
from collections.abc import Collection, Mapping, Sequence

from torch import nn

from model_opt.compression.runtimes import (
    runtime_decision,  # noqa: F401  (each registers its technique)
)
from model_opt.compression.runtimes.precision import forbidden
from model_opt.compression.stages import SAME, stages, weighted_layers
from model_opt.compression.technique import HANDLERS, ORDER, Handler, Machine, Technique, handler_of
from model_opt.compression.techniques import clean, distil, low_rank, prune, token_merging  # noqa: F401
from model_opt.errors import InvalidInput, UnknownName
from model_opt.search.model_signature import ModelSignature
from model_opt.search.plan import Choice
from model_opt.search.space import Decision, Forbid, SearchSpace

STAGED_LAYERS = 10
"""Models with fewer weighted layers get no decisions per stage: the whole model's are as fine."""


def build_space(
    model: nn.Module,
    signature: ModelSignature,
    machine: Machine,
    *,
    exclude: Collection[str] = (),
    freeze: Mapping[str, str] | None = None,
    trains: bool = False,
    idle: Collection[tuple[str, str]] = (),
) -> SearchSpace:
    """The decisions for `model`, in the order of composition, with the combinations that are not allowed.

    `exclude` names techniques ("int8") or decisions ("prune") that are not to be used. `freeze` fixes decisions: their
    option is part of every plan. `trains` says that there is data to fine-tune on. `idle` are (decision, option) pairs
    that would change nothing in this model: they are not offered.
    Raises `UnknownName` for names that mean nothing here.
    """
    _check_names(exclude)
    frozen = dict(freeze or {})
    idle = set(idle) - set(frozen.items())
    decisions, rules, choices, every = [], [], [], list[Decision]()
    for name in ORDER:
        handler = HANDLERS.get(name)
        if handler is None or name in exclude:
            continue
        offered = [
            *handler.options(model, signature, machine),
            *([distil.FINETUNE] if trains and name == "distil" else []),
        ]
        options = [option for option in offered if handler.technique(option) not in exclude]
        made = _decisions(handler, options, model, idle)
        rules += _once(made, frozen)
        every += made
        for decision in made:
            if decision.name in frozen:
                choices += _frozen(decision, frozen.pop(decision.name), handler)
            elif len(decision.options) > 1:
                decisions.append(decision)
    if frozen:
        raise UnknownName("decision to freeze:", next(iter(frozen)), [d.name for d in decisions])
    if not any(choice.decision == "distil" for choice in choices):
        rules += _nothing_to_recover(every)
    rules += forbidden(machine)
    return SearchSpace(decisions, _restrict(rules, decisions, choices), choices)


def _check_names(exclude: Collection[str]) -> None:
    known = {*map(str, Technique), *ORDER}
    for name in exclude:
        if name not in known:
            raise UnknownName("technique or decision to exclude:", name, known)


def _decisions(
    handler: Handler, options: Sequence[str], model: nn.Module, idle: Collection[tuple[str, str]]
) -> list[Decision]:
    """The decision of a technique, and one for each stage in which it can do something."""
    name = handler.decision
    useful = [option for option in options if (name, option) not in idle]
    made = [Decision(name, (handler.leave_alone, *useful), handler.ordered, version=handler.version)]
    if useful and handler.per_stage and len(weighted_layers(model)) >= STAGED_LAYERS:
        for stage in stages(model):
            own = [option for option in useful if (f"{name}/{stage}", option) not in idle]
            every = (SAME, handler.leave_alone, *own) if own else (SAME,)
            made.append(Decision(f"{name}/{stage}", every, version=handler.version))
    return made


def _once(made: Sequence[Decision], frozen: Collection[str]) -> list[Forbid]:
    """Rules that leave one way to say the same: what most stages have, or one where all differ, is the whole model's.

    Where one of the decisions is frozen there may be no other way to say it.
    """
    whole, staged = made[0], [decision.name for decision in made[1:]]
    rules = [
        Forbid({whole.name: {option}, stage: {option}}, "the stage has the whole model's option")
        for stage in staged
        for option in whole.options
    ]
    if staged and not any(decision.name in frozen for decision in made):
        rules += [
            Forbid(dict.fromkeys(some, (option,)), "most stages have the same option: it should be the whole model's")
            for some in itertools.combinations(staged, len(staged) // 2 + 1)
            for option in whole.options
        ]
        every = dict.fromkeys(staged, tuple(whole.options))
        rules.append(Forbid(every, "each stage has an option of its own: one should be the whole model's"))
    return rules


def _nothing_to_recover(every: Sequence[Decision]) -> list[Forbid]:
    """The rule that there is no distillation of what still is the original."""
    at = next((i for i, decision in enumerate(every) if decision.name == "distil"), None)
    steps = () if at is None else [option for option in every[at].options[1:] if option != distil.FINETUNE]
    if not steps:
        return []
    idle: dict[str, Collection[str]] = {}
    for decision in every[:at]:
        handler, stage = handler_of(decision.name)
        if handler.decision != "clean":
            idle[decision.name] = (SAME, handler.leave_alone) if stage else (handler.leave_alone,)
    return [Forbid({"distil": steps, **idle}, "there is nothing to recover: the model is still the original")]


def _frozen(decision: Decision, option: str, handler: Handler) -> list[Choice]:
    if option not in decision.options:
        raise UnknownName(f"option of {decision.name!r}:", option, decision.options)
    if option == decision.options[0]:
        return []
    return [Choice(decision=decision.name, option=option, version=handler.version)]


def _restrict(rules: Sequence[Forbid], decisions: Sequence[Decision], frozen: Sequence[Choice]) -> list[Forbid]:
    """`rules` in terms of the options that are there; rules that cannot be broken are dropped.

    Raises `InvalidInput` where the frozen choices break a rule by themselves.
    """
    options = {decision.name: frozenset(decision.options) for decision in decisions}
    fixed = {choice.decision: choice.option for choice in frozen}
    kept = []
    for rule in rules:
        if any(name in fixed and fixed[name] not in wanted for name, wanted in rule.when.items()):
            continue
        when = {}
        for name, wanted in rule.when.items():
            if name not in fixed:
                when[name] = frozenset(wanted) & options.get(name, frozenset({_leave_alone(name)}))
        if not when:
            raise InvalidInput(f"the frozen choices do not go together: {rule.reason}")
        if all(when.values()):
            kept.append(Forbid({n: w for n, w in when.items() if n in options}, rule.reason))
    return kept


def _leave_alone(decision: str) -> str:
    """The first option of a decision that the space lacks."""
    handler, stage = handler_of(decision)
    return SAME if stage else handler.leave_alone
