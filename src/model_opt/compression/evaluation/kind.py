"""The kind of an output, which says how it is judged.

What an output is, its width does not tell: two columns are two classes, or a systolic and a diastolic pressure. So
classes are told from labels, from what the model declares, or from the data; in doubt an output is judged as both, and
the worse counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
import torch
from torch import Tensor, nn

from model_opt.compression.evaluation.losses import Changed, Classes, Embeddings, Labelled, Loss, Quantities
from model_opt.compression.signal_to_noise import by_channel
from model_opt.compression.stages import weighted_layers

CONFIDENT, FEW_CLASSES, MANY_CLASSES = 0.8, 1.5, 8.0
"""Columns are classes where a softmax of them is this sure of one on average, and names at least half of them (of two
more than one now and then), or this many, about as often as one another: columns of standard normal numbers are 0.3
sure, pixels' places name a few."""
SO_MANY = 200
"""Nobody names a layer of so many quantities as if they were classes: of fewer the user is told."""
LEAST_EMBEDDING, UNIT = 8, 1e-3
"""Rows of at least so many numbers whose length is one within this are embeddings."""
_LOOKED_AT = 20_000
_HEADS = frozenset({"fc", "classifier", "head", "heads", "logits", "lm_head", "cls", "segmentation_head"})
_DECLARED = ("num_classes", "num_labels", "n_classes", "vocab_size")


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
    known = None if labels is None else Labelled.of(expected, labels)
    if known is not None:
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
            return [Labelled.by_itself(expected)]
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
