"""Models kept in half precision: techniques work on a float32 copy, whose answers are in the user's type again."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from model_opt.compression.inputs import UNWILLING, Inputs, answers

HALF = frozenset({torch.bfloat16, torch.float16})


def in_float32(model: nn.Module, example: Inputs) -> nn.Module:
    """`model`, or where it is kept in bf16 or half a float32 copy that takes and returns what `model` does.

    What cannot compute in float32 (its code names a type) stays as it is.
    """
    if not any(tensor.dtype in HALF for tensor in model.state_dict().values()):
        return model
    wide = copy.deepcopy(model).float()
    try:
        made = answers(model, example)
        wide.register_forward_pre_hook(_enter, with_kwargs=True)
        wide.register_forward_hook(_Leave(tuple(tensor.dtype for tensor in made)))
        answers(wide, example)
    except UNWILLING:
        return model
    return wide


def is_widened(model: nn.Module) -> bool:
    """Whether `model` is such a copy, or was made of one."""
    return any(isinstance(hook, _Leave) for hook in model._forward_hooks.values())


def computed_in(model: nn.Module, dtype: torch.dtype) -> torch.dtype:
    """What a program that is made of `model` takes inputs of `dtype` in."""
    return torch.float32 if dtype in HALF and is_widened(model) else dtype


def _enter(model: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
    """Floats in the type that the model's own are in now."""
    own = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    cast: tuple[Any, Any] = pytree.tree_map_only(
        Tensor, lambda tensor: tensor.to(own) if tensor.is_floating_point() else tensor, (args, dict(kwargs))
    )
    return cast


class _Leave:
    """A hook that gives the outputs their original types. A program that is exported leaves that to what runs it, which
    may know no half precision."""

    def __init__(self, dtypes: tuple[torch.dtype, ...]) -> None:
        self.dtypes = dtypes

    def __call__(self, model: nn.Module, args: Any, output: Any) -> Any:
        if torch.compiler.is_exporting():
            return output
        wanted = iter(self.dtypes)
        return pytree.tree_map_only(Tensor, lambda tensor: tensor.to(next(wanted, tensor.dtype)), output)
