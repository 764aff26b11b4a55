"""How a model is called: inputs and outputs as flat tensors, and back into the structure that the user knows.

Exporters and runtimes see positional tensors in and a tuple of tensors out, whatever the user's model takes and
returns (a tensor, a tuple, a mapping, a dataclass that torch's pytree knows).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from model_opt.compression.inputs import Inputs, positional
from model_opt.errors import InvalidInput


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The structure of one model's call. `*_constants` hold the leaves that are no tensors, by position.

    `batched` says of each input tensor whether its first axis is the batch; `batch` is the example's.
    """

    inputs: pytree.TreeSpec
    input_constants: Mapping[int, Any]
    outputs: pytree.TreeSpec
    output_constants: Mapping[int, Any]
    output_dtypes: tuple[torch.dtype, ...]
    shapes: tuple[tuple[int, ...], ...]
    batched: tuple[bool, ...]
    batch: int

    def flatten(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """The tensors of a call; raises `InvalidInput` where its structure or shapes are not the model's."""
        if self._one_input and not kwargs and len(args) == 1 and isinstance(args[0], Tensor):
            tensors = [args[0]]
        else:
            leaves, spec = _flatten(args, kwargs)
            tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
            if spec != self.inputs or len(tensors) != len(self.shapes):
                raise InvalidInput(f"the model takes {len(self.shapes)} tensor(s) as {self.inputs}, not {spec}")
        for tensor, shape, batched in zip(tensors, self.shapes, self.batched, strict=True):
            got = tuple(tensor.shape)
            if got[batched:] != shape[batched:] or len(got) != len(shape):
                wanted = ("batch", *shape[1:]) if batched else shape
                raise InvalidInput(f"an input has shape {got}; the optimised model takes {wanted}")
        return tensors

    @cached_property
    def _one_input(self) -> bool:
        """Whether the model takes one tensor by position: a tree is then walked for nothing, on every call."""
        return bool(self.inputs == _flatten((0,), {})[1]) and len(self.shapes) == 1

    @cached_property
    def _one_output(self) -> bool:
        return self.outputs.is_leaf() and len(self.output_dtypes) == 1

    def call_arguments(self, tensors: list[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """(args, kwargs) of the original call, with `tensors` in their places."""
        args, kwargs = _fill(self.inputs, self.input_constants, tensors)
        return args, kwargs

    def rebuild(self, tensors: list[Tensor]) -> Any:
        """The original output's structure around `tensors`."""
        if self._one_output:
            return tensors[0]
        return _fill(self.outputs, self.output_constants, tensors)


class Flat(nn.Module):
    """`model` as a function of positional tensors that returns a tuple of tensors."""

    def __init__(self, model: nn.Module, layout: Layout) -> None:
        super().__init__()
        self.model = model
        self.layout = layout

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The outputs' tensors, in order."""
        args, kwargs = self.layout.call_arguments(list(tensors))
        leaves = pytree.tree_leaves(self.model(*args, **kwargs))
        return tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))


def layout_of(model: nn.Module, example: Inputs) -> Layout:
    """Calls `model` once on `example` and notes the structures; raises `InvalidInput` if no tensor comes out."""
    args, kwargs = positional(example)
    leaves, spec = _flatten(args, kwargs)
    with torch.no_grad():
        found, out_spec = pytree.tree_flatten(model(*args, **kwargs))
    ins = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    outs = [leaf for leaf in found if isinstance(leaf, Tensor)]
    if not ins or not outs:
        raise InvalidInput("a model that takes or returns no tensor cannot be optimised")
    batch = int(ins[0].shape[0]) if ins[0].dim() else 1
    return Layout(
        inputs=spec,
        input_constants=_constants(leaves),
        outputs=out_spec,
        output_constants=_constants(found),
        output_dtypes=tuple(tensor.dtype for tensor in outs),
        shapes=tuple(tuple(tensor.shape) for tensor in ins),
        batched=tuple(tensor.dim() > 0 and int(tensor.shape[0]) == batch for tensor in ins),
        batch=batch,
    )


def _flatten(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[list[Any], pytree.TreeSpec]:
    return pytree.tree_flatten((tuple(args), dict(sorted(kwargs.items()))))


def _constants(leaves: list[Any]) -> dict[int, Any]:
    return {i: leaf for i, leaf in enumerate(leaves) if not isinstance(leaf, Tensor)}


def _fill(spec: pytree.TreeSpec, constants: Mapping[int, Any], tensors: list[Tensor]) -> Any:
    rest = iter(tensors)
    leaves = [constants[i] if i in constants else next(rest) for i in range(spec.num_leaves)]
    return pytree.tree_unflatten(leaves, spec)
