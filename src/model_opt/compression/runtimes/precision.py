"""The decision "precision": fp32, bf16, int8 (static, dynamic, torchao), int4, fp8, where torch itself runs the model.

A runtime that quantises by itself (OpenVINO, ONNX Runtime, AOTInductor) gets the float model, and reads the precision
from the plan.
"""

import copy
import io
from collections.abc import Callable, Mapping
from typing import Any, cast

import cloudpickle
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from model_opt.compression.inputs import call
from model_opt.compression.quiet import quiet
from model_opt.compression.runtimes.checks import checked
from model_opt.compression.runtimes.declared import RUNTIMES
from model_opt.compression.runtimes.no_gradient import no_gradient
from model_opt.compression.runtimes.runtime_module import BF16_DB, INT8_DB
from model_opt.compression.runtimes.size import size_bytes
from model_opt.compression.runtimes.static_int8 import (
    FIRST_ENGINE,
    quantised_engine,
    required_engine,
    to_static_int8,
)
from model_opt.compression.technique import Handler, Machine, Material, Technique, register
from model_opt.compression.techniques.attention import leave_fast_path
from model_opt.compression.widen import is_widened
from model_opt.errors import MissingDependency, TechniqueDidNothing, TechniqueError, UnknownName
from model_opt.search.model_signature import ModelSignature
from model_opt.search.plan import Plan
from model_opt.search.space import Forbid

DECISION, RUNTIME = "precision", "runtime"

COUNTS_AS = {
    "bf16": Technique.BF16,
    "int8_static": Technique.INT8,
    "int8_dynamic": Technique.INT8,
    "int8_torchao": Technique.INT8,
    "int4": Technique.INT4,
    "fp8": Technique.FP8,
}


LEAST_SHARE = 0.04
"""Dynamic int8 takes three quarters of the linear layers' bytes: below this share of the model's it shrinks nothing."""


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
    static = [runtime for runtime in RUNTIMES.values() if runtime.quantises_itself and runtime.is_there(machine)]
    static += [RUNTIMES["torch"]] if convolutions or linears else []
    offered = {
        "bf16": True,
        "int8_static": any("int8_static" in runtime.runs(machine) for runtime in static),
        "int8_dynamic": _linear_share(model) >= LEAST_SHARE and "int8_dynamic" in RUNTIMES["torch"].runs(machine),
    }
    return [name for name, there in offered.items() if there]


def _linear_share(model: nn.Module) -> float:
    """The share of the model's parameters that linear layers have."""
    linear = sum(module.weight.numel() for module in model.modules() if type(module) is nn.Linear)
    return linear / max(1, sum(parameter.numel() for parameter in model.parameters()))


def forbidden(machine: Machine) -> tuple[Forbid, ...]:
    """The illegal pairs of precision and runtime; of them, a space takes those whose options it has."""
    rules = []
    for name, runtime in RUNTIMES.items():
        illegal = sorted({"fp32", *COUNTS_AS} - runtime.runs(machine))
        if illegal:
            reason = f"{name} does not run {' or '.join(illegal)} here"
            rules.append(Forbid({DECISION: illegal, RUNTIME: [name]}, reason))
    return tuple(rules)


def apply(model: nn.Module, option: str, stage: str | None, plan: Plan, material: Material) -> nn.Module:
    """`model` in precision `option`, or as it is where the plan's runtime does that itself."""
    runtime = RUNTIMES.get(plan.option(RUNTIME) or "torch")
    if runtime is not None and runtime.quantises_itself:
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


def in_bf16(model: nn.Module) -> nn.Module:
    """`model` with weights in bf16, which still takes and returns what it did."""
    return model.to(torch.bfloat16) if is_widened(model) else Bf16Module(model)


def _leave(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def to_bf16(model: nn.Module, material: Material) -> nn.Module:
    """`model` in bf16; raises `TechniqueError` where it cannot run so."""
    made = in_bf16(model).eval()
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
        with torch.no_grad():
            output = self.model(*args, **kwargs)
        return no_gradient("torch in int8", output, (args, kwargs))

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
        model = model if config.startswith("Int8") else in_bf16(model)
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
