"""OpenVINO: float32, bf16, and int8 by NNCF."""

from typing import TYPE_CHECKING

from model_opt.compression.runtimes.runtime import Runtime, always
from model_opt.compression.technique import Machine, Material, Technique

if TYPE_CHECKING:
    from torch import nn


def _make(model: "nn.Module", precision: str, material: Material) -> "nn.Module":
    from model_opt.compression.runtimes.openvino import to_openvino

    return to_openvino(model, precision, material)


def _quantises(machine: Machine) -> bool:
    return {"openvino", "nncf"} <= set(machine.packages)


OPENVINO = Runtime(
    name="openvino",
    make=_make,
    technique=Technique.OPENVINO,
    packages={"openvino": "the OpenVINO runtime, often the fastest on a CPU"},
    more={"nncf": "int8 for OpenVINO"},
    timed=("openvino", "nncf"),
    precisions={"fp32": always, "bf16": always, "int8_static": _quantises},
    quantises_itself=True,
    weight=4.0,
    seconds={"": (2.0, 0.1, 10), "int8_static": (3.0, 0.4, 60)},
    once_s={"": 3.5, "int8_static": 4.0},
)
