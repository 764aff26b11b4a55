"""No gradient goes through what was compiled: who asks for one is told, and gets none that is silently less."""

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from model_opt.compression.inputs import tensors
from model_opt.errors import InvalidInput


def no_gradient(made_by: str, outputs: Any, given: Any) -> Any:
    """`outputs`, whose backward pass raises `InvalidInput` where one of the tensors `given` asks for a gradient."""
    if not torch.is_grad_enabled():
        return outputs
    asking = [tensor for tensor in tensors(given) if tensor.requires_grad]
    if not asking:
        return outputs
    return pytree.tree_map_only(Tensor, lambda one: _refusing(made_by, one, asking), outputs)


def _refusing(made_by: str, output: Tensor, asking: list[Tensor]) -> Tensor:
    if not (output.is_floating_point() or output.is_complex()):
        return output
    made: Tensor = _NoGradient.apply(made_by, output.detach(), *asking)
    return made


class _NoGradient(torch.autograd.Function):
    """Lets an answer through, and refuses its gradient."""

    @staticmethod
    def forward(ctx: Any, made_by: str, output: Tensor, *asking: Tensor) -> Tensor:
        ctx.made_by = made_by
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise InvalidInput(
            f"no gradient goes through a model compiled by {ctx.made_by}: train the original, or call this one inside "
            "torch.no_grad()"
        )
