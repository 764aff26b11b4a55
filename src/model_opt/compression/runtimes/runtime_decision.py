"""The decision "runtime": what executes the model. The result is an `nn.Module` in every case."""

from torch import nn

from model_opt.compression.runtimes.checks import checked
from model_opt.compression.runtimes.declared import RUNTIMES
from model_opt.compression.runtimes.precision import DECISION, RUNTIME
from model_opt.compression.runtimes.runtime_module import BF16_DB, EXACT_DB, INT8_DB
from model_opt.compression.technique import Handler, Machine, Material, Technique, register
from model_opt.errors import TechniqueError, UnknownName
from model_opt.search.model_signature import ModelSignature
from model_opt.search.plan import Plan

TORCH = "torch"


def runtimes(model: nn.Module, signature: ModelSignature, machine: Machine) -> list[str]:
    """The runtimes that are there and have something to do for `model`, without "torch"; cheap ones first."""
    there = (runtime for runtime in RUNTIMES.values() if runtime.name != TORCH and runtime.is_there(machine))
    return [runtime.name for runtime in there if runtime.suits(model)]


def apply(model: nn.Module, option: str, stage: str | None, plan: Plan, material: Material) -> nn.Module:
    """`model` under runtime `option`, in the plan's precision, checked against torch.

    Raises `TechniqueError` where it cannot be made, `MeasurementFailed` where its outputs are wrong.
    """
    runtime = RUNTIMES.get(option)
    if runtime is None or option == TORCH:
        raise UnknownName("runtime", option, RUNTIMES.keys() - {TORCH})
    precision = plan.option(DECISION) or "fp32"
    if precision not in runtime.precisions:
        raise TechniqueError(f"{option} does not run {precision}; it runs {', '.join(sorted(runtime.precisions))}")
    if runtime.compiles:
        material.phase("compile")
    made = runtime.make(model, precision, material)
    floor = {"fp32": EXACT_DB, "bf16": BF16_DB}.get(precision, INT8_DB)
    return checked(made, model, material, floor, f"{option} in {precision}", batches=not runtime.recompiles)


def _counts_as(option: str) -> Technique:
    return RUNTIMES[option].technique


HANDLER = register(Handler(decision=RUNTIME, leave_alone=TORCH, technique=_counts_as, options=runtimes, apply=apply))
