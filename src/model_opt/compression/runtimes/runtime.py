"""The decision "runtime": what executes the model. The result is an `nn.Module` in every case."""

import copy
from collections.abc import Callable, Mapping

from torch import nn

from model_opt.compression.runtimes.aot_inductor import CompiledModule, to_aot, to_compiled
from model_opt.compression.runtimes.checks import checked
from model_opt.compression.runtimes.onnx_runtime import to_onnxruntime
from model_opt.compression.runtimes.openvino import to_openvino
from model_opt.compression.runtimes.precision import DECISION, ONNX, PRECISIONS, RUNTIME
from model_opt.compression.runtimes.runtime_module import BF16_DB, EXACT_DB, INT8_DB
from model_opt.compression.technique import Handler, Machine, Material, Technique, register
from model_opt.compression.techniques.packed_linear import available, to_packed
from model_opt.errors import TechniqueError, UnknownName
from model_opt.search.model_signature import ModelSignature
from model_opt.search.plan import Plan

COUNTS_AS = {
    "packed": Technique.PACKED_LINEAR,
    "torch_compile": Technique.TORCH_COMPILE,
    "aot_inductor": Technique.AOT_INDUCTOR,
    "openvino": Technique.OPENVINO,
    "onnxruntime": Technique.ONNX_RUNTIME,
    "tensorrt": Technique.TENSORRT,
}

Make = Callable[[nn.Module, str, Material], nn.Module]
"""`(model, precision, material) -> module`."""

MAKE: Mapping[str, Make] = {
    "packed": lambda model, precision, material: to_packed(copy.deepcopy(model)),
    "torch_compile": lambda model, precision, material: to_compiled(model, material.machine),
    "aot_inductor": to_aot,
    "openvino": to_openvino,
    "onnxruntime": to_onnxruntime,
    "tensorrt": lambda model, precision, material: CompiledModule(model, backend="torch_tensorrt"),
}

COMPILERS = frozenset({"torch_compile", "aot_inductor", "tensorrt"})
"""Runtimes that take 15–170 s to prepare."""
GUARDED = frozenset({"torch_compile", "tensorrt"})
"""Of them, those that compile anew for whatever they were not compiled for: looking at other batches takes minutes."""


def runtimes(model: nn.Module, signature: ModelSignature, machine: Machine) -> list[str]:
    """The runtimes that are there and worth offering, without "torch"; cheap ones first."""
    if machine.device.startswith("cuda"):
        offered = {"torch_compile": machine.compiler, "tensorrt": "torch_tensorrt" in machine.packages}
        return [name for name, there in offered.items() if there]
    linears = any(type(module) is nn.Linear for module in model.modules() if _is_wide(module))
    offered = {
        "openvino": "openvino" in machine.packages,
        "onnxruntime": set(machine.packages) >= ONNX,
        "packed": linears and available(),
        "aot_inductor": machine.compiler,
        "torch_compile": machine.compiler,
    }
    return [name for name, there in offered.items() if there]


def _is_wide(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and min(module.in_features, module.out_features) >= 64


def apply(model: nn.Module, option: str, stage: str | None, plan: Plan, material: Material) -> nn.Module:
    """`model` under runtime `option`, in the plan's precision, checked against torch.

    Raises `TechniqueError` where it cannot be made, `MeasurementFailed` where its outputs are wrong.
    """
    if option not in MAKE:
        raise UnknownName("runtime", option, MAKE)
    precision = plan.option(DECISION) or "fp32"
    if precision not in PRECISIONS[option]:
        raise TechniqueError(f"{option} does not run {precision}; it runs {', '.join(sorted(PRECISIONS[option]))}")
    if option in COMPILERS:
        material.phase("compile")
    made = MAKE[option](model, precision, material)
    floor = {"fp32": EXACT_DB, "bf16": BF16_DB}.get(precision, INT8_DB)
    return checked(made, model, material, floor, f"{option} in {precision}", batches=option not in GUARDED)


HANDLER = register(
    Handler(
        decision=RUNTIME,
        leave_alone="torch",
        technique=COUNTS_AS.__getitem__,
        options=runtimes,
        apply=apply,
    )
)
