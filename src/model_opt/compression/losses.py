"""What is lost of one output, by its kind: scores of classes, answers that labels know, whole numbers, or quantities.

What an output is, its width does not tell: two columns are two classes, or a systolic and a diastolic pressure. So
classes are told from labels, from what the model declares, or from the data; in doubt an output is judged as both, and
the worse counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from model_opt.compression.closeness import by_channel
from model_opt.compression.stages import weighted_layers
from model_opt.errors import InvalidInput, MeasurementFailed

NEIGHBOURS = 0.25
"""The share of rows, those of the nearest margins, whose shifts a row might as well have had."""
FEWEST_NEIGHBOURS = 8
CONFIDENT, MANY_CLASSES = 0.8, 8.0
"""Columns are classes where a softmax of them is this sure of one on average, and names at least half of them, or this
many, about as often as one another: columns of standard normal numbers are 0.3 sure, pixels' places name a few."""
MANY_CHANNELS, LEAST_SPREAD = 16, 0.1
"""Of more channels than this, one that varies less than this share of the median one is held to vary so much."""
CONSTANT = 1e-3
"""A channel that varies by less than this share of its size is constant: its errors are relative to its size."""
_LOOKED_AT = 20_000
_HEADS = frozenset({"fc", "classifier", "head", "heads", "logits", "lm_head", "cls", "segmentation_head"})
_DECLARED = ("num_classes", "num_labels", "n_classes", "vocab_size")


@dataclass(frozen=True, kw_only=True)
class Drop:
    """Accuracy lost, as a share (0.01 is one point); `error` is its standard error as an estimate for other data.

    `rows` is how many rows it was told from; `whole` says whether those were all. `of` says what was lost, where an
    answer has several parts or may be judged in several ways.
    """

    value: float
    error: float
    rows: int
    whole: bool
    of: str = ""

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


@dataclass(frozen=True, kw_only=True)
class Losses:
    """How one output is judged; `accuracy` is the original's, where labels are of this output."""

    losses: Sequence[Loss]
    accuracy: float | None = None


def losses_of(expected: Sequence[Tensor], declared: frozenset[int], labels: Sequence[Tensor] | None) -> Losses:
    """The losses of an output that the original has as `expected`, batch by batch.

    `declared` are the numbers of classes that the model names; `labels` are class indices `[rows]`, for an output that
    can have any. Raises `InvalidInput` for labels that this output cannot have.
    """
    first = expected[0]
    scores = first.is_floating_point()
    if labels is not None and len(first) == len(labels[0]) and first.dim() <= 2:
        known = Labelled(expected, labels)
        return Losses(losses=[known], accuracy=known.accuracy)
    if not scores:
        return Losses(losses=[Changed(expected)])
    width = by_channel(first).shape[2]
    classes = None if width < 2 or first.dim() < 2 else _are_classes(expected, declared)
    if classes:
        return Losses(losses=[Classes(expected)])
    if classes is None and width >= 2 and first.dim() >= 2:
        doubt = (
            f"its {width} columns may be scores of classes or quantities: judged as both, the worse counts (labels or "
            "an eval_fn settle it)"
        )
        return Losses(losses=[Classes(expected), replace(Quantities.of(expected), doubt=doubt)])
    return Losses(losses=[Quantities.of(expected)])


def declared_classes(model: nn.Module) -> frozenset[int]:
    """The numbers of classes that a model names: as an attribute of it or its `config`, or by what its last layers are
    called."""
    owners = [model, getattr(model, "config", None)]
    found = {getattr(owner, name, None) for owner in owners for name in _DECLARED}
    for name, layer in weighted_layers(model):
        if _HEADS & set(name.split(".")):
            found.add(getattr(layer, "out_features", getattr(layer, "out_channels", None)))
    return frozenset(number for number in found if isinstance(number, int) and not isinstance(number, bool))


def _are_classes(expected: Sequence[Tensor], declared: frozenset[int]) -> bool | None:
    """Whether the columns of an output are scores of classes; None where that cannot be told."""
    rows = torch.cat([by_channel(one).flatten(0, 1) for one in expected])
    rows = rows[:: -(-len(rows) // _LOOKED_AT)].double()
    width = rows.shape[1]
    shares = [rows, rows.exp()]  # probabilities, or their logarithms
    if any(bool((s >= -1e-4).all()) and bool(((s.sum(1) - 1).abs() < 1e-2).all()) for s in shares):
        return True
    if width in declared:
        return True
    likely, named = rows.softmax(1).max(1)
    counts = torch.bincount(named, minlength=width).double() / len(rows)
    entropy = float(-(counts * counts.clamp_min(1e-12).log()).sum())
    sure = width > 2 and float(likely.mean()) >= CONFIDENT and np.exp(entropy) >= min(width / 2, MANY_CLASSES)
    return True if sure else None


def _pairs(expected: Sequence[Tensor], made: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    pairs = list(zip(expected[: len(made)], made, strict=True))
    for wanted, got in pairs:
        if wanted.shape != got.shape:
            raise MeasurementFailed(f"an output has shape {tuple(got.shape)}, not {tuple(wanted.shape)}")
    return pairs


class Labelled:
    """Share of rows whose class is the label, compared row by row with the original's."""

    def __init__(self, expected: Sequence[Tensor], labels: Sequence[Tensor]) -> None:
        """Raises `InvalidInput` for labels that are no classes of this output."""
        self._labels = list(labels)
        every, rows = torch.cat(self._labels), torch.cat([one.reshape(len(one), -1) for one in expected])
        self._binary = rows.is_floating_point() and rows.shape[1] == 1
        self._at = 0.5 if self._binary and float(rows.min()) >= 0 and float(rows.max()) <= 1 else 0.0
        classes = 2 if self._binary else rows.shape[1] if rows.is_floating_point() else None
        if classes is not None and (int(every.min()) < 0 or int(every.max()) >= classes):
            raise InvalidInput(
                f"the labels of calibration_data go from {int(every.min())} to {int(every.max())}, but the model's "
                f"output tells {classes} classes, 0 to {classes - 1}: are they counted from one, or another model's?"
            )
        self._right = [self._named(one) == label for one, label in zip(expected, self._labels, strict=True)]
        self.accuracy = float(torch.cat(self._right).float().mean())
        commonest = float(every.bincount().max()) / len(every) if int(every.min()) >= 0 else 1.0
        poor = self.accuracy <= commonest < 1
        self.doubt = (
            f"the original is right for {self.accuracy:.1%} of the labelled rows, no more than always naming the "
            f"commonest class is ({commonest:.1%}): are labels and preprocessing those that it was trained with?"
            if poor
            else ""
        )

    def _named(self, output: Tensor) -> Tensor:
        flat = output.reshape(len(output), -1)
        if not output.is_floating_point():
            return flat[:, 0]
        return (flat[:, 0] > self._at).long() if self._binary else flat.argmax(1)

    def drop(self, made: Sequence[Tensor], *, whole: bool) -> Drop:
        """The share of rows that the original has right, less those that are still right."""
        parts = zip(self._right, made, self._labels, strict=False)
        lost = torch.cat([right.float() - (self._named(one) == label).float() for right, one, label in parts])
        return mean_drop(lost, whole=whole).named("right answers")


class Classes:
    """Agreement with the original's classes.

    For one row of scores an input the share of rows whose class is another, or the share to be expected
    (`expected_changes`) if that is larger: of many plans, the one of which no row happens to change its class on a few
    hundred rows is mostly a lucky one. For maps and sequences of scores the share of places.
    """

    def __init__(self, expected: Sequence[Tensor]) -> None:
        self._expected = expected
        named = torch.cat([by_channel(one).argmax(2).flatten() for one in expected])
        alike = len(named) > 1 and bool((named == named[0]).all())
        self.doubt = "the original names one class for all of the data, which says little of others" if alike else ""

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
        scale = torch.where(spread > CONSTANT * size, spread, size)
        if len(scale) > MANY_CHANNELS:
            scale = scale.clamp_min(LEAST_SPREAD * float(scale.median()))
        return cls(expected=expected, scale=scale.clamp_min(1e-12))

    def drop(self, made: Sequence[Tensor], *, whole: bool) -> Drop:
        """The largest relative error of a channel."""
        pairs = _pairs(self.expected, made)
        squares = torch.cat([(by_channel(got).double() - by_channel(wanted)).square().mean(1) for wanted, got in pairs])
        rows = len(squares)
        relative = (squares / self.scale.square()).mean(0)  # a channel
        worst = int(relative.argmax())
        value = float(relative[worst].sqrt())
        spread = float((squares[:, worst] / self.scale[worst] ** 2).std(correction=0))
        error = spread / (2 * value * np.sqrt(rows)) if value else 0.0
        return Drop(value=value, error=max(error, 0.5 * value / rows), rows=rows, whole=whole, of="relative error")


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
