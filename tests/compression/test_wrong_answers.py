"""Hundreds of ways to be wrong, on every runtime: what is made is caught before it is timed, or by the judge."""

import copy
import itertools
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from compression_made import material
from torch import Tensor, nn

from model_opt.compression.evaluation.judge import DataJudge
from model_opt.compression.runtimes import precision
from model_opt.compression.runtimes.checks import checked
from model_opt.compression.runtimes.declared import RUNTIMES
from model_opt.compression.technique import Material
from model_opt.errors import MeasurementFailed
from model_opt.search.model_signature import Family

BATCH, CLASSES, TOKENS, FEATURES = 5, 10, 5, 12
Fault = Callable[["Wrong", tuple[Tensor, ...], list[Tensor]], list[Tensor]]


class Net(nn.Module):
    """Scores of classes, features and a number, of tokens of which some may be padding."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.body = nn.Linear(8, 32), nn.Linear(32, 32)
        self.head, self.features, self.number = nn.Linear(32, CLASSES), nn.Linear(32, FEATURES), nn.Linear(32, 1)

    def forward(self, x: Tensor, padding: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        kept = (~padding).float().unsqueeze(-1)
        h = torch.relu(self.body(torch.relu(self.inp(x)))) * kept
        h = h.sum(1) / kept.sum(1).clamp_min(1)
        return 8 * self.head(h), self.features(h), self.number(h).squeeze(1)


class Wrong(nn.Module):
    """`made`, with a fault in its answers."""

    def __init__(self, made: nn.Module, fault: Fault) -> None:
        super().__init__()
        self.made, self.fault = made, fault
        self.calls = 0
        self.first: list[Tensor] = []
        self.last: tuple[Tensor, ...] = ()

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        self.calls += 1
        self.last = inputs
        outputs = [output.clone() for output in self.made(*inputs)]
        self.first = self.first or outputs
        return tuple(self.fault(self, inputs, outputs))


def at_output(place: int, change: Callable[[Tensor], Tensor]) -> Fault:
    def fault(wrong: Wrong, inputs: tuple[Tensor, ...], outputs: list[Tensor]) -> list[Tensor]:
        outputs[place] = change(outputs[place])
        return outputs

    return fault


def only_for(rows: int, fault: Fault) -> Fault:
    return lambda wrong, inputs, outputs: fault(wrong, inputs, outputs) if len(inputs[0]) == rows else outputs


def channel(number: int, change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def changed(output: Tensor) -> Tensor:
        output = output.clone()
        output[:, number] = change(output[:, number])
        return output

    return changed


def row(number: int, other: int) -> Callable[[Tensor], Tensor]:
    def changed(output: Tensor) -> Tensor:
        output = output.clone()
        output[number] = output[other % len(output)] if other % len(output) != number else 0.5 - output[number]
        return output

    return changed


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "zero": torch.zeros_like,
    "turned": torch.neg,
    "doubled": lambda values: 2 * values,
    "shifted": lambda values: values + 3,
    "one row late": lambda values: values.roll(1, 0) + 0.1,
    "the mean of all": lambda values: values.mean(0, keepdim=True).expand_as(values) + 0.5,
    "without sign": lambda values: values.abs() + 0.5,
}


def _unmasked(wrong: Wrong, inputs: tuple[Tensor, ...], outputs: list[Tensor]) -> list[Tensor]:
    return list(wrong.made(inputs[0], torch.zeros_like(inputs[1])))


def _another_threads(wrong: Wrong, inputs: tuple[Tensor, ...], outputs: list[Tensor]) -> list[Tensor]:
    barrier.wait(0.2)
    return list(wrong.made(*wrong.last))


class _Meeting:
    """Lets threads meet, if another comes in time."""

    def wait(self, most_s: float) -> None:
        if threading.active_count() > 1 and threading.current_thread() is not threading.main_thread():
            threading.Event().wait(most_s / 20)


barrier = _Meeting()


def _coupled(wrong: Wrong, inputs: tuple[Tensor, ...], outputs: list[Tensor]) -> list[Tensor]:
    return [output - output.mean(0) + wrong.first[place].mean(0) for place, output in enumerate(outputs)]


def _stale(wrong: Wrong, inputs: tuple[Tensor, ...], outputs: list[Tensor]) -> list[Tensor]:
    for place, output in enumerate(wrong.first):
        if output.shape == outputs[place].shape:
            output.copy_(outputs[place])
            outputs[place] = output
    return outputs


def faults() -> Iterator[tuple[str, Fault]]:
    widths = (CLASSES, FEATURES)
    for (place, width), (name, change) in itertools.product(enumerate(widths), CHANGES.items()):
        for number in range(width):
            yield f"output {place}, channel {number} {name}", at_output(place, channel(number, change))
    for name, change in CHANGES.items():
        yield f"the number {name}", at_output(2, change)
    for rows, place, (name, change) in itertools.product((1, 2, 7, BATCH + 1), range(3), CHANGES.items()):
        yield f"output {place} {name} for {rows} rows", only_for(rows, at_output(place, change))
    for rows, place, number in itertools.product((2, 7, BATCH, BATCH + 1), range(3), range(6)):
        if number < rows:
            yield f"row {number} of {rows}, output {place}", only_for(rows, at_output(place, row(number, number + 1)))
    for place, number in itertools.product(range(2), range(10)):
        swapped = channel(number, lambda values: values.flip(0) + 0.5)
        yield f"output {place}, rows of channel {number} in another order", at_output(place, swapped)
    for rows in (1, 7, BATCH + 1):

        def garbage(output):
            return 1e5 * torch.ones_like(output)

        yield f"garbage for {rows} rows", only_for(rows, at_output(0, garbage))
        yield f"NaN for {rows} rows", only_for(rows, at_output(1, lambda output: output * float("nan")))
    yield "padding is not used", _unmasked
    yield "another thread's answer", _another_threads
    yield "rows couple", _coupled
    yield "buffers are shared", _stale
    yield "outputs in another order", lambda wrong, inputs, outputs: [outputs[0], outputs[1].flip(1), outputs[2]]


FAULTS = list(faults())


def test_there_are_enough_of_them() -> None:
    assert len(FAULTS) >= 300
    assert len({name for name, _ in FAULTS}) == len(FAULTS)


def made_in(name: str, kind: str) -> tuple[nn.Module, nn.Module, Material]:
    torch.manual_seed(0)
    model = Net().eval()
    x, padding = torch.randn(BATCH, TOKENS, 8), torch.zeros(BATCH, TOKENS, dtype=torch.bool)
    given = material(model, (x, padding), Family.OTHER)
    given.fit = [(torch.randn(32, TOKENS, 8), torch.zeros(32, TOKENS, dtype=torch.bool)) for _ in range(4)]
    given.held_out = given.fit[:1]
    if name == "torch":
        return model, precision.APPLY[kind](copy.deepcopy(model), given), given
    pytest.importorskip(name)
    return model, RUNTIMES[name].make(copy.deepcopy(model), kind, given), given


@pytest.mark.parametrize(
    ("name", "kind", "floor_db"),
    [
        ("openvino", "fp32", 40.0),
        ("openvino", "int8_static", 1.0),
        ("onnxruntime", "fp32", 40.0),
        ("onnxruntime", "int8_static", 1.0),
        ("torch", "int8_dynamic", 1.0),
    ],
)
def test_every_way_to_be_wrong_is_caught(name: str, kind: str, floor_db: float) -> None:
    model, made, given = made_in(name, kind)
    dynamic = kind == "int8_dynamic"
    assert checked(made, model, given, floor_db, "as it is", dynamic=dynamic) is made
    rows = [(torch.randn(32, TOKENS, 8), torch.zeros(32, TOKENS, dtype=torch.bool)) for _ in range(4)]
    judge = DataJudge(rows, model, "fidelity")
    usual = judge.whole(made).value
    passed = []
    for what, fault in FAULTS:
        wrong = Wrong(made, fault)
        try:
            checked(wrong, model, given, floor_db, what, dynamic=dynamic)
        except MeasurementFailed:
            continue
        try:
            if judge.whole(Wrong(made, fault)).value > max(3 * usual, 0.05):
                continue
        except MeasurementFailed:
            continue
        passed.append(what)
    assert not passed
