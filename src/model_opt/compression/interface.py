"""What a model takes and gives beyond the shapes of its example: found once, by calling it, and asked for later."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model_opt.compression.closeness import signal_to_noise_db
from model_opt.compression.inputs import Inputs, batch_size, call, map_tensors, tensors
from model_opt.compression.layout import Layout, layout_of
from model_opt.compression.technique import Material

SAME_DB = 40.0
"""The signal-to-noise ratio above which two answers are taken to be the same."""
UNWILLING = (RuntimeError, ValueError, IndexError, TypeError, AssertionError)
"""What a model raises on inputs that it does not take."""
_ROWS = 8


@dataclass(frozen=True, kw_only=True)
class Interface:
    """`coupled`: the answer for a row depends on those that it comes with, as with statistics of the batch, or rows are
    not the outputs' first axis. `random`: two calls with one input answer differently."""

    coupled: bool
    random: bool


def interface_of(material: Material) -> Interface:
    """The interface of the original."""
    if "interface" not in material.cache:
        material.cache["interface"] = _look(material.teacher, material.example)
    found: Interface = material.cache["interface"]
    return found


def _look(model: nn.Module, example: Inputs) -> Interface:
    try:
        inputs = some_rows(example, _ROWS)
        whole = answers(model, inputs)
    except UNWILLING:  # it takes the example's batch and no other
        inputs, whole = example, answers(model, example)
    random = signal_to_noise_db(whole, answers(model, inputs)) < SAME_DB
    return Interface(coupled=not random and _coupled(model, inputs, whole), random=random)


def _coupled(model: nn.Module, inputs: Inputs, whole: list[Tensor]) -> bool:
    """Whether the first half of the rows has other answers alone than among the others."""
    rows = batch_size(inputs)
    half = rows // 2
    if any(tensor.dim() == 0 or len(tensor) != rows for tensor in whole):
        return True
    try:
        alone = answers(model, some_rows(inputs, half)) if half else whole
    except UNWILLING:
        return False  # the rows that it takes say nothing of one another
    return signal_to_noise_db([tensor[: max(half, 1)] for tensor in whole], alone) < SAME_DB


def some_rows(inputs: Inputs, count: int, start: int = 0) -> Inputs:
    """`count` rows of `inputs` from `start` on, and round; tensors without the batch stay as they are."""
    rows = batch_size(inputs)
    order = (torch.arange(count) + start) % rows
    return map_tensors(lambda t: t[order.to(t.device)] if t.dim() and len(t) == rows else t, inputs)


def layout_for(model: nn.Module, material: Material) -> Layout:
    """The layout of `model`, which was made of the original."""
    return layout_of(model, material.example, coupled=interface_of(material).coupled)


@torch.no_grad()
def answers(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """The tensors of the model's answer, in memory of their own; `inputs` stay as they are, whatever it does to its."""
    return [tensor.detach().clone() for tensor in tensors(call(model, map_tensors(Tensor.clone, inputs)))]


def with_flags_turned(inputs: Inputs) -> Inputs | None:
    """`inputs` with flags turned that they leave alike everywhere (a mask of padding), or None where there are none."""
    rows = batch_size(inputs)
    turned = map_tensors(lambda tensor: _other_flags(tensor, rows), inputs)
    same = all(a is b for a, b in zip(tensors(turned), tensors(inputs), strict=True))
    return None if same else turned


def _other_flags(tensor: Tensor, rows: int) -> Tensor:
    """Flags `[rows, places, …]` that are alike everywhere (true, false, one, nought, 1.0 as in a mask), with the last
    third of places turned in every other row."""
    if tensor.dim() < 2 or len(tensor) != rows or not tensor.numel() or tensor.is_complex():
        return tensor
    value = tensor.flatten()[0]
    if value not in (0, 1) or (tensor.is_floating_point() and not value) or not bool((tensor == value).all()):
        return tensor
    turned = tensor.clone()
    turned[::2, tensor.shape[1] - max(1, tensor.shape[1] // 3) :] = 1 - value.long()
    return turned
