"""AOTInductor: torch's own compiler, ahead of time; float32, bf16, and int8 by PT2E."""

import platform
from typing import TYPE_CHECKING

from model_opt.compression.runtimes.runtime import Runtime, always
from model_opt.compression.technique import Machine, Material, Technique

if TYPE_CHECKING:
    from torch import nn


def _make(model: "nn.Module", precision: str, material: Material) -> "nn.Module":
    from model_opt.compression.runtimes.aot_inductor import to_aot

    return to_aot(model, precision, material)


def _compiles(machine: Machine) -> bool:
    return machine.compiler


def _quantises(machine: Machine) -> bool:
    return machine.compiler and "torchao" in machine.packages and on_x86()


def on_x86() -> bool:
    """Whether the processor is one that PT2E's X86 quantizer is made for."""
    return platform.machine().lower() in ("x86_64", "amd64", "i686")


AOT_INDUCTOR = Runtime(
    name="aot_inductor",
    make=_make,
    technique=Technique.AOT_INDUCTOR,
    more={"torchao": "int8 and int4 of torchao, PT2E int8 for AOTInductor"},
    timed=("torchao",),
    needs=_compiles,
    precisions={"fp32": always, "bf16": always, "int8_static": _quantises},
    quantises_itself=True,
    compiles=True,
    seconds={"": (45.0, 0.5, 10), "int8_static": (15.0, 0.5, 30)},
    once_s={"": 5.0},
)
