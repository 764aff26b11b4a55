"""What is lost of one output: of scores of classes, answers that labels know, whole numbers, embeddings, quantities."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from model_opt.compression.signal_to_noise import by_channel
from model_opt.errors import InvalidInput, MeasurementFailed

NEIGHBOURS = 0.25
"""The share of rows, those of the nearest margins, whose shifts a row might as well have had."""
FEWEST_NEIGHBOURS = 8
MANY_CHANNELS, LEAST_SPREAD = 16, 0.1
"""Of more channels than this, one that varies less than this share of the median one is held to vary so much."""
CONSTANT = 1e-3
"""A channel that varies by less than this share of its size is constant: its errors are relative to its size."""
TAILS = 30.0
"""The kurtosis that errors are taken to have at least. Of a few hundred rows none may be the one in five hundred that
lies beyond what int8 was calibrated for: two regressors of `benchmarks/true_loss.py` had 2 and 19 on the 500 rows that
judged, 320 and 127 on 6,000 others."""
NEAR = 0.01
"""A row's nearest neighbour is kept where the new one was as near as the old one within this cosine."""
NO_LABEL = (-100, -1, 255)
"""What loaders write at places that have no label: torch's `ignore_index`, and the border of segmentation maps."""


@dataclass(frozen=True, kw_only=True)
class Drop:
    """Accuracy lost, as a share (0.01 is one point); `error` is its standard error as an estimate for other data.

    `rows` is how many rows it was told from; `whole` says whether those were all. `of` says what was lost, where an
    answer has several parts or may be judged in several ways, and `others` what was lost of them.
    """

    value: float
    error: float
    rows: int
    whole: bool
    of: str = ""
    others: Mapping[str, float] = field(default_factory=dict)

    @staticmethod
    def worst(drops: Sequence["Drop"]) -> "Drop":
        """The one with the largest value, and what the others are."""
        drop = max(drops, key=lambda one: one.value)
        return replace(drop, others={one.of: one.value for one in drops if one is not drop})

    def named(self, of: str) -> "Drop":
        """The same, said of `of`."""
        return replace(self, of=of)


class Loss(Protocol):
    """One way to judge one output."""

    @property
    def doubt(self) -> str:
        """What the user should know of it, or ""."""

    def drop(self, made: Sequence[Tensor], *, whole: bool) -> Drop:
        """What is lost by `made`, the output for the first batches. Raises `MeasurementFailed` for other shapes."""


def _pairs(expected: Sequence[Tensor], made: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    pairs = list(zip(expected[: len(made)], made, strict=True))
    for wanted, got in pairs:
        if wanted.shape != got.shape:
            raise MeasurementFailed(f"an output has shape {tuple(got.shape)}, not {tuple(wanted.shape)}")
    return pairs


@dataclass(frozen=True, kw_only=True)
class _Told:
    """How labels tell what is right of an output: the share for each row, `[rows]`, and what that of an answer is which
    looks at no input, or None where nobody would give one."""

    of: str
    right: Callable[[Tensor, Tensor], Tensor]
    chance: float | None = None


def _told_by(labels: Sequence[Tensor], expected: Sequence[Tensor]) -> _Told | None:
    """How `labels` tell what is right of an output, or None where they are not of this one."""
    first, label = expected[0], labels[0]
    if len(first) != len(label):
        return None
    every = torch.cat([one.flatten() for one in labels])
    if label.dim() == 1 and first.dim() <= 2:
        return _classes_told(every, expected)
    if first.shape == label.shape and first.is_floating_point() and bool(((every == 0) | (every == 1)).all()):
        return _Told(of="labels by row", right=partial(_overlap, at=_threshold(expected)))
    if first.shape == label.shape and not first.is_floating_point():
        return _Told(of="right places", right=partial(_right_places, classes=None), chance=_commonest(every))
    if first.is_floating_point() and first.dim() == label.dim() + 1:
        axis = next(
            (a for a, others in ((1, first.shape[2:]), (-1, first.shape[1:-1])) if others == label.shape[1:]), None
        )
        if axis is not None:
            classes = int(first.shape[axis])
            known = every[~_left_out(every, classes)]
            _check_classes(known, classes)
            right = partial(_right_places, classes=classes, axis=axis)
            return _Told(of="right places", right=right, chance=_commonest(known))
    return None


def _classes_told(every: Tensor, expected: Sequence[Tensor]) -> _Told:
    """Labels `[rows]` of scores `[rows, classes]`, of one logit or probability a row, or of classes themselves."""
    first = expected[0]
    if not first.is_floating_point():
        right = partial(_right_classes, at=None)
    elif first.reshape(len(first), -1).shape[1] == 1:
        _check_classes(every, 2)
        right = partial(_right_classes, at=_threshold(expected))
    else:
        _check_classes(every, first.shape[1])
        right = partial(_right_classes, at=None)
    return _Told(of="right answers", right=right, chance=_commonest(every))


def _check_classes(labels: Tensor, classes: int) -> None:
    """Raises `InvalidInput` for labels that are none of so many classes."""
    if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= classes):
        raise InvalidInput(
            f"the labels of calibration_data go from {int(labels.min())} to {int(labels.max())}, but the model's "
            f"output tells {classes} classes, 0 to {classes - 1}: are they counted from one, or another model's?"
        )


def _threshold(expected: Sequence[Tensor]) -> float:
    """Where yes begins: at a half of probabilities, at zero of logits."""
    low, high = min(float(one.min()) for one in expected), max(float(one.max()) for one in expected)
    return 0.5 if low >= 0 and high <= 1 else 0.0


def _commonest(labels: Tensor) -> float | None:
    """The share of the commonest label; None where there is only one."""
    counts = torch.unique(labels, return_counts=True)[1]
    return float(counts.max()) / len(labels) if len(counts) > 1 else None


def _left_out(labels: Tensor, classes: int) -> Tensor:
    """Places whose label is one of those that loaders write where there is none."""
    found = torch.zeros_like(labels, dtype=torch.bool)
    for label in NO_LABEL:
        if not 0 <= label < classes:
            found |= labels == label
    return found


def _right_classes(output: Tensor, labels: Tensor, at: float | None) -> Tensor:
    flat = output.reshape(len(output), -1)
    if at is not None:
        named = (flat[:, 0] > at).long()
    else:
        named = flat.argmax(1) if output.is_floating_point() else flat[:, 0]
    return (named == labels).double()


def _overlap(output: Tensor, labels: Tensor, at: float) -> Tensor:
    """The Jaccard index of each row: labels that are both named and true, among those that are either."""
    named, true = (output > at).flatten(1), labels.flatten(1) > 0
    either = (named | true).double().sum(1)
    return torch.where(either > 0, (named & true).double().sum(1) / either.clamp_min(1), torch.ones_like(either))


def _right_places(output: Tensor, labels: Tensor, classes: int | None, axis: int = 1) -> Tensor:
    """The share of each row's places that have the right class, of those that have a label."""
    named = output if classes is None else output.argmax(axis)
    counted = ~_left_out(labels, classes) if classes else torch.ones_like(labels, dtype=torch.bool)
    right = ((named == labels) & counted).flatten(1).double().sum(1)
    return right / counted.flatten(1).double().sum(1).clamp_min(1)


class Labelled:
    """Share of each row that is right by its labels, compared row by row with the original's."""

    @classmethod
    def of(cls, expected: Sequence[Tensor], labels: Sequence[Tensor]) -> "Labelled | None":
        """By `labels`, whole numbers `[rows, …]`; None where they are not of this output. Raises `InvalidInput` for
        what it cannot have."""
        told = _told_by(labels, expected)
        return None if told is None else cls(expected, labels, told)

    @classmethod
    def by_itself(cls, expected: Sequence[Tensor]) -> "Labelled":
        """By the yes or no that the output itself says in each column."""
        at = _threshold(expected)
        told = _Told(of="labels by row", right=partial(_overlap, at=at))
        return cls(expected, [(one > at).long() for one in expected], told)

    def __init__(self, expected: Sequence[Tensor], labels: Sequence[Tensor], told: _Told) -> None:
        self._labels, self._told = list(labels), told
        self._right = [told.right(one, label) for one, label in zip(expected, self._labels, strict=True)]
        self.accuracy = float(torch.cat(self._right).mean())
        self.doubt = (
            f"the original is right for {self.accuracy:.1%} of what is labelled, no more than always naming the "
            f"commonest class is ({told.chance:.1%}): are labels and preprocessing those that it was trained with?"
            if told.chance is not None and self.accuracy <= told.chance
            else ""
        )

    def drop(self, made: Sequence[Tensor], *, whole: bool) -> Drop:
        """The share that the original has right, less what is still right."""
        parts = zip(self._right, made, self._labels, strict=False)
        lost = torch.cat([right - self._told.right(one, label) for right, one, label in parts])
        return mean_drop(lost, whole=whole).named(self._told.of)


class Classes:
    """Agreement with the original's classes.

    For one row of scores an input the share of rows whose class is another, or the share to be expected
    (`expected_changes`) if that is larger: of many plans, the one of which no row happens to change its class on a few
    hundred rows is mostly a lucky one. For maps and sequences of scores the share of places.
    """

    def __init__(self, expected: Sequence[Tensor], doubt: str = "") -> None:
        self._expected = expected
        named = torch.cat([by_channel(one).argmax(2).flatten() for one in expected])
        alike = len(named) > 1 and bool((named == named[0]).all())
        one = "the original names one class for all of the data, which says little of others" if alike else ""
        self.doubt = "; ".join(filter(None, [doubt, one]))

    def drop(self, made: Sequence[Tensor], *, whole: bool) -> Drop:
        """The share of rows, or places, of another class."""
        pairs = _pairs(self._expected, made)
        if self._expected[0].dim() == 2:
            before, after = (torch.cat(column) for column in zip(*pairs, strict=True))
            return class_changes(before, after, whole=whole).named("classes")
        changed = [(by_channel(got).argmax(2) != by_channel(wanted).argmax(2)).float().mean(1) for wanted, got in pairs]
        return mean_drop(torch.cat(changed), whole=whole).named("classes by place")


class Changed:
    """The share of whole numbers or flags that are others."""

    doubt = ""

    def __init__(self, expected: Sequence[Tensor]) -> None:
        self._expected = expected

    def drop(self, made: Sequence[Tensor], *, whole: bool) -> Drop:
        """The mean over rows of the share that changed."""
        pairs = _pairs(self._expected, made)
        changed = [by_channel((got != wanted).float()).mean((1, 2)) for wanted, got in pairs]
        return mean_drop(torch.cat(changed), whole=whole).named("whole numbers")


@dataclass(frozen=True, kw_only=True)
class Quantities:
    """Relative error of the channel where it is largest: the root of its mean square over that of what varies in it, so
    that neither a large channel nor a large offset hides anything."""

    expected: Sequence[Tensor]
    scale: Tensor
    """What each channel's errors are relative to, `[channels]`."""
    doubt: str = ""

    @classmethod
    def of(cls, expected: Sequence[Tensor]) -> "Quantities":
        """The loss of an output that the original has as `expected`."""
        values = torch.cat([by_channel(one).flatten(0, 1) for one in expected]).double()
        spread = values.std(0, correction=0)
        size = values.square().mean(0).sqrt()
        varies = spread > CONSTANT * size
        scale = torch.where(varies, spread, size)
        if len(scale) > MANY_CHANNELS:
            scale = scale.clamp_min(LEAST_SPREAD * float(scale.median()))
        doubt = "" if len(values) < 2 or bool(varies.any()) else "the original answers all of the data alike"
        return cls(expected=expected, scale=scale.clamp_min(1e-12), doubt=doubt)

    def drop(self, made: Sequence[Tensor], *, whole: bool) -> Drop:
        """The largest relative error of a channel."""
        pairs = _pairs(self.expected, made)
        squares = torch.cat([(by_channel(got).double() - by_channel(wanted)).square().mean(1) for wanted, got in pairs])
        rows = len(squares)
        relative = (squares / self.scale.square()).mean(0)  # a channel
        worst = int(relative.argmax())
        value = float(relative[worst].sqrt())
        one = squares[:, worst] / self.scale[worst] ** 2
        kurtosis = max(TAILS, float(one.square().mean()) / value**4) if value else TAILS
        error = 0.5 * value * np.sqrt((kurtosis - 1) / rows)
        return Drop(value=value, error=error, rows=rows, whole=whole, of="relative error")


class Embeddings:
    """Rows that are compared with one another: one less their cosine with the original's, or the share of rows whose
    nearest neighbour is another one, which was not as near; the worse counts."""

    doubt = ""

    def __init__(self, expected: Sequence[Tensor]) -> None:
        self._expected = expected

    def drop(self, made: Sequence[Tensor], *, whole: bool) -> Drop:
        """The mean over rows."""
        columns = zip(*_pairs(self._expected, made), strict=True)
        before, after = (torch.nn.functional.normalize(torch.cat(c).flatten(1).double(), dim=1) for c in columns)
        cosine = mean_drop(1 - (before * after).sum(1), whole=whole).named("cosine")
        if len(before) < 3:
            return cosine
        near = before @ before.T
        farther = _nearest(near, near) - _nearest(near, after @ after.T)
        moved = mean_drop((farther > NEAR).double(), whole=whole).named("nearest neighbours")
        return max(cosine, moved, key=lambda drop: drop.value)


def _nearest(cosines: Tensor, by: Tensor) -> Tensor:
    """The cosine, `[rows]`, of each row with its nearest other row by the cosines `by`; both `[rows, rows]`."""
    others = by.clone().fill_diagonal_(-torch.inf)
    return cosines.gather(1, others.argmax(1, keepdim=True)).squeeze(1)


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


def mean_drop(lost: Tensor, *, whole: bool) -> Drop:
    """Mean and standard error of one value a row; half a row is added on either side, so none claims certainty."""
    rows = len(lost)
    spread = float(((lost - lost.mean()) ** 2).sum()) + 0.5
    return Drop(value=float(lost.mean()), error=float(np.sqrt(spread)) / rows, rows=rows, whole=whole)
