"""The tree as planner over the surrogates: which unmeasured plan has the greatest acquisition."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_opt.search.compiled import Kernels
from model_opt.search.compiling import kernels
from model_opt.search.encoding import Encoding
from model_opt.search.tree import CHUNK, Archive, ForbiddenMoves, Tree, new_archive, new_tree, new_walkers

Array = NDArray[np.float64]
Codes = NDArray[np.int16]
Score = Callable[[Codes], Array]
"""Log acquisition `[candidates]` of candidates, `[candidates, decisions]`."""

EVALUATIONS = 500
"""Plans estimated for one suggestion, by default."""
NODES = 4096
"""Nodes that the tree of one suggestion may have, by default."""
_WALKERS = 4
_IDLE_ROUNDS = 64
_UNIFORM = 0.1


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Plans that may be proposed, best first: `codes` `[plans, decisions]`, `values` `[plans]`, and the tree behind
    it."""

    codes: Codes
    values: Array
    tree: Tree | None


class Planner:
    """Plans over one space; holds no state between calls but the list of the plans of a small space."""

    def __init__(self, encoding: Encoding, *, evaluations: int = EVALUATIONS, nodes: int = NODES) -> None:
        self._encoding = encoding
        self._evaluations = evaluations
        self._nodes = nodes
        self.every = encoding.enumerate()

    def rank(
        self,
        score: Score,
        *,
        known: Codes,
        incumbents: Codes,
        importance: Array,
        prior: Array,
        rng: np.random.Generator,
    ) -> Ranking:
        """Searches from `incumbents`, `[plans, decisions]`, best first.

        `known` plans are never proposed; `importance` `[decisions]` orders the tree; `prior` `[decisions, widest]`
        weighs options. In a small space every plan is estimated, so the first of the ranking is the exhaustive argmax.
        """
        encoding, moves = self._encoding, kernels()
        known, incumbents = (np.ascontiguousarray(codes, dtype=np.int16) for codes in (known, incumbents))
        rules = ForbiddenMoves(table=encoding.rules, named=encoding.named, known=known)
        limit = self._evaluations if self.every is None else min(self._evaluations, len(self.every))
        archive = new_archive(
            len(known) + limit + int(encoding.sizes.sum()) + 2 * _WALKERS * CHUNK, encoding.sizes, rng
        )
        moves.enlist_all(archive, known, -np.inf)
        first = len(known)
        self._look_around(moves, score, archive, rules, incumbents[0])
        tree = new_tree(np.argsort(-importance, kind="stable"), encoding.sizes, self._nodes)
        moves.mask_options(tree, 0, 0, incumbents[0], rules)
        self._explore(moves, score, tree, rules, archive, incumbents, self._policy(prior), limit, rng)
        codes, values = archive.codes[first : archive.used[0]], archive.values[first : archive.used[0]]
        if self.every is not None:
            rest = _without(self.every, np.concatenate([known, codes]))
            codes, values = np.concatenate([codes, rest]), np.concatenate([values, score(rest)])
        possible = values > -np.inf
        codes, values = codes[possible], values[possible]
        order = np.argsort(-values, kind="stable")
        return Ranking(codes=codes[order], values=values[order], tree=tree)

    def _look_around(
        self, moves: Kernels, score: Score, archive: Archive, rules: ForbiddenMoves, incumbent: Codes
    ) -> None:
        """Estimates every one-option change of the incumbent that may be proposed."""
        sizes = self._encoding.sizes
        pairs = [(d, o) for d, size in enumerate(sizes) for o in range(size) if o != incumbent[d]]
        changed = np.array(pairs, dtype=np.int16).reshape(-1, 2)
        codes = np.tile(incumbent, (len(changed), 1))
        codes[np.arange(len(changed)), changed[:, 0]] = changed[:, 1]
        fresh = np.flatnonzero(self._encoding.allowed(codes))
        fresh = fresh[_is_new(codes[fresh], rules.known)]
        if not len(fresh):
            return
        place = archive.used[0]
        moves.enlist_all(archive, codes[fresh], -np.inf)
        archive.values[place : archive.used[0]] = score(codes[fresh])

    def _policy(self, prior: Array) -> NDArray[np.float32]:
        """P of PUCT, `[decisions, widest]`: the prior, mixed with a little of the uniform."""
        sizes = self._encoding.sizes
        uniform = (np.arange(self._encoding.widest) < sizes[:, None]) / sizes[:, None]
        return np.asarray((1 - _UNIFORM) * prior + _UNIFORM * uniform, dtype=np.float32)

    def _explore(
        self,
        moves: Kernels,
        score: Score,
        tree: Tree,
        rules: ForbiddenMoves,
        archive: Archive,
        incumbents: Codes,
        policy: NDArray[np.float32],
        limit: int,
        rng: np.random.Generator,
    ) -> None:
        """Simulates until `limit` plans are estimated, or nothing new is met any more."""
        walkers = new_walkers(_WALKERS, self._encoding.sizes, rng)
        places = np.zeros(_WALKERS * CHUNK, dtype=np.int64)
        estimated, idle = 0, 0
        while estimated < limit and idle < _IDLE_ROUNDS:
            top = float(archive.values[: archive.used[0]].max())
            waiting = moves.step(tree, rules, archive, walkers, places, incumbents, policy, top)
            if waiting < 0:
                return
            idle = 0 if waiting else idle + 1
            if waiting:
                archive.values[places[:waiting]] = score(archive.codes[places[:waiting]])
                estimated += waiting


def _is_new(codes: Codes, known: Codes) -> NDArray[np.bool_]:
    """Which rows of `codes` are not among `known`, `[plans]`."""
    seen = {row.tobytes() for row in known}
    return np.array([row.tobytes() not in seen for row in codes], dtype=np.bool_)


def _without(codes: Codes, known: Codes) -> Codes:
    return codes[_is_new(codes, known)]
