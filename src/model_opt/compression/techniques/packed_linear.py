"""Linear layers with weights packed once for oneDNN: float32, exact, and twice MKL's speed on some processors.

`torch.ops.mkldnn` is private to torch, so everything here is checked when it is applied, and whether it gains is for
the measurement to say.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from model_opt.compression.techniques.attention import leave_fast_path
from model_opt.errors import TechniqueDidNothing, TechniqueError

ROWS = 1024
"""The number of rows that the packing is chosen for; other numbers run as well."""


class PackedLinear(nn.Module):
    """An `nn.Linear` whose weight, `[out, in]`, is also held packed. The packed copy is not saved or copied."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = nn.Parameter(linear.weight.detach(), requires_grad=False)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach(), requires_grad=False)
        self._packed: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x·Wᵀ + b, `[…, in]` to `[…, out]`, without gradients."""
        if self._packed is None:
            self._packed = _operators()._reorder_linear_weight(self.weight.detach(), ROWS)
        with torch.no_grad():
            return cast(Tensor, _operators()._linear_pointwise(x, self._packed, self.bias, "none", [], ""))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": None}


def to_packed(model: nn.Module) -> nn.Module:
    """`model` with every float32 `nn.Linear` packed, in place; raises `TechniqueError` where torch lacks oneDNN."""
    if not available():
        raise TechniqueError("this build of torch has no packed linear layers (oneDNN)")
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear and child.weight.dtype == torch.float32
    ]
    for parent, name, child in found:
        setattr(parent, name, PackedLinear(child))
    if not found:
        raise TechniqueDidNothing("packed linears: the model has no float32 linear layer")
    return leave_fast_path(model)


def available() -> bool:
    """Whether this build of torch has oneDNN and its private linear operators."""
    return bool(torch._C._has_mkldnn) and hasattr(_operators(), "_linear_pointwise")


def _operators() -> Any:
    return torch.ops.mkldnn
