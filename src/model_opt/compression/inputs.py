"""Model inputs: a tensor, a tuple of tensors, or a mapping of names to tensors, with the batch as first axis."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from model_opt.errors import InvalidInput

Inputs = Tensor | tuple[Any, ...] | Mapping[str, Any]


def call(model: nn.Module, inputs: Inputs) -> Any:
    """`model` on `inputs`: a tuple is spread over positions, a mapping over names."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def positional(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """`inputs` as the (args, kwargs) that `torch.export.export` takes."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


def tensors(value: Any) -> list[Tensor]:
    """The tensors inside `value` (inputs or outputs of a model), depth first, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [leaf for item in value.values() for leaf in tensors(item)]
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in tensors(item)]
    return []


def output(value: Any) -> Tensor:
    """The tensor of a model's output that accuracy is judged on: its first tensor. Raises `InvalidInput` if none."""
    found = tensors(value)
    if not found:
        raise InvalidInput(f"the model's output holds no tensor: {type(value).__name__}")
    return found[0]


def map_tensors(function: Callable[[Tensor], Tensor], inputs: Inputs) -> Inputs:
    """`inputs` with `function` applied to every tensor; other values stay."""

    def one(value: Any) -> Any:
        return function(value) if isinstance(value, Tensor) else value

    if isinstance(inputs, Mapping):
        return {name: one(value) for name, value in inputs.items()}
    return tuple(one(value) for value in inputs) if isinstance(inputs, tuple) else function(inputs)


def with_copies(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """A forward pre-hook (with keywords) for a model that changes its inputs in place: it is given copies."""
    copied: tuple[Any, Any] = pytree.tree_map_only(Tensor, Tensor.clone, (args, kwargs))
    return copied


def constants(inputs: Inputs) -> list[Any]:
    """What is no tensor in `inputs`, in order."""
    leaves = inputs.values() if isinstance(inputs, Mapping) else inputs if isinstance(inputs, tuple) else ()
    return [leaf for leaf in leaves if not isinstance(leaf, Tensor)]


def batch_size(inputs: Inputs) -> int:
    """The length of the first axis of the first tensor."""
    return int(tensors(inputs)[0].shape[0])


def shapes(inputs: Inputs) -> tuple[tuple[int, ...], ...]:
    """The shape of each tensor, in order."""
    return tuple(tuple(leaf.shape) for leaf in tensors(inputs))


def join(batches: Sequence[Inputs]) -> Inputs:
    """One batch of all `batches`, in order."""
    first = batches[0]
    if isinstance(first, Mapping):
        maps = cast(Sequence[Mapping[str, Any]], batches)
        return {name: _cat([b[name] for b in maps]) for name in first}
    if isinstance(first, tuple):
        rows = cast(Sequence[tuple[Any, ...]], batches)
        return tuple(_cat([b[i] for b in rows]) for i in range(len(first)))
    return torch.cat(cast(list[Tensor], list(batches)))


def rows(inputs: Inputs, start: int, stop: int) -> Inputs:
    """Rows `start` to `stop` of a batch."""
    return map_tensors(lambda tensor: tensor[start:stop], inputs)


def rebatch(batches: Iterable[Inputs], size: int) -> list[Inputs]:
    """The rows of `batches` in batches of exactly `size`; a remainder is dropped unless it is all there is."""
    whole = join(list(batches))
    total = batch_size(whole)
    if total < size:
        whole = join([whole] * -(-size // total))
        return [rows(whole, 0, size)]
    return [rows(whole, i, i + size) for i in range(0, total - size + 1, size)]


def _cat(values: Sequence[Any]) -> Any:
    return torch.cat(list(values)) if isinstance(values[0], Tensor) else values[0]
