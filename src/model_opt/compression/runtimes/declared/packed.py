"""Linear layers with weights packed once for oneDNN, in torch."""

import copy
from typing import TYPE_CHECKING

from model_opt.compression.runtimes.runtime import Runtime, always
from model_opt.compression.technique import Machine, Material, Technique

if TYPE_CHECKING:
    from torch import nn

LEAST_WIDTH = 64


def _make(model: "nn.Module", precision: str, material: Material) -> "nn.Module":
    from model_opt.compression.techniques.packed_linear import to_packed

    return to_packed(copy.deepcopy(model))


def _available(machine: Machine) -> bool:
    from model_opt.compression.techniques.packed_linear import available

    return available()


def _has_wide_linears(model: "nn.Module") -> bool:
    from torch import nn

    linears = (module for module in model.modules() if type(module) is nn.Linear)
    return any(min(linear.in_features, linear.out_features) >= LEAST_WIDTH for linear in linears)


PACKED = Runtime(
    name="packed",
    make=_make,
    technique=Technique.PACKED_LINEAR,
    precisions={"fp32": always},
    needs=_available,
    suits=_has_wide_linears,
)
