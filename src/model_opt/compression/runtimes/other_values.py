"""Is what was made right for other values than the example's? Where it is not for all, it refuses the others by name.

Runtimes compute whole numbers in fewer bits, or as floats: quotients of negative numbers, remainders of large ids and
bytes that wrap come out as others. Exporters rewrite functions so that they hold near zero only, or not there. And
comparisons with NaN are what each runtime makes of them: a ReLU makes a number of it.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from model_opt.compression.inputs import (
    UNWILLING,
    Inputs,
    all_finite,
    answers,
    is_whole,
    map_at,
    map_tensors,
    tensors,
)
from model_opt.compression.layout import Range, places_of
from model_opt.compression.runtimes.runtime_module import RuntimeModule
from model_opt.compression.signal_to_noise import signal_to_noise_db
from model_opt.compression.technique import Material
from model_opt.errors import ModelOptError

LOUD = 10.0
"""How many times the example's values are tried."""
SMALL = (16, 1024)
"""Numbers up to these sizes are tried by themselves."""
BITS = (62, 40, 31, 24, 20, 16, 12, 10, 8)
"""Whole numbers of up to so many bits are tried, of either sign and then of none, until a runtime is right for them."""


def other_floats(example: Inputs) -> list[tuple[str, Inputs]]:
    """Inputs with other floats than the example's, and what is said where their answers are wrong."""
    if not any(tensor.is_floating_point() for tensor in tensors(example)):
        return []
    return [
        ("wrong where numbers are zero", _floats(_with_zeros, example)),
        (f"wrong for {LOUD:g} times the example's values", _floats(lambda tensor: LOUD * tensor, example)),
    ]


def _floats(function: Callable[[Tensor], Tensor], example: Inputs) -> Inputs:
    """`example` with `function` applied to its floats."""
    return map_tensors(lambda tensor: function(tensor) if tensor.is_floating_point() else tensor, example)


def _with_zeros(tensor: Tensor) -> Tensor:
    """Half of the numbers are zero, those of the first row all."""
    kept = torch.rand(tensor.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    if tensor.dim():
        kept[:1] = False
    return tensor * kept.to(tensor.device)


def guard(made: nn.Module, model: nn.Module, material: Material, least_db: float, until: float) -> None:
    """Makes `made`, a runtime's, refuse the whole numbers for which it is not right, and NaN where it gives numbers for
    it; `until` (monotonic seconds) bounds how long that is looked at."""
    if not isinstance(made, RuntimeModule):
        return
    found = list(made.layout.ranges)
    leaves = tensors(material.example)
    for number, place in enumerate(places_of(material.example)):
        if leaves[place].numel() and is_whole(leaves[place]) and time.monotonic() < until:
            found[number] = _right_range(made, model, material, place, found[number], least_db, until)
    refuses_nan = time.monotonic() < until and _hides_nan(made, model, material.example)
    made.layout = replace(made.layout, ranges=tuple(found), refuses_nan=refuses_nan)


def _right_range(
    made: RuntimeModule,
    model: nn.Module,
    material: Material,
    place: int,
    known: Range | None,
    least_db: float,
    until: float,
) -> Range | None:
    """The widest of the ranges tried, within the `known` one, for whose values `made` is right, None for any; else what
    calibration data holds, zero and one with it."""
    limits = torch.iinfo(tensors(material.example)[place].dtype)
    seen = _seen(material, place)
    for range_ in _candidates(known or (limits.min, limits.max), seen):
        if time.monotonic() > until:
            break
        if all(
            _right_for(made, model, _with_values(material.example, place, part), least_db) for part in _parts(range_)
        ):
            return known if range_ in (known, (limits.min, limits.max)) else range_
    return seen


def _right_for(made: RuntimeModule, model: nn.Module, inputs: Inputs, least_db: float) -> bool:
    """Whether `made` answers as the model, which must take `inputs` and answer with numbers."""
    try:
        wanted = answers(model, inputs)
        if not all_finite(wanted):
            return False
        return signal_to_noise_db(wanted, answers(made, inputs)) >= least_db
    except (*UNWILLING, ModelOptError):
        return False


def _parts(range_: Range) -> list[Range]:
    """The range's small numbers, its middling ones, and all: among large ones small errors do not count."""
    sizes = (*SMALL, max(abs(range_[0]), abs(range_[1])))
    parts = [(max(range_[0], -size), min(range_[1], size)) for size in sizes]
    return [part for part in dict.fromkeys(parts) if part[0] <= part[1]]


def _candidates(widest: Range, seen: Range) -> Iterator[Range]:
    """Ranges from the `widest` that the model takes down, each with what was `seen` in it."""
    yield widest
    least, most = widest
    for bits in BITS:
        for low in (-(2**bits), 0):
            range_ = (max(least, low), min(most, 2**bits))
            if range_ != widest and range_[0] <= seen[0] and seen[1] <= range_[1]:
                yield range_


def _seen(material: Material, place: int) -> Range:
    """The least and the largest number at `place` in all the data, or zero and one where those are beyond."""
    values = [tensors(inputs)[place] for inputs in (material.example, *material.fit)]
    numbers = [value for value in values if value.numel()]
    return min(0, *(int(value.min()) for value in numbers)), max(1, *(int(value.max()) for value in numbers))


def _with_values(example: Inputs, place: int, range_: Range) -> Inputs:
    """The example with numbers of `range_` at `place`: both ends, some of any size, the others even over it."""
    return map_at(place, lambda tensor: _spread(tensor, range_), example)


def _spread(tensor: Tensor, range_: Range) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    low, high = range_
    shares = torch.rand(tensor.numel(), generator=generator, dtype=torch.float64)
    even = low + shares * (float(high) - float(low))
    size = torch.exp2(shares * 62) * torch.where(torch.rand(len(shares), generator=generator) < 0.5, -1.0, 1.0)
    made = torch.where(torch.arange(len(shares)) % 2 == 0, even, size.clamp(float(low), float(high)))
    numbers = [min(max(int(number), low), high) for number in made.tolist()]
    numbers[-1], numbers[0] = low, high
    return torch.tensor(numbers, dtype=tensor.dtype).reshape(tensor.shape).to(tensor.device)


def _hides_nan(made: RuntimeModule, model: nn.Module, example: Inputs) -> bool:
    """Whether `made` gives numbers where the original gives NaN, or refuses, for inputs with NaN in their first row."""
    if not any(tensor.is_floating_point() for tensor in tensors(example)):
        return False
    inputs = _floats(_with_nan, example)
    try:
        wanted = answers(model, inputs)
    except UNWILLING:
        return True
    try:
        got = answers(made, inputs)
    except ModelOptError:
        return False
    return _fewer_nan(wanted, got)


def _with_nan(tensor: Tensor) -> Tensor:
    made = tensor.clone()
    if made.numel():
        (made[0] if made.dim() else made).fill_(torch.nan)
    return made


def _fewer_nan(wanted: Sequence[Tensor], got: Sequence[Tensor]) -> bool:
    pairs = zip(wanted, got, strict=True)
    return any(bool((torch.isnan(a) & ~torch.isnan(b)).any()) for a, b in pairs if a.is_floating_point())
