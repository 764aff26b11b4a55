"""Is what was made right for whatever the original takes, and not for the example alone? Looked at before it is timed.

Runtimes have faults that no example shows: programs for one batch that are wrong at another, buffers that calls share,
masks that were never set while a program was traced. So what is made is compared with torch on batches of other sizes,
rows in another order, flags that calibration data never set, by two threads at once, and once more after another call.
"""

import threading
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from model_opt.compression.closeness import ruined, signal_to_noise_db
from model_opt.compression.inputs import Inputs, batch_size, call, join, map_tensors, tensors
from model_opt.compression.interface import SAME_DB, UNWILLING, answers, interface_of, some_rows
from model_opt.compression.technique import Material
from model_opt.errors import MeasurementFailed, ModelOptError

BATCHES = (1, 2, 7)
"""Batches that are looked at besides the example's own and one row more than that."""
LESS_DB = 10.0
"""How much less close than on the example anything may be: few rows vary more than many."""
ALONE_DB = 25.0
"""How close the answers to rows of the example must come to those that they have among the others."""
MOST_S = 15.0
"""How long that may take of a model whose calls take seconds; small batches come first."""
_CALLS = 3


def checked(
    made: nn.Module,
    model: nn.Module,
    material: Material,
    floor_db: float,
    name: str,
    *,
    batches: bool = True,
    dynamic: bool = False,
) -> nn.Module:
    """`made`, if it answers as `model`, which it was made of, does: within `floor_db` on the example, and nearly as
    close on whatever else `model` takes; only on the example's shapes without `batches`. Where scales are `dynamic`,
    told from each batch as it comes, a row's answer may be another among others.

    Raises `MeasurementFailed` with what is wrong.
    """
    example = material.example
    first = answers(made, example)
    wanted = answers(model, example)
    reached = signal_to_noise_db(wanted, first)
    if not reached >= floor_db:
        raise MeasurementFailed(f"{name}: outputs are wrong, {reached:.1f} dB against torch (at least {floor_db:g})")
    if interface_of(material).random:
        return made
    if reached < SAME_DB and (one := ruined(wanted, first)):
        raise MeasurementFailed(f"{name}: outputs are wrong, {one} errs as no other does")
    least = floor_db if floor_db >= SAME_DB else max(floor_db - LESS_DB, min(reached, SAME_DB) - LESS_DB)
    _call_again(made, example, first, name)
    until = time.monotonic() + MOST_S
    for what, inputs in _others(material) if batches else ():
        if time.monotonic() < until:
            _compare(made, model, inputs, least, f"{name}: {what}")
    if batches and not dynamic and not interface_of(material).coupled:
        _fewer_rows(made, model, example, first, name)
    if time.monotonic() < until:
        _from_threads(made, example, first, name)
    return made


def _others(material: Material) -> Iterator[tuple[str, Inputs]]:
    """What else the model should take, each with what is said of it where it is wrong."""
    example = material.example
    rows, pool = batch_size(example), _pool(material)
    for count in dict.fromkeys((*BATCHES, rows + 1)):
        if count != rows:
            yield f"wrong for {count} row{'s' * (count != 1)}", some_rows(pool, count)
    yield "wrong for rows in another order", some_rows(pool, rows, rows // 2 + 1)
    flagged = map_tensors(lambda tensor: _other_flags(tensor, rows), example)
    if any(not torch.equal(a, b) for a, b in zip(tensors(flagged), tensors(example), strict=True)):
        yield "wrong where flags are set that the example does not set (a mask of padded places)", flagged


def _pool(material: Material) -> Inputs:
    """The example's rows and those to fit on, where they go together."""
    try:
        return join([material.example, *material.fit[:1]])
    except UNWILLING:
        return material.example


def _other_flags(tensor: Tensor, rows: int) -> Tensor:
    """Flags `[rows, places, …]` that are alike everywhere, with the last third of places turned in every other row."""
    if (
        tensor.dtype is not torch.bool
        or tensor.dim() < 2
        or len(tensor) != rows
        or not torch.equal(tensor, tensor.flatten()[0].expand_as(tensor))
    ):
        return tensor
    turned = tensor.clone()
    turned[::2, tensor.shape[1] - max(1, tensor.shape[1] // 3) :] ^= True
    return turned


def _compare(made: nn.Module, model: nn.Module, inputs: Inputs, least_db: float, name: str) -> None:
    try:
        wanted = answers(model, inputs)
    except UNWILLING:
        return  # the original does not take it either
    try:
        got = answers(made, inputs)
    except ModelOptError as error:
        raise MeasurementFailed(f"{name}: refused, {error}") from error
    reached = signal_to_noise_db(wanted, got)
    if not reached >= least_db:
        raise MeasurementFailed(f"{name}, {reached:.1f} dB against torch (at least {least_db:.0f})")
    if reached < SAME_DB and (one := ruined(wanted, got)):
        raise MeasurementFailed(f"{name}, {one} errs as no other does")


def _fewer_rows(made: nn.Module, model: nn.Module, example: Inputs, first: list[Tensor], name: str) -> None:
    """The first rows of the example must have, without the others, the answers that they have among them."""
    for count in BATCHES:
        if count >= batch_size(example):
            return
        try:
            answers(model, some_rows(example, count))
        except UNWILLING:
            continue
        alone = answers(made, some_rows(example, count))
        if signal_to_noise_db([tensor[:count] for tensor in first], alone) < ALONE_DB:
            raise MeasurementFailed(f"{name}: wrong for {count} row{'s' * (count != 1)}, which have others in a batch")


def _call_again(made: nn.Module, example: Inputs, first: list[Tensor], name: str) -> None:
    """A second call with other inputs must leave the first one's answer as it was."""
    with torch.no_grad():
        handed = tensors(call(made, map_tensors(Tensor.clone, example)))
        before = [tensor.clone() for tensor in handed]
        call(made, _turned(example))
    if any(not torch.equal(a, b) for a, b in zip(before, handed, strict=True)):
        raise MeasurementFailed(f"{name}: a second call changes the first one's result")
    if signal_to_noise_db(first, before) < SAME_DB:
        raise MeasurementFailed(f"{name}: one input is answered in two ways")


def _from_threads(made: nn.Module, example: Inputs, first: list[Tensor], name: str) -> None:
    """Two threads that call at once must each have the answer to their own inputs."""
    given = [(example, first), (_turned(example), answers(made, _turned(example)))]
    wrong: list[str] = []

    def serve(inputs: Inputs, wanted: list[Tensor]) -> None:
        try:
            closest = min(signal_to_noise_db(wanted, answers(made, inputs)) for _ in range(_CALLS))
            wrong.extend(["another answer than alone"] if closest < SAME_DB else [])
        except Exception as error:  # whatever it is, threads cannot share this
            wrong.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=serve, args=one) for one in given]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if wrong:
        raise MeasurementFailed(f"{name}: called by two threads at once it gives {wrong[0]}")


def _turned(inputs: Inputs) -> Inputs:
    return map_tensors(lambda tensor: tensor.flip(-1) if tensor.dim() else tensor.clone(), inputs)
