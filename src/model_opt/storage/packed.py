"""Rows as small binaries: how SQLite and Redis keep them. Bulk writes are slices of arrays, never a loop over values.

A layout says what the binaries mean: the table of decisions, the type of the codes, the metrics' names, and how many
numbers of each are kept. A row is then its codes (option numbers) and after them its moments, float64
`[metrics, numbers]`: n, mean, m2, min and max, with n = 0 for a metric that it does not have; or the mean alone in a
block where every row has one sample of every metric.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from model_opt.federation.block import DecisionTable, MetricColumns, RowBlock
from model_opt.federation.moments import Moments
from model_opt.search.plan import Choice, Plan

_NUMBERS = 5


@dataclass(frozen=True, kw_only=True)
class Packed:
    """The rows of a block in the order of their plans' keys (16 bytes each); each list `[rows]`."""

    layout: str
    plans: list[bytes]
    contexts: NDArray[np.uint16]
    rows: list[bytes]


def pack_block(block: RowBlock) -> Packed:
    """The binaries of a block's rows."""
    count, names = len(block), list(block.metrics)
    codes = np.ascontiguousarray(block.codes, dtype=f"<u{block.codes.dtype.itemsize}")
    single = all(_single(column) for column in block.metrics.values())
    numbers = 1 if single else _NUMBERS
    moments = np.stack([_numbers(column, count, single) for column in block.metrics.values()], axis=1)
    table = np.hstack([codes.view(np.uint8).reshape(count, -1), moments.view(np.uint8).reshape(count, -1)])
    keys = block.plan_keys
    order = np.frombuffer(b"".join(keys), dtype=">u8")[::2].astype(np.uint64).argsort()
    decisions = [[decision.name, decision.options] for decision in block.decisions]
    return Packed(
        layout=json.dumps([decisions, codes.dtype.itemsize, names, numbers], separators=(",", ":")),
        plans=[keys[number] for number in order.tolist()],
        contexts=block.contexts[order],
        rows=_slices(table[order].tobytes(), count, table.shape[1]),
    )


def _single(column: MetricColumns) -> bool:
    """Whether every row has one sample of the metric, so that its mean says it all."""
    moments = column.moments
    if column.rows is not None or not (moments.n == 1).all():
        return False
    # Compared as bits: -0.0 is not 0.0 here.
    extremes = (np.asarray(field, dtype="<f8").view("<u8") for field in (moments.mean, moments.min, moments.max))
    mean, low, high = extremes
    return bool(
        not np.asarray(moments.m2, dtype="<f8").view("<u8").any() and (mean == low).all() and (mean == high).all()
    )


def _numbers(column: MetricColumns, count: int, single: bool) -> NDArray[np.float64]:
    """The numbers of a metric, `[rows, numbers]`."""
    moments = column.moments
    if single:
        return np.asarray(moments.mean, dtype="<f8").reshape(count, 1)
    table = np.zeros((count, _NUMBERS), dtype="<f8")
    rows = slice(None) if column.rows is None else column.rows
    for position, values in enumerate((moments.n, moments.mean, moments.m2, moments.min, moments.max)):
        table[rows, position] = values
    return table


def _slices(raw: bytes, rows: int, width: int) -> list[bytes]:
    return [raw[start : start + width] for start in range(0, rows * width, width)]


def unpack(layout: str, rows: Sequence[bytes]) -> tuple[list[Plan], list[dict[str, Moments]]]:
    """The plans of rows in one layout, and their moments by metric."""
    decisions, item, _, _ = _layout(layout)
    width = item * len(decisions)
    return _plans(layout, [row[:width] for row in rows]), _moments(layout, [row[width:] for row in rows])


def _plans(layout: str, codes: Sequence[bytes]) -> list[Plan]:
    decisions, item, _, _ = _layout(layout)
    known: dict[bytes, Plan] = {}
    for raw in codes:
        if raw not in known:
            numbers = np.frombuffer(raw, dtype=f"<u{item}").tolist()
            chosen = ((table, code) for table, code in zip(decisions, numbers, strict=True) if code)
            known[raw] = Plan(tuple(_choice(table, code) for table, code in chosen))
    return [known[raw] for raw in codes]


def _moments(layout: str, raw: Sequence[bytes]) -> list[dict[str, Moments]]:
    _, _, names, numbers = _layout(layout)
    table = np.frombuffer(b"".join(raw), dtype="<f8").reshape(len(raw), len(names), numbers).tolist()
    if numbers == 1:
        return [
            {name: Moments(n=1, mean=x, m2=0.0, min=x, max=x) for name, (x,) in zip(names, row, strict=True)}
            for row in table
        ]
    return [
        {
            name: Moments(n=int(n), mean=mean, m2=m2, min=low, max=high)
            for name, (n, mean, m2, low, high) in zip(names, row, strict=True)
            if n
        }
        for row in table
    ]


@lru_cache(maxsize=256)
def _layout(text: str) -> tuple[tuple[DecisionTable, ...], int, tuple[str, ...], int]:
    decisions, item, names, numbers = json.loads(text)
    tables = (
        DecisionTable(name=name, options=tuple((option, int(version)) for option, version in options))
        for name, options in decisions
    )
    return tuple(tables), item, tuple(names), numbers


def _choice(table: DecisionTable, code: int) -> Choice:
    option, version = table.options[code - 1]
    return Choice(decision=table.name, option=option, version=version)
