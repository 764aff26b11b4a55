"""Model inputs: a tensor, a tuple of tensors, or a mapping of names to tensors, with the batch as first axis."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from model_opt.errors import InvalidInput

UNWILLING = (RuntimeError, ValueError, IndexError, TypeError, AssertionError)
"""What a model raises on inputs that it does not take."""
Inputs = Tensor | tuple[Any, ...] | Mapping[str, Any]


def call(model: nn.Module, inputs: Inputs) -> Any:
    """`model` on `inputs`: a tuple is spread over positions, a mapping over names."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


@torch.no_grad()
def answers(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """The tensors of the model's answer, in memory of their own; `inputs` stay as they are, whatever it does to its."""
    return [tensor.detach().clone() for tensor in tensors(call(model, map_tensors(Tensor.clone, inputs)))]


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
    made: Inputs = pytree.tree_map_only(Tensor, function, plain(inputs))
    return made


def map_at(place: int, function: Callable[[Tensor], Tensor], inputs: Inputs) -> Inputs:
    """`inputs` with `function` applied to the tensor at `place` among `tensors(inputs)`, and copies of the others."""
    count = itertools.count()
    return map_tensors(lambda tensor: function(tensor) if next(count) == place else tensor.clone(), inputs)


def is_whole(tensor: Tensor) -> bool:
    """Whether it holds whole numbers, which flags are not."""
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype is torch.bool)


def all_finite(found: Sequence[Tensor]) -> bool:
    """Whether no float among them is NaN or infinite."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in found if tensor.is_floating_point())


def by_row(function: Callable[[Tensor], Tensor], inputs: Inputs) -> Inputs:
    """`inputs` with `function` applied to every tensor whose first axis is the batch; a mask `[places, places]`, say,
    stays."""
    count = batch_size(inputs)
    return map_tensors(lambda tensor: function(tensor) if has_rows(tensor, count) else tensor, inputs)


def has_rows(tensor: Tensor, count: int) -> bool:
    """Whether the first axis of `tensor` is a batch of `count` rows."""
    return tensor.dim() > 0 and len(tensor) == count


def with_copies(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """A forward pre-hook (with keywords) for a model that changes its inputs in place: it is given copies."""
    copied: tuple[Any, Any] = pytree.tree_map_only(Tensor, Tensor.clone, (args, kwargs))
    return copied


def constants(inputs: Inputs) -> list[Any]:
    """What is no tensor in `inputs`, in order."""
    return [leaf for leaf in pytree.tree_leaves(plain(inputs)) if not isinstance(leaf, Tensor)]


def shared(inputs: Inputs) -> list[Any]:
    """What all rows of `inputs` share: its `constants`, then its tensors without the batch, as lists."""
    count = batch_size(inputs)
    return constants(inputs) + [leaf.tolist() for leaf in tensors(inputs) if not has_rows(leaf, count)]


def batch_size(inputs: Inputs) -> int:
    """The length of the first axis of the first tensor that has one."""
    return next((int(tensor.shape[0]) for tensor in tensors(inputs) if tensor.dim()), 1)


def takes_list(inputs: Any) -> bool:
    """Whether the one argument is a list."""
    return isinstance(inputs, tuple) and len(inputs) == 1 and isinstance(inputs[0], list)


def holds_list(inputs: Inputs) -> bool:
    """Whether an argument is a list, of images of unlike sizes perhaps, whose first axis is no batch."""
    arguments = inputs.values() if isinstance(inputs, Mapping) else inputs if isinstance(inputs, tuple) else ()
    return any(isinstance(value, list) for value in arguments)


def shapes(inputs: Inputs) -> tuple[tuple[int, ...], ...]:
    """The shape of each tensor, in order."""
    return tuple(tuple(leaf.shape) for leaf in tensors(inputs))


def sizes(shapes: Iterable[tuple[int, ...]]) -> str:
    """Shapes for people: "4x3x32x32, 4"."""
    return ", ".join("x".join(map(str, shape)) or "one number" for shape in shapes)


def by_size(batches: Sequence[Inputs]) -> list[list[int]]:
    """The places of those of the batches whose rows have one size, together, in the order of the first of each."""
    found: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for place, batch in enumerate(batches):
        found.setdefault(shapes(rows(batch, 0, 1)), []).append(place)
    return list(found.values())


def join(batches: Sequence[Inputs]) -> Inputs:
    """One batch of all `batches`, in order; what their rows share is the first one's. Raises `InvalidInput` where they
    are not built alike."""
    leaves, specs = zip(*(pytree.tree_flatten(plain(batch)) for batch in batches), strict=True)
    if any(spec != specs[0] for spec in specs):
        raise InvalidInput(f"batches are not built alike: {next(s for s in specs if s != specs[0])}, not {specs[0]}")
    counts = [batch_size(batch) for batch in batches]
    joined: Inputs = pytree.tree_unflatten([_cat(column, counts) for column in zip(*leaves, strict=True)], specs[0])
    return joined


def rows(inputs: Inputs, start: int, stop: int) -> Inputs:
    """Rows `start` to `stop` of a batch."""
    return by_row(lambda tensor: tensor[start:stop], inputs)


def plain(inputs: Inputs) -> Inputs:
    """`inputs`, a mapping of a kind that torch's pytree may not know as a dictionary."""
    return dict(inputs) if isinstance(inputs, Mapping) else inputs


def _cat(values: Sequence[Any], counts: Sequence[int]) -> Any:
    if not all(isinstance(value, Tensor) and has_rows(value, n) for value, n in zip(values, counts, strict=True)):
        return values[0]
    return torch.cat(values)  # type: ignore[arg-type]
