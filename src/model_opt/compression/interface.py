"""What a model takes and gives beyond the shapes of its example: found once, by calling it, and asked for later."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from model_opt.compression.inputs import (
    UNWILLING,
    Inputs,
    answers,
    batch_size,
    by_row,
    call,
    has_rows,
    is_whole,
    map_at,
    map_tensors,
    tensors,
)
from model_opt.compression.layout import Layout, Range, layout_of
from model_opt.compression.signal_to_noise import signal_to_noise_db
from model_opt.compression.technique import Material

SAME_DB = 40.0
"""The signal-to-noise ratio above which two answers are taken to be the same."""
_ROWS = 8
_LARGEST, _PROBING_S = 2**22, 2.0
"""How large a whole number is tried, and for how long: some are lengths of what a model makes."""


@dataclass(frozen=True, kw_only=True)
class Interface:
    """`coupled`: the answer for a row depends on those that it comes with, as with statistics of the batch, or rows are
    not the outputs' first axis. `random`: two calls with one input answer differently. `ranges` has, for each tensor of
    the inputs, the least and the largest value that it may hold, or None where any will do or that is not known.
    `lengths` has, for each of them, the axes whose length varies in the data, with the least and the largest. Where the
    batch is `fixed` the model takes that of the example and no other."""

    coupled: bool
    random: bool
    ranges: tuple[Range | None, ...] = ()
    lengths: tuple[Mapping[int, Range], ...] = ()
    fixed: bool = False


def interface_of(material: Material) -> Interface:
    """The interface of the original."""
    if material.findings.interface is None:
        material.findings.interface = look(material.teacher, material.example)
    return material.findings.interface


def look(model: nn.Module, example: Inputs) -> Interface:
    """The interface of `model`, which takes `example`."""
    fixed = False
    try:
        inputs = _different_rows(example)
        whole = answers(model, inputs)
    except UNWILLING:
        inputs, whole, fixed = example, answers(model, example), True
    random = signal_to_noise_db(whole, answers(model, inputs)) < SAME_DB
    coupled = not random and _coupled(model, inputs, whole)
    return Interface(coupled=coupled, random=random, ranges=_ranges(model, example), fixed=fixed)


def lengths(batches: Sequence[Inputs]) -> tuple[Mapping[int, Range], ...]:
    """Of each tensor of `batches`, which are built alike, the axes beside that of the batch whose length varies."""
    counts = [batch_size(batch) for batch in batches]
    found = []
    for column in zip(*map(tensors, batches), strict=True):
        first = all(has_rows(tensor, count) for tensor, count in zip(column, counts, strict=True))
        sizes = enumerate(zip(*(tensor.shape for tensor in column), strict=True))
        axes = {axis: (min(each), max(each)) for axis, each in sizes if axis >= first}
        found.append({axis: (least, most) for axis, (least, most) in axes.items() if least < most})
    return tuple(found) if any(found) else ()


def _ranges(model: nn.Module, example: Inputs) -> tuple[Range | None, ...]:
    """What the whole numbers of `example` may be: runtimes read beyond a table's end where torch would refuse. Found by
    calling the model with larger and larger ones, on the processor, where a refusal costs nothing."""
    leaves = tensors(example)
    if any(leaf.device.type != "cpu" for leaf in leaves):
        return (None,) * len(leaves)
    pairs = enumerate(leaves)
    return tuple(_range(model, example, place) if is_whole(leaf) and leaf.numel() else None for place, leaf in pairs)


def _range(model: nn.Module, example: Inputs, place: int) -> Range | None:
    """The values that the tensor at `place` may hold; None where no limit was found up to `_LARGEST`."""
    tensor = tensors(example)[place]
    low, high = int(tensor.min()), int(tensor.max())
    began = time.monotonic()

    def taken(value: int) -> bool:
        try:
            answers(model, map_at(place, lambda tensor: _with_last(tensor, value), example))
        except UNWILLING:
            return False
        return True

    least = 0 if low >= 0 and not taken(-1) else None
    most, refused = high, None
    while refused is None and most < min(_LARGEST, torch.iinfo(tensor.dtype).max // 2):
        if time.monotonic() - began > _PROBING_S:
            return None
        tried_now = 2 * max(most, 1)
        most, refused = (tried_now, None) if taken(tried_now) else (most, tried_now)
    while refused is not None and refused - most > 1:
        middle = (most + refused) // 2
        most, refused = (middle, refused) if taken(middle) else (most, middle)
    if refused is None and least is None:
        return None
    limits = torch.iinfo(tensor.dtype)
    return (limits.min if least is None else least, limits.max if refused is None else most)


def _with_last(tensor: Tensor, value: int) -> Tensor:
    made = tensor.clone()
    made.view(-1)[-1] = value
    return made


def _different_rows(example: Inputs) -> Inputs:
    """`_ROWS` rows, those of the example first, then the same with their places moved along: alike they would say
    nothing of one another."""
    count = batch_size(example)
    moved = [place // count for place in range(_ROWS)]

    def move(tensor: Tensor) -> Tensor:
        if tensor.dim() < 2:
            return tensor
        return torch.stack([row.roll(by, -1) for row, by in zip(tensor, moved, strict=True)])

    return by_row(move, some_rows(example, _ROWS))


def _coupled(model: nn.Module, inputs: Inputs, whole: list[Tensor]) -> bool:
    """Whether rows have other answers in another order, or half of them alone, than among the others."""
    rows = batch_size(inputs)
    if any(not has_rows(tensor, rows) for tensor in whole):
        return True
    turned = by_row(lambda tensor: tensor.flip(0), inputs)
    if signal_to_noise_db([tensor.flip(0) for tensor in whole], answers(model, turned)) < SAME_DB:
        return True
    half = rows // 2
    try:
        parts = [answers(model, some_rows(inputs, half, start)) for start in (0, rows - half)] if half else []
    except UNWILLING:
        return False  # the rows that it takes say nothing of one another
    wanted = ([tensor[:half] for tensor in whole], [tensor[rows - half :] for tensor in whole])
    return any(signal_to_noise_db(a, b) < SAME_DB for a, b in zip(wanted, parts, strict=False))


def some_rows(inputs: Inputs, count: int, start: int = 0) -> Inputs:
    """`count` rows of `inputs` from `start` on, and round; tensors without the batch stay as they are."""
    order = (torch.arange(count) + start) % batch_size(inputs)
    return by_row(lambda tensor: tensor[order.to(tensor.device)], inputs)


def another(model: nn.Module, example: Inputs) -> Inputs:
    """Inputs other than the example that the model takes, if there are any."""
    turned = map_tensors(lambda tensor: tensor.flip(-1) if tensor.dim() else tensor.clone(), example)
    for inputs in (turned, some_rows(example, batch_size(example), 1)):
        try:
            answers(model, inputs)
        except UNWILLING:
            continue
        return inputs
    return example


def layout_for(model: nn.Module, material: Material) -> Layout:
    """The layout of `model`, which was made of the original."""
    found = interface_of(material)
    return layout_of(model, material.example, coupled=found.coupled, ranges=found.ranges, lengths=found.lengths)


@torch.no_grad()
def output_names(model: nn.Module, inputs: Inputs) -> list[str]:
    """What each of `answers` is called: by its key, where it is in a mapping, else "output 1" and so on."""
    made = call(model, map_tensors(Tensor.clone, inputs))
    return [name or "output 1" for name in _names(made)]


def _names(value: Any) -> list[str]:
    if isinstance(value, Tensor):
        return [""]
    if isinstance(value, Mapping):
        inside = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        inside = [(f"output {place}", item) for place, item in enumerate(value, 1)]
    else:
        return []
    return [f"{key}.{name}" if name else key for key, item in inside for name in _names(item)]


def with_flags_turned(inputs: Inputs) -> Inputs | None:
    """`inputs` with flags turned that they leave alike everywhere (a mask of padding), or None where there are none."""
    turned = by_row(_other_flags, inputs)
    same = all(a is b for a, b in zip(tensors(turned), tensors(inputs), strict=True))
    return None if same else turned


def _other_flags(tensor: Tensor) -> Tensor:
    """Flags `[rows, places, …]` that are alike everywhere (true, false, one, zero, 1.0 as in a mask), with the last
    third of places turned in every other row."""
    if tensor.dim() < 2 or not tensor.numel() or tensor.is_complex():
        return tensor
    value = tensor.flatten()[0]
    if value not in (0, 1) or (tensor.is_floating_point() and not value) or not bool((tensor == value).all()):
        return tensor
    turned = tensor.clone()
    turned[::2, tensor.shape[1] - max(1, tensor.shape[1] // 3) :] = 1 - value.long()
    return turned
