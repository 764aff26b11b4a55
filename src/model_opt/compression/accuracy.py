"""How much accuracy a model has lost: by the user's function, by labels, or by fidelity to the original.

Every tensor of the output is looked at, each by the losses of its kind (`losses.py`); the worst of them is the drop.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from model_opt.compression.inputs import Inputs, batch_size
from model_opt.compression.interface import answers
from model_opt.compression.losses import Drop, Loss, declared_classes, losses_of
from model_opt.errors import InvalidInput, MeasurementFailed

PART_ROWS = 64
"""The first look at a plan's accuracy takes this many rows, or a quarter of them all if that is more."""
FEW_ROWS = 30
"""With fewer rows than this the user is told that they say little."""


class Judge(Protocol):
    """Tells a model's accuracy drop. `source` names how, for the result; `warnings` say what makes it doubtful."""

    source: str
    warnings: tuple[str, ...]
    baseline: float
    """The original's own accuracy under this judge."""

    def part(self, model: nn.Module) -> Drop | None:
        """A first look from a part of the data; None where only the whole can be had."""

    def whole(self, model: nn.Module) -> Drop:
        """The drop on all the data. Raises `MeasurementFailed` if the outputs or the accuracy are not finite."""


class FunctionJudge:
    """The user's `eval_fn(model)`, which returns an accuracy in [0, 1], or several by name, of which the one that loses
    most counts; it takes all its data each time."""

    source = "eval_fn"
    warnings: tuple[str, ...] = ()

    def __init__(self, function: Callable[[nn.Module], float | Mapping[str, float]], original: nn.Module) -> None:
        """Raises `InvalidInput` where the function raises, or returns something else, for the original."""
        self._function = function
        try:
            self._before = self._shares(original)
        except MeasurementFailed as error:
            raise InvalidInput(str(error)) from error
        self.baseline = next(iter(self._before.values()))

    def part(self, model: nn.Module) -> Drop | None:
        """None: the function's data cannot be cut."""
        return None

    def whole(self, model: nn.Module) -> Drop:
        """What `eval_fn` returned for the original minus what it returns now, the largest of them."""
        after = self._shares(model)
        if after.keys() != self._before.keys():
            raise MeasurementFailed(f"eval_fn returned {sorted(after)}, and {sorted(self._before)} for the original")
        lost = {name: self._before[name] - share for name, share in after.items()}
        worst = max(lost, key=lambda name: lost[name])
        return Drop(value=lost[worst], error=0.0, rows=0, whole=True, of=worst)

    def _shares(self, model: nn.Module) -> dict[str, float]:
        try:
            returned = self._function(model)
        except Exception as error:
            raise MeasurementFailed(f"eval_fn raised {type(error).__name__}: {error}") from error
        return {name: _share(value, name) for name, value in _by_name(returned).items()}


def _by_name(returned: Any) -> Mapping[str, Any]:
    if isinstance(returned, Mapping) and not returned:
        raise MeasurementFailed("eval_fn returned an empty mapping")
    return returned if isinstance(returned, Mapping) else {"": returned}


def _share(value: Any, name: str) -> float:
    """`value` as an accuracy; raises `MeasurementFailed` for what cannot be one."""
    said = f"{value!r} for {name!r}" if name else repr(value)
    try:
        share = float(value)
    except (TypeError, ValueError) as error:
        raise MeasurementFailed(f"eval_fn returned {said}: it must return a number in [0, 1]") from error
    if not 0 <= share <= 1:
        raise MeasurementFailed(
            f"eval_fn returned {said}: it must return an accuracy, a share in [0, 1] of which more is better. Divide a "
            "percentage by 100; of a loss that has no such scale return exp(-loss)"
        )
    return share


class DataJudge:
    """Agreement with the original on batches of inputs, or with labels where there are any.

    Labels (classes, `[rows]` each batch) are of the first output that they can be of; the others must agree.
    """

    def __init__(
        self, batches: Sequence[Inputs], original: nn.Module, source: str, labels: Sequence[Tensor] | None = None
    ) -> None:
        """Raises `InvalidInput` for labels that cannot be this model's."""
        self.source = source if labels is None else "labelled data"
        self._batches = list(batches)
        expected = [finite_answers(original, inputs) for inputs in self._batches]
        columns = [list(column) for column in zip(*expected, strict=True)]
        declared = declared_classes(original)
        self._losses: list[tuple[int, Loss]] = []
        self.baseline = 1.0
        for place, column in enumerate(columns):
            found = losses_of(column, declared, None if labels is None else [one.cpu() for one in labels])
            if found.accuracy is not None and labels is not None:
                self.baseline, labels = found.accuracy, None
            self._losses += [(place, loss) for loss in found.losses]
        if labels is not None:
            shapes = ", ".join(str(list(column[0].shape)) for column in columns)
            raise InvalidInput(f"calibration_data has class indices, but no output can be scores of classes ({shapes})")
        self._names = [f"output {place + 1}: " if len(columns) > 1 else "" for place in range(len(columns))]
        self.warnings = tuple(self._doubts())

    def _doubts(self) -> list[str]:
        rows = sum(batch_size(inputs) for inputs in self._batches)
        said = [f"accuracy is told from {rows} rows: that says little"] if rows < FEW_ROWS else []
        said += [f"{self._names[place]}{loss.doubt}" for place, loss in self._losses if loss.doubt]
        return said

    def part(self, model: nn.Module) -> Drop | None:
        """The drop on the first batches, `PART_ROWS` rows or a quarter."""
        return self._drop(model, _first_look([batch_size(inputs) for inputs in self._batches]))

    def whole(self, model: nn.Module) -> Drop:
        """The drop on all batches."""
        return self._drop(model, len(self._batches))

    def _drop(self, model: nn.Module, count: int) -> Drop:
        made = [finite_answers(model, inputs) for inputs in self._batches[:count]]
        drops = []
        for place, loss in self._losses:
            lost = loss.drop([outputs[place] for outputs in made], whole=count == len(self._batches))
            drops.append(lost.named(self._names[place] + lost.of if len(self._losses) > 1 else ""))
        return max(drops, key=lambda drop: drop.value)


def _first_look(rows: Sequence[int]) -> int:
    """How many of the batches, of `rows` rows each, a first look takes."""
    wanted = max(PART_ROWS, sum(rows) / 4)
    return int(np.searchsorted(np.cumsum(rows), min(wanted, sum(rows)))) + 1


def finite_answers(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """`answers` on the processor, floats as float32. Raises `MeasurementFailed` where floats are not finite, and where
    the model refuses the inputs."""
    try:
        made = answers(model, inputs)
    except InvalidInput as error:
        raise MeasurementFailed(f"what calibration_data holds is refused: {error}") from error
    if not made:
        raise MeasurementFailed("the output holds no tensor")
    found = [tensor.float().cpu() if tensor.is_floating_point() else tensor.cpu() for tensor in made]
    if not all(bool(torch.isfinite(tensor).all()) for tensor in found if tensor.is_floating_point()):
        raise MeasurementFailed("outputs are not finite on the data that accuracy is told from")
    return found
