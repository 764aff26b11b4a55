"""How much accuracy a model has lost: by the user's function, by labels, or by fidelity to the original."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from model_opt.compression.inputs import Inputs, batch_size, call, output
from model_opt.errors import MeasurementFailed

PART_ROWS = 64
"""The first look at a plan's accuracy takes this many rows, or a quarter of them all if that is more."""


@dataclass(frozen=True, kw_only=True)
class Drop:
    """Accuracy lost, as a share (0.01 is one point); `error` is its standard error as an estimate for other data.

    `rows` is how many rows it was told from; `whole` says whether those were all.
    """

    value: float
    error: float
    rows: int
    whole: bool


class Judge(Protocol):
    """Tells a model's accuracy drop. `source` names how, for the result."""

    source: str
    baseline: float
    """The original's own accuracy under this judge."""

    def part(self, model: nn.Module) -> Drop | None:
        """A first look from a part of the data; None where only the whole can be had."""

    def whole(self, model: nn.Module) -> Drop:
        """The drop on all the data. Raises `MeasurementFailed` if the outputs or the accuracy are not finite."""


class FunctionJudge:
    """The user's `eval_fn(model) -> accuracy`, higher is better; it takes all its data each time."""

    source = "eval_fn"

    def __init__(self, function: Callable[[nn.Module], float], original: nn.Module) -> None:
        self._function = function
        self.baseline = self._accuracy(original)

    def part(self, model: nn.Module) -> Drop | None:
        """None: the function's data cannot be cut."""
        return None

    def whole(self, model: nn.Module) -> Drop:
        """Baseline minus `eval_fn(model)`."""
        return Drop(value=self.baseline - self._accuracy(model), error=0.0, rows=0, whole=True)

    def _accuracy(self, model: nn.Module) -> float:
        value = float(self._function(model))
        if not np.isfinite(value):
            raise MeasurementFailed(f"eval_fn returned {value}")
        return value


class LabelJudge:
    """Top-1 accuracy on labelled batches, compared row by row with the original's."""

    source = "labelled data"

    def __init__(self, batches: Sequence[tuple[Inputs, Tensor]], original: nn.Module) -> None:
        self._batches = list(batches)
        self._right = [_top1(original, inputs) == labels.cpu() for inputs, labels in self._batches]
        self.baseline = float(torch.cat(self._right).float().mean())

    def part(self, model: nn.Module) -> Drop | None:
        """The drop on the first batches, `PART_ROWS` rows or a quarter."""
        return self._drop(model, _first_look([len(labels) for _, labels in self._batches]))

    def whole(self, model: nn.Module) -> Drop:
        """The drop on all batches."""
        return self._drop(model, len(self._batches))

    def _drop(self, model: nn.Module, count: int) -> Drop:
        pairs = zip(self._batches[:count], self._right[:count], strict=True)
        lost = torch.cat([right.float() - (_top1(model, x) == y.cpu()).float() for (x, y), right in pairs])
        return _mean_drop(lost, whole=count == len(self._batches))


class FidelityJudge:
    """Agreement with the original on inputs without labels.

    For a classifier (one row of scores an input) the share of rows whose top-1 class differs from the original's; for
    anything else the relative L2 error of the outputs.
    """

    def __init__(self, batches: Sequence[Inputs], original: nn.Module, source: str) -> None:
        self.source = source
        self.baseline = 1.0
        self._batches = list(batches)
        self._expected = [_outputs(original, inputs) for inputs in self._batches]
        self.classifier = all(expected.ndim == 2 and expected.shape[1] > 1 for expected in self._expected)

    def part(self, model: nn.Module) -> Drop | None:
        """The drop on the first batches, `PART_ROWS` rows or a quarter."""
        return self._drop(model, _first_look([batch_size(inputs) for inputs in self._batches]))

    def whole(self, model: nn.Module) -> Drop:
        """The drop on all batches."""
        return self._drop(model, len(self._batches))

    def _drop(self, model: nn.Module, count: int) -> Drop:
        lost = []
        for inputs, expected in zip(self._batches[:count], self._expected[:count], strict=True):
            made = _outputs(model, inputs)
            if self.classifier:
                lost.append((made.argmax(1) != expected.argmax(1)).float())
            else:
                error = (made - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1).clamp_min(1e-12)
                lost.append(error)
        return _mean_drop(torch.cat(lost), whole=count == len(self._batches))


def _first_look(rows: Sequence[int]) -> int:
    """How many of the batches, of `rows` rows each, a first look takes."""
    wanted = max(PART_ROWS, sum(rows) / 4)
    return int(np.searchsorted(np.cumsum(rows), min(wanted, sum(rows)))) + 1


def _mean_drop(lost: Tensor, *, whole: bool) -> Drop:
    """Mean and standard error of one value a row; half a row is added on either side, so none claims certainty."""
    rows = len(lost)
    spread = float(((lost - lost.mean()) ** 2).sum()) + 0.5
    return Drop(value=float(lost.mean()), error=float(np.sqrt(spread)) / rows, rows=rows, whole=whole)


def _outputs(model: nn.Module, inputs: Inputs) -> Tensor:
    with torch.inference_mode():
        made = output(call(model, inputs)).float().cpu()
    if not torch.isfinite(made).all():
        raise MeasurementFailed("outputs are not finite on the data that accuracy is told from")
    return made


def _top1(model: nn.Module, inputs: Inputs) -> Tensor:
    return _outputs(model, inputs).argmax(1)
