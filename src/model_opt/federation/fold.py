"""Folding: what one origin has measured in several epochs, as one. Every replica gets the same bits.

Rows are cumulative for their origin and epoch, and epochs share no samples: so epochs add up (Chan's formulas), and
nothing else does. They are added one after another in the order of their keys, with operations that IEEE 754 fixes to
the last bit; a sum by pairs or in another order would differ between machines.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_opt.federation.join import latest_rows
from model_opt.federation.moments import MomentColumns, merge_columns
from model_opt.federation.row import Row


class Cell(NamedTuple):
    """What is folded into one: all epochs of an origin, for a plan in a context. All but the names are keys."""

    federation: str
    signature: str
    plan: str
    context: str
    origin: str


@dataclass(frozen=True, kw_only=True)
class Folded:
    """One metric of every cell that has it, sorted by cell. `epochs[i]` are the epochs of `cells[i]` and their n."""

    cells: tuple[Cell, ...]
    moments: MomentColumns
    epochs: tuple[tuple[tuple[str, int], ...], ...]

    def __len__(self) -> int:
        return len(self.cells)


def fold(rows: Iterable[Row], metric: str) -> Folded:
    """`metric` of `rows`, folded within each origin. Order and repeats of rows do not matter; contexts never mix."""
    latest = latest_rows(row for row in rows if metric in row.moments)
    keys = sorted(latest)
    cells = [Cell(*key[:5]) for key in keys]
    starts = [i for i, cell in enumerate(cells) if i == 0 or cell != cells[i - 1]]
    ends = [*starts, len(cells)][1:]
    each = [latest[key].moments[metric] for key in keys]
    columns = MomentColumns.of(each)
    counted = [(key.epoch, moments.n) for key, moments in zip(keys, each, strict=True)]
    return Folded(
        cells=tuple(cells[start] for start in starts),
        moments=fold_runs(np.array(starts, dtype=np.int64), columns),
        epochs=tuple(tuple(counted[a:b]) for a, b in zip(starts, ends, strict=True)),
    )


def fold_runs(starts: NDArray[np.int64], moments: MomentColumns) -> MomentColumns:
    """Adds up each run of rows; `starts`, `[runs]`, are where runs begin, the first at 0. From left to right."""
    if len(starts) == 0:
        return moments
    lengths = np.diff(np.append(starts, len(moments)))
    total = _take(moments, starts)
    for step in range(1, int(lengths.max())):
        longer = np.flatnonzero(lengths > step)
        added = merge_columns(_take(total, longer), _take(moments, starts[longer] + step))
        total = _put(total, longer, added)
    return total


_FIELDS = ("n", "mean", "m2", "min", "max")


def _columns(moments: MomentColumns) -> list[NDArray[Any]]:
    return [getattr(moments, name) for name in _FIELDS]


def _take(moments: MomentColumns, rows: NDArray[np.int64]) -> MomentColumns:
    return _made([column[rows] for column in _columns(moments)])


def _put(moments: MomentColumns, rows: NDArray[np.int64], values: MomentColumns) -> MomentColumns:
    """`moments` with `rows` replaced, in place: only for columns that `_take` has just made."""
    for column, new in zip(_columns(moments), _columns(values), strict=True):
        column[rows] = new
    return moments


def _made(columns: Sequence[NDArray[Any]]) -> MomentColumns:
    return MomentColumns(**dict(zip(_FIELDS, columns, strict=True)))
