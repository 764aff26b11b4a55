"""Rows as columns: what an envelope holds, what the wire carries, and what the stores write in bulk."""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from model_opt.errors import InvalidInput
from model_opt.federation.moments import MomentColumns, Moments
from model_opt.search.plan import Choice, Plan

_COMPARED = 4096
"""Rows that are compared at once."""
_PLACES = 2**22
"""So many plans and contexts are told apart by a table."""
Codes = NDArray[np.uint8] | NDArray[np.uint16]
Entry = tuple[Plan, int, Mapping[str, Moments]]
"""One row: its plan, the number of its context in the envelope's table, and its moments by metric."""


@dataclass(frozen=True, kw_only=True)
class DecisionTable:
    """A decision and the options of it that occur: code 0 leaves it alone, code i is `options[i - 1]`.

    An option is (name, version of the technique).
    """

    name: str
    options: tuple[tuple[str, int], ...]


@dataclass(frozen=True, kw_only=True)
class MetricColumns:
    """One metric's moments, `[measured]`. `rows`, `[measured]`, says which rows have it; None means all, in order."""

    rows: NDArray[np.uint32] | None
    moments: MomentColumns


@dataclass(frozen=True, kw_only=True, eq=False)
class RowBlock:
    """The rows of one envelope.

    `codes` is `[rows, decisions]`, `contexts` is `[rows]` (numbers into the envelope's table of contexts).
    Decisions are sorted by name, so that equal rows in the same order make equal bytes.
    """

    decisions: tuple[DecisionTable, ...]
    codes: Codes
    contexts: NDArray[np.uint16]
    metrics: Mapping[str, MetricColumns]

    def __len__(self) -> int:
        return len(self.codes)

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> Self:
        """The block of `entries`, in their order; raises `InvalidInput` where a plan and context occur twice."""
        if not entries:
            raise InvalidInput("an envelope needs at least one row")
        if any(not moments for _, _, moments in entries):
            raise InvalidInput("a row needs at least one metric")
        decisions = _tables(plan for plan, _, _ in entries)
        block = cls(
            decisions=decisions,
            codes=_codes(decisions, [plan for plan, _, _ in entries]),
            contexts=np.array([context for _, context, _ in entries], dtype=np.uint16),
            metrics=_metric_columns([moments for _, _, moments in entries]),
        )
        if block.repeats():
            raise InvalidInput("a plan occurs twice in one context: merge its moments first")
        return block

    @cached_property
    def plan_keys(self) -> list[bytes]:
        """Every row's plan key, computed from its choices: 16 bytes each, `Plan.key` as bytes."""
        columns = [
            np.array([b"", *(_segment(table.name, *option) for option in table.options)], dtype=object)[codes].tolist()
            for table, codes in zip(self.decisions, self.codes.T, strict=True)
        ]
        join, blake2b = b"".join, hashlib.blake2b
        if not columns:
            return [bytes.fromhex(Plan().key)] * len(self)
        return [blake2b(join(parts), digest_size=16).digest() for parts in zip(*columns, strict=True)]

    def plans(self) -> list[Plan]:
        """Every row's plan."""
        made: dict[bytes, Plan] = {}
        plans = []
        for codes in self.codes:
            raw = codes.tobytes()
            if raw not in made:
                made[raw] = self._plan(codes)
            plans.append(made[raw])
        return plans

    def _plan(self, codes: NDArray[np.integer]) -> Plan:
        chosen = ((table, int(code)) for table, code in zip(self.decisions, codes, strict=True) if code)
        options = ((table.name, *table.options[code - 1]) for table, code in chosen)
        return Plan(tuple(Choice(decision=name, option=option, version=v) for name, option, v in options))

    def moments(self) -> list[dict[str, Moments]]:
        """Every row's moments by metric."""
        found: list[dict[str, Moments]] = [{} for _ in range(len(self))]
        for name, columns in self.metrics.items():
            numbers = range(len(self)) if columns.rows is None else columns.rows.tolist()
            for number, moments in zip(numbers, columns.moments.to_list(), strict=True):
                found[number][name] = moments
        return found

    def repeats(self) -> bool:
        """Whether two rows have the same plan and the same context."""
        if len(self) < 2:
            return False
        radix = [len(table.options) + 1 for table in self.decisions]
        places = math.prod(radix) * (int(self.contexts.max()) + 1)
        if places <= min(64 * len(self), _PLACES):
            return self._crowded(radix, places)
        # Random weights fold a row's codes into one number; only where two numbers agree are the rows compared. Nobody
        # knows the weights, so nobody can make rows that agree in them and differ.
        weights = np.random.default_rng().integers(1, 2**63, self.codes.shape[1] + 1, dtype=np.uint64)
        folded = self.contexts * weights[0]
        for column, weight in zip(self.codes.T, weights[1:], strict=True):
            folded += column * weight
        ordered = np.sort(folded)
        if not (ordered[1:] == ordered[:-1]).any():
            return False
        del ordered
        order = np.argsort(folded)
        return any(
            self._alike(folded, order[start : start + _COMPARED + 1]) for start in range(0, len(self), _COMPARED)
        )

    def _crowded(self, radix: Sequence[int], places: int) -> bool:
        """Whether two rows have one place, where there is one for every plan and context that could be."""
        numbers = self.contexts.astype(np.int64)
        for column, base in zip(self.codes.T, radix, strict=True):
            numbers *= base
            numbers += column
        taken = np.zeros(places, dtype=np.bool_)
        taken[numbers] = True
        return int(np.count_nonzero(taken)) < len(self)

    def _alike(self, folded: NDArray[np.uint64], rows: NDArray[np.int64]) -> bool:
        """Whether two neighbours among `rows` are the same; `folded` differs where rows do."""
        same = folded[rows[1:]] == folded[rows[:-1]]
        first, second = rows[:-1][same], rows[1:][same]
        equal = (self.codes[first] == self.codes[second]).all(axis=1)
        return bool((equal & (self.contexts[first] == self.contexts[second])).any())


def _tables(plans: Iterable[Plan]) -> tuple[DecisionTable, ...]:
    options: dict[str, set[tuple[str, int]]] = {}
    for plan in plans:
        for choice in plan.choices:
            options.setdefault(choice.decision, set()).add((choice.option, choice.version))
    return tuple(DecisionTable(name=name, options=tuple(sorted(options[name]))) for name in sorted(options))


def _codes(decisions: Sequence[DecisionTable], plans: Sequence[Plan]) -> Codes:
    widest = max((len(table.options) for table in decisions), default=0)
    codes = np.zeros((len(plans), len(decisions)), dtype=np.uint8 if widest < 256 else np.uint16)
    place = {
        (table.name, *option): (column, code)
        for column, table in enumerate(decisions)
        for code, option in enumerate(table.options, start=1)
    }
    for number, plan in enumerate(plans):
        for choice in plan.choices:
            column, code = place[choice.decision, choice.option, choice.version]
            codes[number, column] = code
    return codes


def _metric_columns(rows: Sequence[Mapping[str, Moments]]) -> dict[str, MetricColumns]:
    columns = {}
    for name in sorted({name for moments in rows for name in moments}):
        numbers = [number for number, moments in enumerate(rows) if name in moments]
        present = None if len(numbers) == len(rows) else np.array(numbers, dtype=np.uint32)
        columns[name] = MetricColumns(rows=present, moments=MomentColumns.of(rows[i][name] for i in numbers))
    return columns


def _segment(decision: str, option: str, version: int) -> bytes:
    parts = (part.encode() for part in (decision, option, str(version)))
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)
