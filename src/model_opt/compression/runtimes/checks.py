"""Is what was made right for whatever the original takes, and not for the example alone? Looked at before it is timed.

Runtimes have faults that no example shows: programs for one batch that are wrong at another, buffers that calls share,
masks that were never set while a program was traced. So what is made is compared with torch on batches of other sizes,
rows in another order, flags that calibration data never set, by two threads at once, and once more after another call.
"""

import threading
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model_opt.compression.inputs import (
    UNWILLING,
    Inputs,
    all_finite,
    answers,
    batch_size,
    call,
    join,
    map_tensors,
    shapes,
    sizes,
    tensors,
)
from model_opt.compression.interface import SAME_DB, another, interface_of, some_rows, with_flags_turned
from model_opt.compression.runtimes.export_program import once
from model_opt.compression.runtimes.other_values import guard, other_floats
from model_opt.compression.runtimes.runtime_module import INT8_DB
from model_opt.compression.signal_to_noise import noise, ruined, signal_to_noise_db
from model_opt.compression.technique import Material
from model_opt.errors import MeasurementFailed, ModelOptError

BATCHES = (1, 2, 7)
"""Batches that are looked at besides the example's own and one row more than that."""
LOUDER = 30.0
"""How many times the noise on the example anything may have."""
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
    wanted = once(material, model, "example answers", lambda: answers(model, example))
    reached = signal_to_noise_db(wanted, first)
    if not reached >= floor_db:
        raise MeasurementFailed(f"{name}: outputs are wrong, {reached:.1f} dB against torch (at least {floor_db:g})")
    if interface_of(material).random:
        return made
    if reached < SAME_DB and (one := ruined(wanted, first)):
        raise MeasurementFailed(f"{name}: outputs are wrong, {one} errs as no other does")
    least = floor_db if floor_db >= SAME_DB else max(floor_db - LESS_DB, min(reached, SAME_DB) - LESS_DB)
    other = once(material, model, "another input", lambda: another(model, example))
    _call_again(made, example, other, first, name)
    usual = [LOUDER * noise(a, b) for a, b in zip(wanted, first, strict=True)]
    alone = first if not dynamic and not interface_of(material).coupled else None
    until = time.monotonic() + MOST_S
    for asked in once(material, model, "other answers", lambda: _asked(model, material)) if batches else ():
        if time.monotonic() < until and (floor_db > INT8_DB or not asked.values):
            _compare(made, asked, least - LESS_DB if asked.values else least, usual, alone, name)
    if time.monotonic() < until:
        _from_threads(made, example, other, first, name)
    guard(made, model, material, least, until)
    return made


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """Other inputs that the model takes, its answer, and what is said where that is not given. They may be the first
    `rows` of the example, else that is None. `values` says that they hold others than the data has, for which scales
    that were told from it do not hold."""

    said: str
    inputs: Inputs
    wanted: list[Tensor]
    rows: int | None = None
    values: bool = False


def _asked(model: nn.Module, material: Material) -> list[_Asked]:
    """What else the model should take, as far as it does."""
    example = material.example
    rows, pool = batch_size(example), _pool(material)
    given: list[tuple[str, Inputs, int | None]] = []
    for count in dict.fromkeys((*BATCHES, rows + 1)):
        if count != rows:
            said = f"wrong for {count} row{'s' * (count != 1)}"
            given.append((said, some_rows(pool, count), count if count < rows else None))
    given.append(("wrong for rows in another order", some_rows(pool, rows, rows // 2 + 1), None))
    given += [(f"wrong for {sizes(shapes(batch))}", batch, None) for batch in material.sizes]
    flagged = with_flags_turned(example)
    if flagged is not None:
        said = "wrong where flags are turned that the example leaves alike (a mask of padding)"
        given.append((said, flagged, None))
    asked = []
    usual = len(given)
    given += [(said, inputs, None) for said, inputs in other_floats(example)]
    for number, (said, inputs, few) in enumerate(given):
        try:
            wanted = answers(model, inputs)
        except UNWILLING:
            continue  # the original does not take it either
        if number < usual or all_finite(wanted):
            asked.append(_Asked(said=said, inputs=inputs, wanted=wanted, rows=few, values=number >= usual))
    return asked


def _pool(material: Material) -> Inputs:
    """The example's rows and those to fit on, where they go together."""
    try:
        return join([material.example, *material.fit[:1]])
    except UNWILLING:
        return material.example


def _compare(
    made: nn.Module, asked: _Asked, least_db: float, usual: list[float], first: list[Tensor] | None, name: str
) -> None:
    """Raises `MeasurementFailed` where `made` is wrong for what is asked: less close than `least_db`, and not only as
    few numbers are small: with more noise than is `usual`. `first` is its own answer to the example, if rows must have
    the same alone as among others."""
    try:
        got = answers(made, asked.inputs)
    except ModelOptError as error:
        raise MeasurementFailed(f"{name}: {asked.said}: refused, {error}") from error
    reached = signal_to_noise_db(asked.wanted, got)
    far = len(got) != len(asked.wanted) or any(
        signal_to_noise_db(a, b) < least_db and noise(a, b) > most
        for a, b, most in zip(asked.wanted, got, usual, strict=True)
    )
    if far:
        raise MeasurementFailed(f"{name}: {asked.said}, {reached:.1f} dB against torch (at least {least_db:.0f})")
    if reached < SAME_DB and (one := ruined(asked.wanted, got)):
        raise MeasurementFailed(f"{name}: {asked.said}, {one} errs as no other does")
    if asked.rows is not None and first is not None:
        among = signal_to_noise_db([tensor[: asked.rows] for tensor in first], got)
        if among < ALONE_DB:
            raise MeasurementFailed(f"{name}: {asked.said}, which have other answers among the example's")


def _call_again(made: nn.Module, example: Inputs, other: Inputs, first: list[Tensor], name: str) -> None:
    """A second call with `other` inputs must leave the first one's answer as it was."""
    with torch.no_grad():
        handed = tensors(call(made, map_tensors(Tensor.clone, example)))
        before = [tensor.clone() for tensor in handed]
        call(made, map_tensors(Tensor.clone, other))
    if any(not torch.equal(a, b) for a, b in zip(before, handed, strict=True)):
        raise MeasurementFailed(f"{name}: a second call changes the first one's result")
    if signal_to_noise_db(first, before) < SAME_DB:
        raise MeasurementFailed(f"{name}: one input is answered in two ways")


def _from_threads(made: nn.Module, example: Inputs, other: Inputs, first: list[Tensor], name: str) -> None:
    """Two threads that call at once must each have the answer to their own inputs."""
    given = [(example, first), (other, answers(made, other))]
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
