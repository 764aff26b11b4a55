"""torch itself: a model that no other runtime runs."""

from typing import TYPE_CHECKING

from model_opt.compression.runtimes.runtime import Runtime, always
from model_opt.compression.technique import Machine, Material, Technique

if TYPE_CHECKING:
    from torch import nn


def _as_it_is(model: "nn.Module", precision: str, material: Material) -> "nn.Module":
    return model


def _has_engine(machine: Machine) -> bool:
    from model_opt.compression.runtimes.static_int8 import engine_here

    return engine_here() is not None


def _has_gpu(machine: Machine) -> bool:
    return machine.device != "cpu"


TORCH = Runtime(
    name="torch",
    make=_as_it_is,
    technique=Technique.CUSTOM,  # never said: it is what every plan has that names no other
    devices=("cpu", "cuda"),
    precisions={
        "fp32": always,
        "bf16": always,
        "int8_static": _has_engine,
        "int8_dynamic": _has_engine,
        "int8_torchao": _has_gpu,
        "int4": always,
        "fp8": always,
    },
)
