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
NEIGHBOURS = 0.25
"""The share of rows, those of the nearest margins, whose shifts a row might as well have had."""
FEWEST_NEIGHBOURS = 8


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

    For a classifier (one row of scores an input) the share of rows whose top-1 class differs from the original's, or
    the share to be expected (`expected_changes`) if that is larger: of many plans, the one of which no row happens to
    change its class on a few hundred rows is mostly a lucky one. For anything else the relative L2 error of the
    outputs.
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
        made = [_outputs(model, inputs) for inputs in self._batches[:count]]
        whole = count == len(self._batches)
        if self.classifier:
            return class_changes(torch.cat(self._expected[:count]), torch.cat(made), whole=whole)
        pairs = zip(made, self._expected[:count], strict=True)
        return _mean_drop(torch.cat([_relative_error(outputs, expected) for outputs, expected in pairs]), whole=whole)


def _relative_error(made: Tensor, expected: Tensor) -> Tensor:
    """L2 error of each row over the L2 norm of what was expected, `[rows]`."""
    lengths: Tensor = expected.flatten(1).norm(dim=1)
    errors: Tensor = (made - expected).flatten(1).norm(dim=1)
    return errors / lengths.clamp_min(1e-12)


def expected_changes(expected: Tensor, made: Tensor) -> float:
    """The share of rows like these whose top-1 class can be expected to change, from scores `[rows, classes]` before
    and after.

    A row's class changes where its margin, of the first class over the best other, becomes negative. How far a margin
    shifts is taken to be as with the rows of similar margins: each row's probability is the share of those whose shift
    would undo it. So a shift counts wherever it might have happened, which varies less than the count of where it did
    (two plans of a residual CNN changed 2.0 % of 250 digits each; 0.9 % and 1.6 % were expected, and of 1,000 other
    digits 1.1 % and 1.2 % changed).
    """
    first = expected.argmax(1, keepdim=True)
    margin, order = _margin(expected, first).sort(stable=True)
    shift = _margin(made, first)[order] - margin
    rows = len(margin)
    near = min(rows, max(FEWEST_NEIGHBOURS, round(NEIGHBOURS * rows)))
    start = (torch.arange(rows) - near // 2).clamp(0, rows - near)
    shifted = margin[:, None] + shift.unfold(0, near, 1)[start]
    return float((shifted < 0).double().mean())


def _margin(scores: Tensor, first: Tensor) -> Tensor:
    """The score of the class `first`, `[rows, 1]`, less the best other's: `[rows]`."""
    others = scores.scatter(1, first, -torch.inf).amax(1)
    return scores.gather(1, first).squeeze(1) - others


def class_changes(expected: Tensor, made: Tensor, *, whole: bool) -> Drop:
    """The share of rows whose top-1 class changed, or can be expected to change where that is more; scores
    `[rows, classes]` before and after. The error is that of a count."""
    rows = len(made)
    counted = float((made.argmax(1) != expected.argmax(1)).double().mean())
    value = max(counted, expected_changes(expected, made))
    return Drop(value=value, error=float(np.sqrt(rows * value * (1 - value) + 0.5)) / rows, rows=rows, whole=whole)


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
