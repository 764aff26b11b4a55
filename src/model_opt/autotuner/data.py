"""The data that a user hands in: rows drawn at random from all of it, and the targets that stand beside them."""

import hashlib
import itertools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, SequentialSampler

from model_opt.compression.evaluation.kind import FloatTargets
from model_opt.compression.inputs import (
    Inputs,
    batch_size,
    by_row,
    by_size,
    constants,
    has_rows,
    join,
    map_tensors,
    rows,
    shapes,
    shared,
    sizes,
    takes_list,
    tensors,
)
from model_opt.errors import InvalidInput

MOST_ROWS = 1024
READ_S = 60.0
"""How long calibration data is read for: rows are drawn from all of it, or from what comes in this time."""
FIT_ROWS = MOST_ROWS // 2
"""Rows of `train_data` that techniques are fitted on, and the most that it keeps back to judge: as many as half of the
most calibration data."""
BATCH_ROWS = 32
LABELS = ("labels", "label", "targets", "target")
"""What loaders call the targets in a mapping."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """Rows of inputs, those of one size together, and beside each its labels (whole numbers, `[rows, …]`) if there are
    any.

    `whole` says that they are batches as they came, since the answer for a row depends on the others. `batch` is how
    many rows batches have otherwise. `warnings` say what was not looked at; `targets` are those that are no labels.
    """

    inputs: Sequence[Inputs]
    labels: Sequence[Tensor] | None
    whole: bool
    batch: int = BATCH_ROWS
    full: bool = False
    """Whether a batch must have so many rows: those that are too few for one are left."""
    warnings: tuple[str, ...] = ()
    targets: FloatTargets | None = None

    def halves(self, seed: int) -> tuple[list[Inputs], "Data"]:
        """Batches to fit on and data to judge by: half of the shuffled rows each, of every class; or half of the
        batches, where those are whole. One row, or one whole batch, is both."""
        order = torch.randperm(self._count, generator=torch.Generator().manual_seed(seed))
        if self.labels is not None and not self.whole and self.labels[0].dim() == 1:
            by_class = order[torch.cat(list(self.labels))[order].argsort(stable=True)]
            order = torch.cat([by_class[::2], by_class[1::2]])
        cut = max(1, len(order) // 2)
        return self._only(order[:cut]).batches(), self._only(order[cut:] if len(order) > 1 else order)

    def sizes(self) -> list[Inputs]:
        """A batch of each size that rows have."""
        first = (self.inputs[places[0]] for places in by_size(self.inputs))
        return [batch if self.whole else rows(batch, 0, self.batch) for batch in first]

    def beside(self, pairs: Sequence[Any], example: Inputs) -> tuple[list[Inputs], "Data"]:
        """Batches to fit on, of `pairs` to train on, and the data that is none of theirs: nothing judges that was
        fitted on. Raises `InvalidInput` where none is left."""
        inputs = [_read_item(given, example, f"item {i} of train_data")[0] for i, (given, _) in enumerate(pairs)]
        known = {one for batch in inputs for one in _row_hashes(batch)}
        if self.whole:
            fresh = [known.isdisjoint(_row_hashes(batch)) for batch in self.inputs]
        else:
            fresh = [one not in known for batch in self.inputs for one in _row_hashes(batch)]
        left = self._only(torch.tensor(fresh).nonzero().flatten())
        if not any(fresh):
            raise InvalidInput(
                "every row that could judge is also in train_data, and what is fitted cannot judge: give other rows as "
                "calibration_data, or leave it out (part of train_data is then kept back)"
            )
        if not all(fresh):
            said = (
                f"{self.rows - left.rows} of {self.rows} rows of calibration_data are in train_data: they do not judge"
            )
            left = replace(left, warnings=(*self.warnings, said))
        return _first_rows(inputs, whole=self.whole), left

    def batches(self) -> list[Inputs]:
        """The inputs in batches of `batch` rows, or as they came where they are whole."""
        if self.whole:
            return list(self.inputs)
        return [part for alike in self.inputs for part in _split(alike, self.batch) if self._stays(batch_size(part))]

    def label_batches(self) -> list[Tensor] | None:
        """The labels beside `batches`."""
        if self.labels is None or self.whole:
            return None if self.labels is None else list(self.labels)
        parts = (part for alike in self.labels for part in torch.split(alike, self.batch))
        return [part for part in parts if self._stays(len(part))]

    def _stays(self, count: int) -> bool:
        return not self.full or count == self.batch

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return sum(batch_size(batch) for batch in self.inputs)

    @property
    def _count(self) -> int:
        return len(self.inputs) if self.whole else self.rows

    def _only(self, chosen: Tensor) -> "Data":
        """The rows, or whole batches, at these places."""
        if self.whole:
            at = chosen.tolist()
            labels = None if self.labels is None else [self.labels[i] for i in at]
            return replace(self, inputs=[self.inputs[i] for i in at], labels=labels)
        inputs, labels, start = [], [], 0
        for place, alike in enumerate(self.inputs):
            here = chosen[(chosen >= start) & (chosen < start + batch_size(alike))] - start
            start += batch_size(alike)
            if len(here):
                inputs.append(by_row(lambda tensor, here=here: tensor[here], alike))  # type: ignore[misc]
                labels += [] if self.labels is None else [self.labels[place][here]]
        return replace(self, inputs=inputs, labels=None if self.labels is None else labels)


def opened(given: Iterable[Any], example: Inputs | None, seed: int) -> tuple[Inputs, Iterator[Any]]:
    """The inputs of the first item of `given`, and all of its items. Raises `InvalidInput` where there is none."""
    items = _iterate(_anywhere([given] if isinstance(given, Tensor) else given, seed), "calibration_data")
    first = next(items, None)
    if first is None:
        raise InvalidInput("calibration_data is empty: give it at least one batch of inputs, or leave it out")
    return _read_item(first, example, "item 0 of calibration_data")[0], itertools.chain([first], items)


def read(items: Iterator[Any], example: Inputs | None, seed: int, *, whole: bool) -> Data:
    """`MOST_ROWS` rows at random from all `items`, which are batches of inputs, or single rows, or pairs of inputs and
    targets as data loaders yield them: data may be sorted. They stay batches as they came where those are `whole`."""
    alike = constants if whole else shared
    drawn, usual, others = _Drawn(seed, whole=whole), None if example is None else alike(example), 0
    until, warnings = time.monotonic() + READ_S, []
    for position, item in enumerate(items):
        name = f"item {position} of calibration_data"
        inputs, target = _read_item(item, example, name)
        usual = alike(inputs) if usual is None else usual
        if alike(inputs) == usual:
            drawn.add(inputs, target)
        else:
            others += 1
        if time.monotonic() > until:
            warnings.append(
                f"calibration_data was read for {READ_S:g} s: its first {drawn.seen} rows are all that is known"
            )
            break
    if others:
        warnings.append(
            f"{others} items of calibration_data give other values than {usual} for what all rows share: they are left "
            "out. What is compiled refuses other numbers and flags"
        )
    if not drawn.seen:
        raise InvalidInput(f"no item of calibration_data has the example's {usual} for what all rows share")
    return drawn.data(warnings)


def training(
    train_data: Iterable[Any], calibration_data: Iterable[Any] | None, seed: int
) -> tuple[list[Any], Iterable[Any]]:
    """The pairs (inputs, target) to train on, in a random order since they may be sorted, and what judges: without
    `calibration_data` at most half of the pairs, `FIT_ROWS` rows if there are so many. Raises `InvalidInput`."""
    pairs = list(_iterate(train_data, "train_data"))
    for position, pair in enumerate(pairs):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise InvalidInput(
                f"item {position} of train_data must be a pair (inputs, target), not a {type(pair).__name__}"
            )
    if not pairs:
        raise InvalidInput("train_data is empty: give it at least one pair of inputs and target, or leave it out")
    pairs = [pairs[i] for i in torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed)).tolist()]
    if calibration_data is not None:
        return pairs, calibration_data
    if len(pairs) == 1:
        return _cut(*pairs[0])
    aside, count = 0, 0
    while aside < len(pairs) // 2 and count < FIT_ROWS:
        count += batch_size(pairs[aside][0])
        aside += 1
    return pairs[aside:], pairs[:aside]


def _row_hashes(inputs: Inputs) -> list[bytes]:
    """One hash a row, of the numbers in all of its tensors."""
    count = batch_size(inputs)
    hashes = [hashlib.blake2b(digest_size=16) for _ in range(count)]
    for tensor in tensors(inputs):
        if has_rows(tensor, count):
            for made, row in zip(hashes, tensor.cpu(), strict=True):
                made.update(row.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return [made.digest() for made in hashes]


def _first_rows(batches: Sequence[Inputs], *, whole: bool) -> list[Inputs]:
    """Batches of the first `FIT_ROWS` rows, or the first whole ones."""
    taken, count = [], 0
    for batch in batches:
        taken.append(batch if whole else rows(batch, 0, FIT_ROWS - count))
        count += batch_size(batch)
        if count >= FIT_ROWS:
            break
    if whole:
        return taken
    alike = (join([taken[place] for place in places]) for places in by_size(taken))
    return [part for batch in alike for part in _split(batch, BATCH_ROWS)]


def _cut(inputs: Inputs, target: Any) -> tuple[list[Any], list[Any]]:
    """One pair in two, by its rows."""
    count = batch_size(inputs)
    if not isinstance(target, Tensor) or target.dim() == 0 or len(target) != count or count < 2:
        raise InvalidInput("train_data is one pair whose rows cannot be parted: give calibration_data= to judge by")
    aside = min(FIT_ROWS, count // 2)
    return [(rows(inputs, aside, count), target[aside:])], [(rows(inputs, 0, aside), target[:aside])]


def _split(inputs: Inputs, most: int) -> list[Inputs]:
    return [rows(inputs, start, start + most) for start in range(0, batch_size(inputs), most)]


def _anywhere(given: Iterable[Any], seed: int) -> Iterable[Any]:
    """`given`, or of a data set that is read in order, whose items may take long each, some from all over."""
    dataset: Any = given.dataset if isinstance(given, DataLoader) else given
    if isinstance(dataset, list | tuple | Mapping | IterableDataset) or not hasattr(dataset, "__getitem__"):
        return given
    if not hasattr(dataset, "__len__") or len(dataset) <= MOST_ROWS:
        return given
    chosen = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))[:MOST_ROWS].tolist()
    if not isinstance(given, DataLoader):
        return (dataset[place] for place in chosen)
    if type(given.sampler) is not SequentialSampler or given.batch_size is None:
        return given  # it draws from all over, or in an order of the user's
    return DataLoader(dataset, batch_size=given.batch_size, sampler=chosen, collate_fn=given.collate_fn)


class _Drawn:
    """Rows of a stream, each of all that came as likely to be kept as any other: those with the least random keys.
    The rows of a `whole` batch share one."""

    def __init__(self, seed: int, *, whole: bool) -> None:
        self.seen = 0
        self._whole = whole
        self._generator = torch.Generator().manual_seed(seed)
        self._kept: list[tuple[Inputs, Any, Tensor]] = []
        self._held = 0

    def add(self, inputs: Inputs, target: Any) -> None:
        """Takes a batch in."""
        count = batch_size(inputs)
        keys = torch.rand(1 if self._whole else count, generator=self._generator, dtype=torch.float64).expand(count)
        self._kept.append((inputs, target, keys))
        self.seen, self._held = self.seen + count, self._held + count
        if self._held > 4 * MOST_ROWS:
            self._thin()

    def _thin(self) -> None:
        """Keeps the `MOST_ROWS` rows of the least keys, in their order."""
        keys = torch.cat([keys for _, _, keys in self._kept])
        if len(keys) <= MOST_ROWS:
            return
        most = keys.kthvalue(MOST_ROWS).values
        thinner = []
        for inputs, target, batch_keys in self._kept:
            stay = batch_keys <= most
            if stay.any():
                fewer = by_row(lambda tensor, stay=stay: tensor[stay], inputs)  # type: ignore[misc]
                thinner.append((fewer, target[stay] if isinstance(target, Tensor) else target, batch_keys[stay]))
        self._kept, self._held = thinner, sum(len(keys) for _, _, keys in thinner)

    def data(self, warnings: Sequence[str]) -> Data:
        """What was drawn, in the order in which it came. Raises `InvalidInput` where only some items had targets."""
        self._thin()
        targets = [target for _, target, _ in self._kept]
        labels, floats, unused = _labels(targets)
        inputs = [inputs for inputs, _, _ in self._kept]
        said = (*warnings, unused) if unused else tuple(warnings)
        if self._whole:
            return Data(inputs=inputs, labels=labels, whole=True, warnings=said, targets=floats)
        groups = by_size(inputs)
        return Data(
            inputs=[join([inputs[place] for place in places]) for places in groups],
            labels=labels and [torch.cat([labels[place] for place in places]) for places in groups],
            whole=False,
            warnings=said,
            targets=floats,
        )


def _labels(targets: Sequence[Any]) -> tuple[list[Tensor] | None, FloatTargets | None, str]:
    """The targets as labels, whole numbers; None where there are none, or what they are cannot be labels, which is
    said; what floats tell of the output that they are of. Raises `InvalidInput` where only some items have targets."""
    given = [target for target in targets if target is not None]
    if not given:
        return None, None, ""
    if len(given) != len(targets):
        raise InvalidInput("calibration_data has labels for some items and not for others")
    advice = "accuracy is agreement with the original (an eval_fn can use them)"
    if not all(isinstance(target, Tensor) for target in given):
        return None, None, f"the targets of calibration_data ({type(given[0]).__name__}) are no classes: {advice}"
    if len({target.shape[1:] for target in given}) > 1:
        return None, None, f"the targets of calibration_data have several sizes: {advice}"
    if all(bool(((target == 0) | (target == 1)).all()) for target in given) or not given[0].is_floating_point():
        return [target.long() for target in given], None, ""
    return None, FloatTargets.of(given), f"the targets of calibration_data are quantities, not classes: {advice}"


def _iterate(given: Iterable[Any], name: str) -> Iterator[Any]:
    try:
        iterator = iter(given)
    except TypeError as error:
        raise InvalidInput(f"{name} must be an iterable of inputs, not {type(given).__name__}") from error
    while True:
        try:
            item = next(iterator)
        except StopIteration:
            return
        except Exception as error:
            raise InvalidInput(f"{name} raised {type(error).__name__} while it was read: {error}") from error
        yield item


def _read_item(item: Any, example: Inputs | None, name: str) -> tuple[Inputs, Any]:
    """The inputs of an item, and its target: a tensor `[rows, …]`, something else, or None where there is none."""
    target = None
    if _is_pair(item, example):
        item, target = item
    elif isinstance(item, Mapping) and isinstance(example, Mapping):
        beside = [key for key in LABELS if key in item and key not in example]
        target = item[beside[0]] if beside else None
        item = {key: value for key, value in item.items() if key not in beside}
    if isinstance(item, list | tuple) and takes_list(example) and not takes_list(item):
        item = (list(item),)
    elif isinstance(item, list):
        item = tuple(item)
    if not isinstance(item, Tensor | tuple | Mapping) or not tensors(item):
        raise InvalidInput(f"{name} holds no tensor: {type(item).__name__}")
    made: Inputs = item
    single = example is not None and tensors(made)[0].ndim == tensors(example)[0].ndim - 1
    if single:
        made = map_tensors(lambda tensor: tensor.unsqueeze(0), made)
    _check_kinds(made, example, name)
    return made, _target(target, batch_size(made), name, single=single)


def _check_kinds(made: Inputs, example: Inputs | None, name: str) -> None:
    """Raises `InvalidInput` where there are other tensors than the example's, or of other numbers of axes."""
    if example is None:
        return
    given, wanted = ([tensor.dim() for tensor in tensors(one)] for one in (made, example))
    if given != wanted:
        raise InvalidInput(
            f"{name} has tensors of {sizes(shapes(made))}, example_input of {sizes(shapes(example))}: give both alike"
        )


def _is_pair(item: Any, example: Inputs | None) -> bool:
    """Whether `item` is (inputs, target), and not two inputs."""
    if not isinstance(item, list | tuple) or len(item) != 2:
        return False
    inputs, target = item
    if isinstance(example, tuple):
        return isinstance(inputs, list | tuple | Mapping)
    if example is not None or isinstance(inputs, list | tuple | Mapping):
        return True
    whole = isinstance(target, Tensor) and target.ndim <= 1 and not target.is_floating_point()
    return whole or (isinstance(target, int) and not isinstance(target, bool))


def _target(given: Any, count: int, name: str, *, single: bool) -> Any:
    """A number or an array as a tensor with a row for each of `count` inputs, `[rows]` for `[rows, 1]`; the rest as it
    is. Raises `InvalidInput` for another number of rows."""
    if isinstance(given, bool | int | float | np.generic | np.ndarray):
        given = torch.as_tensor(given)
    if not isinstance(given, Tensor):
        return given
    if given.dim() == 0 or single:
        given = given.unsqueeze(0)
    if len(given) != count:
        raise InvalidInput(f"{name}: {len(given)} labels for {count} inputs")
    return given.flatten() if given.dim() == 2 and given.shape[1] == 1 else given
