"""How much accuracy a model has lost: by the user's function, by labels, or by fidelity to the original.

Every tensor of the output is looked at, each by the losses of its kind (`kind.py`); the worst of them is the drop.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from model_opt.compression.evaluation.kind import FloatTargets, Kind, declared_classes, losses_of
from model_opt.compression.evaluation.losses import Drop, Loss
from model_opt.compression.inputs import Inputs, all_finite, answers, batch_size
from model_opt.compression.interface import output_names
from model_opt.errors import InvalidInput, MeasurementFailed, UnknownName, ran_out_of_memory

JudgeAs = Mapping[str, str] | str | None
"""The kind (`Kind`) of all outputs, or of some by name."""
EvalFn = Callable[[nn.Module], Any]
"""Takes a model and returns its score or scores (`FunctionJudge`)."""
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
    """The user's `eval_fn(model)`: a score, or several by name, of which the one that loses most counts. It takes all
    its data each time.

    A score is an accuracy, a share in [0, 1] of which more is better, or (number, "max" or "min"), of which more or
    less is better.
    """

    source = "eval_fn"
    warnings: tuple[str, ...] = ()

    def __init__(self, function: EvalFn, original: nn.Module) -> None:
        """Raises `InvalidInput` where the function raises, or returns something else, for the original."""
        self._function = function
        try:
            self._before = self._scores(original)
        except MeasurementFailed as error:
            raise InvalidInput(str(error)) from error
        self.baseline = next((score.value for score in self._before.values() if score.is_accuracy), 1.0)

    def part(self, model: nn.Module) -> Drop | None:
        """None: the function's data cannot be cut."""
        return None

    def whole(self, model: nn.Module) -> Drop:
        """How much worse the scores are than the original's, the largest of them: by how much where both are shares,
        else relative to the original's."""
        after = self._scores(model)
        if after.keys() != self._before.keys():
            raise MeasurementFailed(f"eval_fn returned {sorted(after)}, and {sorted(self._before)} for the original")
        lost = [
            Drop(value=before.lost(after[of]), error=0.0, rows=0, whole=True, of=of)
            for of, before in self._before.items()
        ]
        return Drop.worst(lost)

    def _scores(self, model: nn.Module) -> dict[str, "_Score"]:
        try:
            returned = self._function(model)
        except Exception as error:
            if ran_out_of_memory(error):
                raise
            raise MeasurementFailed(f"eval_fn raised {type(error).__name__}: {error}") from error
        if isinstance(returned, Mapping) and not returned:
            raise MeasurementFailed("eval_fn returned an empty mapping")
        by_name = returned if isinstance(returned, Mapping) else {"": returned}
        return {name: _score(given, name) for name, given in by_name.items()}


@dataclass(frozen=True, kw_only=True)
class _Score:
    value: float
    more_is_better: bool

    @property
    def is_accuracy(self) -> bool:
        return self.more_is_better and 0 <= self.value <= 1

    def lost(self, after: "_Score") -> float:
        worse = self.value - after.value if self.more_is_better else after.value - self.value
        shares = all(0 <= one.value <= 1 for one in (self, after))
        return worse if shares else worse / max(abs(self.value), 1e-12)


_DIRECTIONS = {"max": True, "min": False}
_LESS_IS_BETTER = frozenset(
    {"loss", "error", "err", "wer", "cer", "mse", "rmse", "mae", "nll", "perplexity", "ppl", "fid"}
)


def _score(given: Any, name: str) -> _Score:
    """What `eval_fn` returned for `name`. Raises `MeasurementFailed` where it is no score, or may be a loss."""
    said = f"{given!r} for {name!r}" if name else repr(given)
    told = isinstance(given, tuple | list) and len(given) == 2 and str(given[1]) in _DIRECTIONS
    try:
        value = float(given[0] if told else given)
    except (TypeError, ValueError) as error:
        raise MeasurementFailed(f"eval_fn returned {said}: {_WANTED}") from error
    if not math.isfinite(value):
        raise MeasurementFailed(f"eval_fn returned {said}, which is not finite")
    doubtful = not 0 <= value <= 1 or bool(_LESS_IS_BETTER & set(re.split(r"[^a-z]+", name.lower())))
    if doubtful and not told:
        raise MeasurementFailed(f"eval_fn returned {said}: {_WANTED}")
    return _Score(value=value, more_is_better=_DIRECTIONS[given[1]] if told else True)


_WANTED = (
    "it must return an accuracy, a share in [0, 1] of which more is better (divide a percentage by 100), or say which "
    'is better: (2.31, "min") for a loss, (31.4, "max") for a signal-to-noise ratio'
)


class DataJudge:
    """Agreement with the original on batches of inputs, or with labels where there are any.

    Labels (classes, `[rows]` each batch) are of the first output that they can be of; the others must agree.
    """

    def __init__(
        self,
        batches: Sequence[Inputs],
        original: nn.Module,
        source: str,
        labels: Sequence[Tensor] | None = None,
        judge_as: JudgeAs = None,
        targets: FloatTargets | None = None,
    ) -> None:
        """`targets` are those of the data that are no labels. Raises `InvalidInput` for labels or kinds of outputs that
        cannot be this model's."""
        self.source = source if labels is None else "labelled data"
        self._batches = list(batches)
        expected = [finite_answers(original, inputs) for inputs in self._batches]
        columns = [list(column) for column in zip(*expected, strict=True)]
        names = output_names(original, self._batches[0])
        kinds = _kinds(judge_as, names)
        declared = declared_classes(original)
        self._losses: list[tuple[int, Loss]] = []
        self.baseline = 1.0
        for place, (column, kind) in enumerate(zip(columns, kinds, strict=True)):
            known = None if labels is None else [one.cpu() for one in labels]
            found = losses_of(column, declared, known, kind, targets)
            if found.accuracy is not None and labels is not None:
                self.baseline, labels = found.accuracy, None
            self._losses += [(place, loss) for loss in found.losses]
        if labels is not None:
            shapes = ", ".join(str(list(column[0].shape)) for column in columns)
            raise InvalidInput(
                f"the labels of calibration_data ({list(labels[0].shape)}) are of none of the model's outputs "
                f"({shapes}): leave them out, or let the model return what they are of"
            )
        self._names = [f"{name}: " if len(columns) > 1 else "" for name in names]
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
        return Drop.worst(drops)


def _kinds(judge_as: JudgeAs, names: Sequence[str]) -> list[Kind | None]:
    """The kind of each output that the user names. Raises `InvalidInput` or `UnknownName`."""
    if judge_as is None:
        return [None] * len(names)
    by_name = judge_as if isinstance(judge_as, Mapping) else dict.fromkeys(names, judge_as)
    for name, kind in by_name.items():
        if name not in names:
            raise UnknownName("output in judge_as:", name, names)
        if kind not in tuple(Kind):
            raise UnknownName("kind of output in judge_as:", kind, tuple(Kind))
    return [Kind(by_name[name]) if name in by_name else None for name in names]


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
    if not all_finite(found):
        raise MeasurementFailed("outputs are not finite on the data that accuracy is told from")
    return found
