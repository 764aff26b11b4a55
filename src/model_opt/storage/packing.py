"""Rows as small binaries: how SQLite and Redis keep them. Bulk writes are slices of arrays, never a loop over values.

A layout says what the binaries mean: the table of decisions, the type of the codes, and the metrics' names. A row is
then (codes, moments): its option numbers, and float64 `[metrics, 5]` of n, mean, m2, min and max, with n = 0 for a
metric that it does not have.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from model_opt.federation.block import DecisionTable, RowBlock
from model_opt.federation.moments import Moments
from model_opt.search.plan import Choice, Plan


@dataclass(frozen=True, kw_only=True)
class Packed:
    """The rows of a block, each list `[rows]`. `plans` are keys of 16 bytes."""

    layout: str
    plans: list[bytes]
    contexts: list[int]
    codes: list[bytes]
    moments: list[bytes]


def pack_block(block: RowBlock) -> Packed:
    """The binaries of a block's rows."""
    names = list(block.metrics)
    table = np.zeros((len(block), len(names), 5), dtype="<f8")
    for column, metric in enumerate(block.metrics.values()):
        rows = slice(None) if metric.rows is None else metric.rows
        moments = metric.moments
        fields = (moments.n, moments.mean, moments.m2, moments.min, moments.max)
        for position, values in enumerate(fields):
            table[rows, column, position] = values
    codes = block.codes.astype(f"<u{block.codes.dtype.itemsize}")
    decisions = [[decision.name, decision.options] for decision in block.decisions]
    layout = json.dumps([decisions, codes.dtype.itemsize, names], separators=(",", ":"))
    return Packed(
        layout=layout,
        plans=block.plan_keys,
        contexts=block.contexts.tolist(),
        codes=_slices(codes.tobytes(), len(block), codes.itemsize * codes.shape[1]),
        moments=_slices(table.tobytes(), len(block), 40 * len(names)),
    )


def _slices(raw: bytes, rows: int, width: int) -> list[bytes]:
    return [raw[start : start + width] for start in range(0, rows * width, width)] if width else [b""] * rows


def unpack_plans(layout: str, codes: Sequence[bytes]) -> list[Plan]:
    """The plans of rows in one layout."""
    decisions, item, _ = _layout(layout)
    known: dict[bytes, Plan] = {}
    for raw in codes:
        if raw not in known:
            numbers = np.frombuffer(raw, dtype=f"<u{item}").tolist()
            chosen = ((table, code) for table, code in zip(decisions, numbers, strict=True) if code)
            known[raw] = Plan(tuple(_choice(table, code) for table, code in chosen))
    return [known[raw] for raw in codes]


def unpack_moments(layout: str, moments: Sequence[bytes]) -> list[dict[str, Moments]]:
    """The moments by metric of rows in one layout."""
    _, _, names = _layout(layout)
    table = np.frombuffer(b"".join(moments), dtype="<f8").reshape(len(moments), len(names), 5).tolist()
    return [
        {
            name: Moments(n=int(n), mean=mean, m2=m2, min=low, max=high)
            for name, (n, mean, m2, low, high) in zip(names, row, strict=True)
            if n
        }
        for row in table
    ]


@lru_cache(maxsize=256)
def _layout(text: str) -> tuple[tuple[DecisionTable, ...], int, tuple[str, ...]]:
    decisions, item, names = json.loads(text)
    tables = (
        DecisionTable(name=name, options=tuple((option, int(version)) for option, version in options))
        for name, options in decisions
    )
    return tuple(tables), item, tuple(names)


def _choice(table: DecisionTable, code: int) -> Choice:
    option, version = table.options[code - 1]
    return Choice(decision=table.name, option=option, version=version)
