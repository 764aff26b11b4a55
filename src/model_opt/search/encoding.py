"""Plans as rows of small integers, with the decisions that have one option left out."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from model_opt.search.plan import Plan
from model_opt.search.space import Codes, SearchSpace

ENUMERABLE = 1024
"""Spaces of at most so many allowed plans are listed once, and searched exhaustively."""


class Encoding:
    """The searchable part of a space.

    `sizes` `[decisions]`; `ordered` `[decisions]`; `rules` `[rules, decisions, widest]` as in `SearchSpace.rules`;
    `named` `[rules, decisions]`: whether the rule depends on the decision at all.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self.columns = np.flatnonzero(space.sizes > 1)
        if not len(self.columns):
            self._nothing_to_decide()
            return
        self.sizes: NDArray[np.int64] = np.ascontiguousarray(space.sizes[self.columns])
        decisions = [space.decisions[int(column)] for column in self.columns]
        self.names = [decision.name for decision in decisions]
        self.options = [tuple(decision.options) for decision in decisions]
        self.ordered = np.array([d.ordered and len(d.options) > 2 for d in decisions], dtype=np.bool_)
        self.widest = int(self.sizes.max()) if len(self.sizes) else 1
        fixed = np.flatnonzero(space.sizes == 1)
        may_hold = space.rules[:, fixed, 0].all(axis=1)  # those that need another option there never do
        self.rules = np.ascontiguousarray(space.rules[may_hold][:, self.columns, : self.widest])
        within = np.arange(self.widest) < self.sizes[:, None]  # [decisions, widest]
        self.named = np.ascontiguousarray((~self.rules & within).any(axis=2))

    def _nothing_to_decide(self) -> None:
        """One decision of one option stands for a space of one plan, so that nobody meets an array without columns."""
        self.sizes, self.names, self.options, self.widest = np.ones(1, dtype=np.int64), ["-"], [("-",)], 1
        self.ordered = np.zeros(1, dtype=np.bool_)
        self.rules, self.named = np.zeros((0, 1, 1), dtype=np.bool_), np.zeros((0, 1), dtype=np.bool_)

    def encode(self, plans: Iterable[Plan]) -> Codes:
        """`[plans, decisions]`; raises `UnknownName`."""
        rows = [self.space.encode(plan)[self.columns] for plan in plans]
        out = np.zeros((len(rows), len(self.sizes)), dtype=np.int16)
        out[:, : len(self.columns)] = np.array(rows, dtype=np.int16).reshape(len(rows), len(self.columns))
        return out

    def decode(self, codes: NDArray[np.integer]) -> Plan:
        """The plan of one row of codes, `[decisions]`."""
        full = np.zeros(len(self.space.decisions), dtype=np.int16)
        full[self.columns] = codes[: len(self.columns)]
        return self.space.decode(full)

    def allowed(self, codes: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Which of `codes`, `[plans, decisions]`, break no rule."""
        if not len(self.rules):
            return np.ones(len(codes), dtype=np.bool_)
        hit = self.rules[:, np.arange(len(self.sizes)), codes]  # [rules, plans, decisions]
        return np.asarray(~hit.all(axis=2).any(axis=0))

    def enumerate(self) -> Codes | None:
        """Every allowed plan, `[plans, decisions]`, or None where there are more than `ENUMERABLE`.

        Breadth first, so that a prefix which breaks a rule is cut at once; a space whose rules leave little is listed
        although it is large on paper.
        """
        prefixes = np.zeros((1, len(self.sizes)), dtype=np.int16)
        for depth, size in enumerate(self.sizes):
            if len(prefixes) * size > 64 * ENUMERABLE:
                return None
            prefixes = np.repeat(prefixes, size, axis=0)
            prefixes[:, depth] = np.tile(np.arange(size, dtype=np.int16), len(prefixes) // size)
            decided = ~self.named[:, depth + 1 :].any(axis=1)  # rules that no later decision can still avert
            hit = self.rules[decided][:, np.arange(depth + 1), prefixes[:, : depth + 1]]
            prefixes = prefixes[~hit.all(axis=2).any(axis=0)] if decided.any() else prefixes
        return prefixes if len(prefixes) <= ENUMERABLE else None
