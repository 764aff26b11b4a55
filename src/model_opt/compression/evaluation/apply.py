"""Applies a plan to a copy of the user's model, technique after technique, in the order in which they compose."""

import copy
from dataclasses import dataclass

import torch
from torch import nn

from model_opt.compression.evaluation.idle_options import blame, idle_of, refuse_known
from model_opt.compression.inputs import answers, shapes
from model_opt.compression.runtimes.runtime_module import RuntimeModule, WithOriginal
from model_opt.compression.stages import stages
from model_opt.compression.technique import HANDLERS, ORDER, Handler, Material
from model_opt.errors import MeasurementFailed, ModelOptError, TechniqueError, ran_out_of_memory
from model_opt.search.plan import Choice, Plan

STRUCTURES_KEPT = 3


@dataclass(frozen=True, kw_only=True)
class Step:
    """One technique as it will be applied: to `stage`, or to the whole model where that is None."""

    handler: Handler
    option: str
    stage: str | None


def steps(plan: Plan, model: nn.Module) -> list[Step]:
    """What `plan` does to `model`, in order. A stage's own choice replaces the whole model's for that stage."""
    found: list[Step] = []
    for name in ORDER:
        whole = plan.option(name)
        own = {c.decision.partition("/")[2]: c.option for c in plan.choices if c.decision.startswith(name + "/")}
        if whole is None and not own:
            continue
        handler = HANDLERS[name]
        if not own:
            found.append(Step(handler=handler, option=str(whole), stage=None))
            continue
        for stage in stages(model):
            option = own.get(stage, whole or handler.leave_alone)
            if option != handler.leave_alone:
                found.append(Step(handler=handler, option=option, stage=stage))
    return found


def apply_plan(plan: Plan, material: Material) -> nn.Module:
    """The model that `plan` makes of a copy of the teacher, in eval mode; the teacher is not touched.

    Structures (what comes before precision and runtime) are kept for the next plans that share them. Raises
    `TechniqueError` where the plan cannot be applied, `MeasurementFailed` where the outcome gives wrong outputs. What
    failed once for certain fails at once in the plans that follow.
    """
    refuse_known(plan, material)
    pending = [step for step in steps(plan, material.teacher) if not _idle_here(step, plan, material)]
    structural = [step for step in pending if step.handler.decision not in ("precision", "runtime")]
    for step in pending:
        if step.handler.check is not None:
            with blame(step.handler, plan, material, alone=step.option):
                step.handler.check(step.option, material)
    resolved = _resolved(pending)
    model = _structure(structural, resolved, plan, material)
    material.findings.structure = (model, tuple((s.handler.decision, s.option, s.stage) for s in structural))
    for step in pending[len(structural) :]:
        with blame(step.handler, plan, material):
            model = _apply(step, model, resolved, material, last=True)
    _check(model, material)
    if material.fallback and isinstance(model, RuntimeModule):
        return WithOriginal(model, material.original or material.teacher)
    return model


def _idle_here(step: Step, plan: Plan, material: Material) -> bool:
    """Whether a step would change nothing in a stage that only has it from the whole model."""
    where = f"{step.handler.decision}/{step.stage}"
    if step.stage is None or plan.option(where) is not None:
        return False
    return (where, step.option) in idle_of(step.handler, material)


def _resolved(pending: list[Step]) -> Plan:
    """The plan that names each step of `pending` and nothing else: what handlers are told."""
    return Plan(
        tuple(
            Choice(
                decision=step.handler.decision + (f"/{step.stage}" if step.stage else ""),
                option=step.option,
                version=step.handler.version,
            )
            for step in pending
        )
    )


def _structure(pending: list[Step], resolved: Plan, plan: Plan, material: Material) -> nn.Module:
    """The model after `pending`, a copy that the caller may change; starts from the longest part already made.

    Parts end where a decision ends, since a technique that was applied to several stages recovers after the last.
    """
    kept = material.findings.structures
    keys = [(step.handler.decision, step.option, step.stage) for step in pending]
    ends = [n for n in range(len(pending), 0, -1) if n == len(pending) or keys[n][0] != keys[n - 1][0]]
    done = next((n for n in ends if tuple(keys[:n]) in kept), 0)
    model = copy.deepcopy(kept[tuple(keys[:done])] if done else material.teacher).eval()
    for position in range(done, len(pending)):
        with blame(pending[position].handler, plan, material):
            model = _apply(pending[position], model, resolved, material, last=position + 1 in ends)
        if position + 1 in ends:
            kept[tuple(keys[: position + 1])] = copy.deepcopy(model)
    while len(kept) > STRUCTURES_KEPT:
        kept.popitem(last=False)
    return model


def _apply(step: Step, model: nn.Module, plan: Plan, material: Material, *, last: bool) -> nn.Module:
    """`model` after `step`, which may be the `last` of its decision's."""
    where = f"{step.handler.decision}={step.option}" + (f" on {step.stage}" if step.stage else "")
    try:
        made = step.handler.apply(model, step.option, step.stage, plan, material).eval()
        if last and step.handler.after_last is not None:
            step.handler.after_last(made, material)
        return made
    except ModelOptError:
        raise
    except Exception as error:
        if ran_out_of_memory(error):
            raise
        raise TechniqueError(f"{where}: {type(error).__name__}: {error}") from error


def _check(model: nn.Module, material: Material) -> None:
    """The outcome must take the example and give finite outputs of the shapes that the teacher gives."""
    expected = material.findings.answers
    if expected is None:
        expected = material.findings.answers = answers(material.teacher, material.example)
    made = answers(model, material.example)
    if shapes(tuple(made)) != shapes(tuple(expected)):
        raise MeasurementFailed(f"outputs have shapes {shapes(tuple(made))}, not {shapes(tuple(expected))}")
    if not all(bool(torch.isfinite(b[torch.isfinite(a)]).all()) for a, b in zip(expected, made, strict=True)):
        raise MeasurementFailed("outputs are not finite")
