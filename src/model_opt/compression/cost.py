"""What a model costs: its multiplications, its parameters, its state in bytes; and whether a technique lowered that."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from model_opt.compression.inputs import Inputs, call
from model_opt.compression.samples import few
from model_opt.errors import TechniqueDidNothing


@dataclass(frozen=True, kw_only=True)
class Cost:
    """`flops` of one call with one row of the example (a multiplication and an addition count two)."""

    flops: int
    parameters: int
    size_bytes: int

    def below(self, other: "Cost") -> bool:
        """Whether FLOPs or bytes are lower than `other`'s by at least a tenth of a per cent."""
        return self.flops < 0.999 * other.flops or self.size_bytes < 0.999 * other.size_bytes


def cost(model: nn.Module, example: Inputs) -> Cost:
    """The cost of `model` on one row of `example`; runs one forward pass."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call(model, few(example, 1))
    parameters = list(model.parameters())
    state = [*parameters, *model.buffers()]
    return Cost(
        flops=counter.get_total_flops(),
        parameters=sum(p.numel() for p in parameters),
        size_bytes=sum(t.numel() * t.element_size() for t in state),
    )


def require_cheaper(before: Cost, after: Cost, what: str) -> None:
    """Raises `TechniqueDidNothing` unless `after` is below `before`."""
    if not after.below(before):
        raise TechniqueDidNothing(
            f"{what} changed nothing: {before.flops} → {after.flops} FLOPs, "
            f"{before.parameters} → {after.parameters} parameters"
        )
