"""The decision "precision": fp32, bf16, int8 (static, dynamic, torchao), int4, fp8, where torch itself runs the model.

A runtime that quantises by itself (OpenVINO, ONNX Runtime, AOTInductor) gets the float model, and reads the precision
from the plan.
"""

import copy
import io
import platform
from collections.abc import Callable, Mapping
from typing import Any, cast

import cloudpickle
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from model_opt.compression.inputs import call
from model_opt.compression.quiet import quiet
from model_opt.compression.runtimes.checks import checked
from model_opt.compression.runtimes.runtime_module import BF16_DB, INT8_DB
from model_opt.compression.runtimes.size import size_bytes
from model_opt.compression.runtimes.static_int8 import (
    FIRST_ENGINE,
    engine_here,
    quantised_engine,
    required_engine,
    to_static_int8,
)
from model_opt.compression.technique import Handler, Machine, Material, Technique, register
from model_opt.compression.techniques.attention import leave_fast_path
from model_opt.errors import MissingDependency, TechniqueDidNothing, TechniqueError, UnknownName
from model_opt.search.model_signature import ModelSignature
from model_opt.search.plan import Plan
from model_opt.search.space import Forbid

DECISION, RUNTIME = "precision", "runtime"

PRECISIONS: Mapping[str, frozenset[str]] = {
    "torch": frozenset({"fp32", "bf16", "int8_static", "int8_dynamic", "int8_torchao", "int4", "fp8"}),
    "packed": frozenset({"fp32"}),
    "torch_compile": frozenset({"fp32", "bf16", "int8_torchao", "int4", "fp8"}),
    "aot_inductor": frozenset({"fp32", "bf16", "int8_static"}),
    "openvino": frozenset({"fp32", "bf16", "int8_static"}),
    "onnxruntime": frozenset({"fp32", "int8_static"}),
    "tensorrt": frozenset({"fp32", "bf16"}),
}
"""Runtime → the precisions that it can run."""

QUANTISE_THEMSELVES = frozenset({"openvino", "onnxruntime", "aot_inductor", "tensorrt"})


COUNTS_AS = {
    "bf16": Technique.BF16,
    "int8_static": Technique.INT8,
    "int8_dynamic": Technique.INT8,
    "int8_torchao": Technique.INT8,
    "int4": Technique.INT4,
    "fp8": Technique.FP8,
}


ONNX = frozenset({"onnxruntime", "onnx", "onnxscript"})
"""The packages that ONNX Runtime needs."""

NEEDS: Mapping[tuple[str, str], Callable[[Machine], bool]] = {
    ("torch", "int8_static"): lambda machine: engine_here() is not None,
    ("torch", "int8_dynamic"): lambda machine: engine_here() is not None,
    ("torch", "int8_torchao"): lambda machine: machine.device != "cpu",
    ("openvino", "int8_static"): lambda machine: {"openvino", "nncf"} <= set(machine.packages),
    ("onnxruntime", "int8_static"): lambda machine: set(machine.packages) >= ONNX,
    ("aot_inductor", "int8_static"): lambda machine: machine.compiler and "torchao" in machine.packages and on_x86(),
}
"""(runtime, precision) → whether it can be had on a machine; no instruction set is asked for, measuring decides."""

LEAST_SHARE = 0.04
"""Dynamic int8 takes three quarters of the linear layers' bytes: below this share of the model's it shrinks nothing."""


def able(runtime: str, machine: Machine) -> frozenset[str]:
    """The precisions that `runtime` can run on `machine`."""
    return frozenset(p for p in PRECISIONS[runtime] if NEEDS.get((runtime, p), _always)(machine))


def _always(machine: Machine) -> bool:
    return True


def precisions(model: nn.Module, signature: ModelSignature, machine: Machine) -> list[str]:
    """The precisions that something can run here, without "fp32"."""
    linears = any(type(module) is nn.Linear for module in model.modules())
    if machine.device.startswith("cuda"):
        torchao = "torchao" in machine.packages and linears
        offered = {"bf16": machine.bf16, "int8_torchao": torchao, "int4": torchao and machine.bf16}
        return [
            *[name for name, there in offered.items() if there],
            *(["fp8"] if torchao and _has_fp8(machine) else []),
        ]
    convolutions = any(isinstance(module, nn.Conv2d | nn.Conv1d) for module in model.modules())
    static = [*(["torch"] if convolutions or linears else []), *QUANTISE_THEMSELVES - {"tensorrt"}]
    offered = {
        "bf16": True,
        "int8_static": any("int8_static" in able(runtime, machine) for runtime in static),
        "int8_dynamic": _linear_share(model) >= LEAST_SHARE and "int8_dynamic" in able("torch", machine),
    }
    return [name for name, there in offered.items() if there]


def _linear_share(model: nn.Module) -> float:
    """The share of the model's parameters that linear layers have."""
    linear = sum(module.weight.numel() for module in model.modules() if type(module) is nn.Linear)
    return linear / max(1, sum(parameter.numel() for parameter in model.parameters()))


def forbidden(machine: Machine) -> tuple[Forbid, ...]:
    """The illegal pairs of precision and runtime; of them, a space takes those whose options it has."""
    rules = []
    for runtime in PRECISIONS:
        illegal = sorted({"fp32", *COUNTS_AS} - able(runtime, machine))
        if illegal:
            reason = f"{runtime} does not run {' or '.join(illegal)} here"
            rules.append(Forbid({DECISION: illegal, RUNTIME: [runtime]}, reason))
    return tuple(rules)


def apply(model: nn.Module, option: str, stage: str | None, plan: Plan, material: Material) -> nn.Module:
    """`model` in precision `option`, or as it is where the plan's runtime does that itself."""
    if plan.option(RUNTIME) in QUANTISE_THEMSELVES:
        return model
    if option not in APPLY:
        raise UnknownName("precision", option, APPLY)
    before, original = size_bytes(model), copy.deepcopy(model)
    made = APPLY[option](model, material)
    if size_bytes(made) >= 0.97 * before:
        raise TechniqueDidNothing(f"{option}: the saved state did not shrink ({before} bytes)")
    if plan.option(RUNTIME) is not None:
        return made
    return checked(
        made, original, material, BF16_DB if option == "bf16" else INT8_DB, option, dynamic=option in DYNAMIC
    )


class Bf16Module(nn.Module):
    """A model in bf16 that takes and returns float32. Convolutions run channels-last."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.to(torch.bfloat16)
        self.channels_last = any(isinstance(module, nn.Conv2d) for module in model.modules())
        if self.channels_last:
            self.model.to(memory_format=torch.channels_last)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output as float32."""
        args, kwargs = pytree.tree_map_only(Tensor, self._enter, (args, kwargs))
        return pytree.tree_map_only(Tensor, _leave, self.model(*args, **kwargs))

    def _enter(self, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        if self.channels_last and tensor.dim() == 4:
            return tensor.to(torch.bfloat16, memory_format=torch.channels_last)
        return tensor.to(torch.bfloat16)


def _leave(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def to_bf16(model: nn.Module, material: Material) -> nn.Module:
    """`model` in bf16; raises `TechniqueError` where it cannot run so."""
    made = Bf16Module(model).eval()
    try:
        with torch.no_grad():
            call(made, material.example)
    except RuntimeError as error:
        raise TechniqueError(f"this model does not run in bf16: {str(error)[:200]}") from error
    return made


def to_dynamic_int8(model: nn.Module, material: Material) -> nn.Module:
    """`model` with every `nn.Linear` in int8, activations quantised as they come."""
    from torch.ao import quantization

    if not any(type(module) is nn.Linear for module in model.modules()):
        raise TechniqueDidNothing("dynamic int8: the model has no linear layer")
    engine = required_engine()
    with quantised_engine(engine), quiet():
        made: nn.Module = cast(Any, quantization).quantize_dynamic(
            leave_fast_path(model), {nn.Linear}, dtype=torch.qint8
        )
    return DynamicInt8Module(made, engine).eval()


class DynamicInt8Module(nn.Module):
    """A model with packed int8 linears. Copies are packed under the same engine: under another they round otherwise."""

    engine: str = FIRST_ENGINE

    def __init__(self, model: nn.Module, engine: str) -> None:
        """`engine` is torch's that packed the weights."""
        super().__init__()
        self.model = model
        self.engine = engine

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output."""
        return self.model(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        buffer = io.BytesIO()
        torch.save(self.model, buffer, pickle_module=cloudpickle, pickle_protocol=5)
        modules = {name: module for name, module in self._modules.items() if name != "model"}
        return {**self.__dict__, "_modules": modules, "_file": buffer.getvalue()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        file = state.pop("_file")
        cast(Any, super()).__setstate__(state)
        with quantised_engine(self.engine), quiet():
            self.model = torch.load(io.BytesIO(file), weights_only=False)


def _torchao(config: str) -> Callable[[nn.Module, Material], nn.Module]:
    """Torchao's `quantize_` with the configuration of that name."""

    def quantise(model: nn.Module, material: Material) -> nn.Module:
        try:
            from torchao import quantization
        except ImportError as error:
            raise MissingDependency("torchao", "torchao") from error
        model = model if config.startswith("Int8") else Bf16Module(model)
        with quiet():
            try:
                quantization.quantize_(model, getattr(quantization, config)())
            except Exception as error:
                raise TechniqueError(f"torchao {config}: {str(error).strip()[:200]}") from error
        return model

    return quantise


DYNAMIC = frozenset({"int8_dynamic", "int8_torchao", "fp8"})
"""Precisions whose activations are scaled by what comes in one call."""

APPLY: Mapping[str, Callable[[nn.Module, Material], nn.Module]] = {
    "bf16": to_bf16,
    "int8_static": to_static_int8,
    "int8_dynamic": to_dynamic_int8,
    "int8_torchao": _torchao("Int8DynamicActivationInt8WeightConfig"),
    "int4": _torchao("Int4WeightOnlyConfig"),
    "fp8": _torchao("Float8DynamicActivationFloat8WeightConfig"),
}


def on_x86() -> bool:
    """Whether the processor is one that PT2E's X86 quantizer is made for."""
    return platform.machine().lower() in ("x86_64", "amd64", "i686")


def _has_fp8(machine: Machine) -> bool:
    """Whether the GPU multiplies FP8 in hardware (compute capability 8.9 and newer)."""
    return torch.cuda.get_device_capability(torch.device(machine.device)) >= (8, 9)


HANDLER = register(
    Handler(
        decision=DECISION,
        leave_alone="fp32",
        technique=COUNTS_AS.__getitem__,
        options=precisions,
        apply=apply,
    )
)
