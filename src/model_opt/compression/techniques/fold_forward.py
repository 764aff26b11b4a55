"""Batch norms that stand behind an activation, folded into the layer that reads them."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

READERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
BETWEEN = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.Flatten, nn.Dropout, nn.Identity)
"""What a scale and a shift of each channel pass through unchanged."""


def folded(norm: nn.Module, reader: nn.Module) -> nn.Module | None:
    """`reader` as it is of what `norm`, in eval mode, is given; None where that is no such layer: zeros that a
    convolution pads with are not shifted."""
    if not isinstance(reader, READERS) or type(reader) not in READERS:
        return None
    if not isinstance(reader, nn.Linear) and (reader.groups != 1 or _pads(reader)):
        return None
    scale, shift = _affine(norm)
    width = reader.weight.shape[1]
    if width % len(scale):
        return None
    scale, shift = (one.repeat_interleave(width // len(scale)) for one in (scale, shift))  # a channel's positions
    shape = (1, -1, *[1] * (reader.weight.dim() - 2))
    made = copy.deepcopy(reader)
    with torch.no_grad():
        added = (reader.weight * shift.view(shape)).flatten(1).sum(1)
        made.weight.mul_(scale.view(shape))
        made.bias = nn.Parameter(added if reader.bias is None else reader.bias + added, requires_grad=False)
    return made


def _pads(layer: nn.Module) -> bool:
    padding: Any = getattr(layer, "padding", 0)
    return padding == "same" or (isinstance(padding, tuple) and any(padding))


def _affine(norm: Any) -> tuple[Tensor, Tensor]:
    """Scale and shift of each channel, `[channels]`."""
    scale = torch.rsqrt(norm.running_var + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight.detach()
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias.detach()


def reader_of(output: Tensor, readers: Mapping[int, list[tuple[nn.Module, Tensor | None]]]) -> nn.Module | None:
    """The one module that reads `output`, or what becomes of it in between; `readers` has the modules that were given a
    tensor, by its id, each with its own output."""
    passed = set[nn.Module]()  # what hands on what it is given reads its own output
    while True:
        found = [(module, after) for module, after in readers.get(id(output), []) if module not in passed]
        if len(found) != 1:
            return None
        module, after = found[0]
        if not isinstance(module, BETWEEN):
            return module
        if after is None:
            return None
        passed.add(module)
        output = after
