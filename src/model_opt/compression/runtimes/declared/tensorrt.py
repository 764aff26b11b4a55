"""TensorRT, by Torch-TensorRT's backend of `torch.compile`."""

from typing import TYPE_CHECKING

from model_opt.compression.runtimes.runtime import Runtime, always
from model_opt.compression.technique import Material, Technique

if TYPE_CHECKING:
    from torch import nn


def _make(model: "nn.Module", precision: str, material: Material) -> "nn.Module":
    from model_opt.compression.runtimes.aot_inductor import CompiledModule

    return CompiledModule(model, backend="torch_tensorrt")


TENSORRT = Runtime(
    name="tensorrt",
    make=_make,
    technique=Technique.TENSORRT,
    devices=("cuda",),
    packages={"torch_tensorrt": "TensorRT, on NVIDIA's GPUs"},
    timed=("torch_tensorrt",),
    precisions={"fp32": always, "bf16": always},
    quantises_itself=True,
    compiles=True,
    recompiles=True,
    weight=0.3,
    seconds={"": (30.0, 1.0, 10)},
)
