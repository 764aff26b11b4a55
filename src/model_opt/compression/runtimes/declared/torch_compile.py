"""`torch.compile`, compiled anew in every process; on a GPU with CUDA graphs."""

from typing import TYPE_CHECKING

from model_opt.compression.runtimes.runtime import Runtime, always
from model_opt.compression.technique import Machine, Material, Technique

if TYPE_CHECKING:
    from torch import nn


def _make(model: "nn.Module", precision: str, material: Material) -> "nn.Module":
    from model_opt.compression.runtimes.aot_inductor import to_compiled

    return to_compiled(model, material.machine)


def _compiles(machine: Machine) -> bool:
    return machine.compiler


TORCH_COMPILE = Runtime(
    name="torch_compile",
    make=_make,
    technique=Technique.TORCH_COMPILE,
    devices=("cpu", "cuda"),
    needs=_compiles,
    precisions=dict.fromkeys(("fp32", "bf16", "int8_torchao", "int4", "fp8"), always),
    compiles=True,
    recompiles=True,
    weight=0.3,
    seconds={"": (30.0, 0.5, 10)},
)
