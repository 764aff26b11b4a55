"""ONNX Runtime: float32 and static int8."""

from typing import TYPE_CHECKING

from model_opt.compression.runtimes.runtime import Runtime, always
from model_opt.compression.technique import Machine, Material, Technique

if TYPE_CHECKING:
    from torch import nn

PACKAGES = {"onnxruntime": "the ONNX Runtime", "onnx": "", "onnxscript": ""}


def _make(model: "nn.Module", precision: str, material: Material) -> "nn.Module":
    from model_opt.compression.runtimes.onnx_runtime import to_onnxruntime

    return to_onnxruntime(model, precision, material)


def _quantises(machine: Machine) -> bool:
    return set(PACKAGES) <= set(machine.packages)


ONNXRUNTIME = Runtime(
    name="onnxruntime",
    make=_make,
    technique=Technique.ONNX_RUNTIME,
    packages=PACKAGES,
    timed=("onnxruntime",),
    precisions={"fp32": always, "int8_static": _quantises},
    quantises_itself=True,
    weight=2.0,
    seconds={"": (2.5, 0.2, 10), "int8_static": (1.0, 0.2, 30)},
    once_s={"": 4.0},
)
