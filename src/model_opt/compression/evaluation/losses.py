"""What is lost of one output, by its kind: scores of classes, answers that labels know, whole numbers, embeddings, or
quantities.

What an output is, its width does not tell: two columns are two classes, or a systolic and a diastolic pressure. So
classes are told from labels, from what the model declares, or from the data; in doubt an output is judged as both, and
the worse counts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from model_opt.compression.signal_to_noise import by_channel
from model_opt.compression.stages import weighted_layers
from model_opt.errors import InvalidInput, MeasurementFailed

NEIGHBOURS = 0.25
"""The share of rows, those of the nearest margins, whose shifts a row might as well have had."""
FEWEST_NEIGHBOURS = 8
CONFIDENT, FEW_CLASSES, MANY_CLASSES = 0.8, 1.5, 8.0
"""Columns are classes where a softmax of them is this sure of one on average, and names at least half of them (of two
more than one now and then), or this many, about as often as one another: columns of standard normal numbers are 0.3
sure, pixels' places name a few."""
SO_MANY = 200
"""Nobody names a layer of so many quantities as if they were classes: of fewer the user is told."""
MANY_CHANNELS, LEAST_SPREAD = 16, 0.1
"""Of more channels than this, one that varies less than this share of the median one is held to vary so much."""
CONSTANT = 1e-3
"""A channel that varies by less than this share of its size is constant: its errors are relative to its size."""
TAILS = 30.0
"""The kurtosis that errors are taken to have at least. Of a few hundred rows none may be the one in five hundred that
lies beyond what int8 was calibrated for: two regressors of `benchmarks/true_loss.py` had 2 and 19 on the 500 rows that
judged, 320 and 127 on 6,000 others."""
LEAST_EMBEDDING, UNIT = 8, 1e-3
"""Rows of at least so many numbers whose length is one within this are embeddings."""
NEAR = 0.01
"""A row's nearest neighbour is kept where the new one was as near as the old one within this cosine."""
NO_LABEL = (-100, -1, 255)
"""What loaders write at places that have no label: torch's `ignore_index`, and the border of segmentation maps."""
_LOOKED_AT = 20_000
_HEADS = frozenset({"fc", "classifier", "head", "heads", "logits", "lm_head", "cls", "segmentation_head"})
_DECLARED = ("num_classes", "num_labels", "n_classes", "vocab_size")


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


class Kind(StrEnum):
    """What an output is, where the user says so."""

    CLASSES = "classes"
    """Scores of which the largest names the class."""
    LABELS = "labels"
    """Logits or probabilities, each of a yes or no of its own."""
    QUANTITIES = "quantities"
    EMBEDDING = "embedding"


@dataclass(frozen=True, kw_only=True)
class Losses:
    """How one output is judged; `accuracy` is the original's, where labels are of this output."""

    losses: Sequence[Loss]
    accuracy: float | None = None


@dataclass(frozen=True, kw_only=True)
class FloatTargets:
    """Targets that are no labels: the `shape` of a row of them; `shares` says that each row adds up to one."""

    shape: tuple[int, ...]
    shares: bool

    @classmethod
    def of(cls, targets: Sequence[Tensor]) -> "FloatTargets":
        """Those of all batches, `[rows, …]` each."""
        rows = torch.cat([one.flatten(1) if one.dim() > 1 else one.unsqueeze(1) for one in targets]).double()
        shares = rows.shape[1] > 1 and bool((rows >= 0).all()) and bool(((rows.sum(1) - 1).abs() < 1e-3).all())
        return cls(shape=tuple(targets[0].shape[1:]), shares=shares)

    def are_of(self, expected: Tensor) -> bool:
        """Whether they can be those of an output."""
        shape = tuple(expected.shape[1:])
        return expected.is_floating_point() and self._plain(shape) == self._plain(self.shape)

    @staticmethod
    def _plain(shape: tuple[int, ...]) -> tuple[int, ...]:
        return () if shape == (1,) else shape


@dataclass(frozen=True, kw_only=True)
class Declared:
    """The numbers of classes that a model names: as an attribute of it or its `config`, and by what its last layers are
    called, which those that tell quantities may be called, too."""

    counts: frozenset[int] = frozenset()
    layers: frozenset[int] = frozenset()


def losses_of(
    expected: Sequence[Tensor],
    declared: Declared,
    labels: Sequence[Tensor] | None,
    kind: Kind | None = None,
    targets: FloatTargets | None = None,
) -> Losses:
    """The losses of an output that the original has as `expected`, batch by batch; of the `kind` that is told, if any.

    `labels` are whole numbers `[rows, …]`: classes, a class for each place, or zeros and ones for each column. Where
    `targets` are of this output it is quantities, or where they are shares of one maybe scores of classes, too. Raises
    `InvalidInput` for labels that this output cannot have.
    """
    first = expected[0]
    scores = first.is_floating_point()
    told = None if labels is None else _told_by(labels, expected)
    if told is not None and labels is not None:
        known = Labelled(expected, labels, told)
        return Losses(losses=[known], accuracy=known.accuracy)
    if not scores:
        return Losses(losses=[Changed(expected)])
    if kind is None and targets is not None and targets.are_of(first):
        shares = [Classes(expected)] if targets.shares else []
        return Losses(losses=[*shares, Quantities.of(expected)])
    return Losses(losses=_of_kind(expected, kind) if kind else _of_data(expected, declared))


def _of_kind(expected: Sequence[Tensor], kind: Kind) -> list[Loss]:
    match kind:
        case Kind.CLASSES:
            return [Classes(expected)]
        case Kind.LABELS:
            at = _threshold(expected)
            told = _Told(of="labels by row", right=partial(_overlap, at=at))
            return [Labelled(expected, [(one > at).long() for one in expected], told)]
        case Kind.QUANTITIES:
            return [Quantities.of(expected)]
        case Kind.EMBEDDING:
            return [Embeddings(expected)]


def _of_data(expected: Sequence[Tensor], declared: Declared) -> list[Loss]:
    """The losses that an output's numbers, and what the model declares, call for."""
    first = expected[0]
    width = by_channel(first).shape[2]
    if width < 2 or first.dim() < 2:
        return [Quantities.of(expected)]
    if _are_classes(expected, declared):
        return [Classes(expected)]
    if width in declared.layers:
        said = (
            f"its {width} columns are taken for scores of classes, for a last layer is called as if they were "
            '(judge_as="quantities" says otherwise)'
        )
        return [Classes(expected, said if width < SO_MANY else "")]
    if first.dim() == 2 and width >= LEAST_EMBEDDING and _are_units(expected):
        return [Embeddings(expected)]
    doubt = (
        f"its {width} columns may be scores of classes or quantities: judged as both, the worse counts (judge_as=, "
        "labels or an eval_fn settle it)"
    )
    quantities = Quantities.of(expected)
    return [Classes(expected), replace(quantities, doubt=" ".join(filter(None, [doubt, quantities.doubt])))]


def declared_classes(model: nn.Module) -> Declared:
    """What `model` says of its classes."""
    owners = [model, getattr(model, "config", None)]
    counts = {getattr(owner, name, None) for owner in owners for name in _DECLARED}
    layers = {
        getattr(layer, "out_features", getattr(layer, "out_channels", None))
        for name, layer in weighted_layers(model)
        if _HEADS & set(name.split("."))
    }
    return Declared(counts=_numbers(counts), layers=_numbers(layers))


def _numbers(found: set[object]) -> frozenset[int]:
    return frozenset(one for one in found if isinstance(one, int) and not isinstance(one, bool))


def _are_units(expected: Sequence[Tensor]) -> bool:
    """Whether all rows have length one, as embeddings that are compared by their cosine have."""
    return all(bool(((one.double().norm(dim=1) - 1).abs() < UNIT).all()) for one in expected)


def _are_classes(expected: Sequence[Tensor], declared: Declared) -> bool:
    """Whether the columns of an output are scores of classes for certain."""
    rows = torch.cat([by_channel(one).flatten(0, 1) for one in expected])
    rows = rows[:: -(-len(rows) // _LOOKED_AT)].double()
    width = rows.shape[1]
    shares = [rows, rows.exp()]  # probabilities, or their logarithms
    if any(bool((s >= -1e-4).all()) and bool(((s.sum(1) - 1).abs() < 1e-2).all()) for s in shares):
        return True
    if width in declared.counts:
        return True
    likely, named = rows.softmax(1).max(1)
    counts = torch.bincount(named, minlength=width).double() / len(rows)
    entropy = float(-(counts * counts.clamp_min(1e-12).log()).sum())
    named_enough = bool(np.exp(entropy) >= min(max(FEW_CLASSES, width / 2), MANY_CLASSES))
    return (width > 2 or width in declared.layers) and float(likely.mean()) >= CONFIDENT and named_enough


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
