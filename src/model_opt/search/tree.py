"""The search tree as one compiled struct of arrays: select by PUCT, expand, back up; sums, not means.

A node at depth t decides `order[t]`; an edge is one option of it. All functions work on the arrays in place.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

EXPLORATION = 0.5
"""c of PUCT: Q + c P sqrt(N + 1) / (1 + n) (Rosin 2011; Silver et al. 2017)."""


_HALF, _ONE, _MASKED = np.float32(0.5), np.float32(1.0), np.float32(-np.inf)
_QUICK = {"nnan", "nsz", "reassoc", "contract", "arcp"}  # what lets LLVM use vectors; infinities keep their meaning
_LEAN: Mapping[str, Any] = {"cache": True, "nogil": True, "_nrt": False}
"""For functions that make no arrays: without counting references to those that they read, which took over half of the
time."""


class Tree(NamedTuple):
    """`children` `[nodes, options]` (-1: not expanded); `visits`, `total` and `best` of the values in [0, 1] backed up
    through each edge, `[nodes, options]`, `best` -inf where the edge is masked: not allowed, exhausted, or no such
    option; `parent` and `edge` `[nodes]`; `used` `[1]`: nodes in use; `order` `[depths]`: which decision each depth
    decides; `sizes` `[depths]`; `scores` `[options]`: room for one node's. Bytes per node of 12 options: 198."""

    children: NDArray[np.int32]
    visits: NDArray[np.int32]
    total: NDArray[np.float32]
    best: NDArray[np.float32]
    parent: NDArray[np.int32]
    edge: NDArray[np.int16]
    used: NDArray[np.int64]
    order: NDArray[np.int64]
    sizes: NDArray[np.int64]
    scores: NDArray[np.float32]


class Rules(NamedTuple):
    """What may not be proposed: `table` `[rules, decisions, widest]` and `named` `[rules, decisions]` as in `Encoding`;
    `known` `[plans, decisions]`: plans that are settled or in flight."""

    table: NDArray[np.bool_]
    named: NDArray[np.bool_]
    known: NDArray[np.int16]


def new_tree(order: NDArray[np.int64], sizes: NDArray[np.int64], capacity: int) -> Tree:
    """A tree of one root, that never grows beyond `capacity` nodes; `sizes` `[decisions]` are in the space's order."""
    widest = int(sizes.max())
    shape = (capacity, widest)
    tree = Tree(
        children=np.full(shape, -1, dtype=np.int32),
        visits=np.zeros(shape, dtype=np.int32),
        total=np.zeros(shape, dtype=np.float32),
        best=np.zeros(shape, dtype=np.float32),
        parent=np.full(capacity, -1, dtype=np.int32),
        edge=np.zeros(capacity, dtype=np.int16),
        used=np.ones(1, dtype=np.int64),
        order=np.ascontiguousarray(order, dtype=np.int64),
        sizes=np.ascontiguousarray(sizes[order], dtype=np.int64),
        scores=np.zeros(widest, dtype=np.float32),
    )
    tree.best[0, int(tree.sizes[0]) :] = -np.inf
    return tree


@njit(**_LEAN, fastmath=_QUICK)
def select(tree, prior, nodes, options):  # type: ignore[no-untyped-def]
    """Descends by PUCT from the root to an edge without a child; returns the length of the path, 0 if all is masked.

    `prior` is `[decisions, widest]`, fastest in single precision; the path is written to `nodes` and `options`,
    `[depths]`, and its visits are counted at once, so that simulations which run side by side spread out.
    """
    node, depth, scores = 0, 0, tree.scores
    while node >= 0:
        visits, total, best = tree.visits[node], tree.total[node], tree.best[node]
        weights, size, many = prior[tree.order[depth]], tree.sizes[depth], np.int32(1)
        for a in range(size):
            many += visits[a]
        reach, top = np.float32(EXPLORATION) * np.float32(math.sqrt(many)), _MASKED
        for a in range(size):  # without branches, so that it runs on vectors
            n = np.float32(visits[a])
            score = reach * np.float32(weights[a]) / (_ONE + n) + _HALF * (total[a] / max(n, _ONE) + best[a])
            scores[a] = score
            top = max(top, score)
        if top == _MASKED:
            return 0
        chosen = 0
        while chosen + 1 < size and scores[chosen] != top:
            chosen += 1
        nodes[depth], options[depth] = node, chosen
        depth += 1
        node = tree.children[node, chosen] if depth < len(tree.sizes) else -1
    for i in range(depth):
        tree.visits[nodes[i], options[i]] += 1
    return depth


@njit(**_LEAN)
def expand(tree, node, option, depth):  # type: ignore[no-untyped-def]
    """Adds the child below an edge whose node is at `depth` - 1; returns it, or -1 where the tree is full or ends."""
    if tree.used[0] >= len(tree.parent) or depth >= len(tree.sizes):
        return -1
    child = tree.used[0]
    tree.used[0] += 1
    tree.children[node, option] = child
    tree.parent[child], tree.edge[child] = node, option
    for a in range(tree.sizes[depth], tree.children.shape[1]):
        tree.best[child, a] = _MASKED
    return child


@njit(**_LEAN)
def back_up(tree, nodes, options, depth, value):  # type: ignore[no-untyped-def]
    """Adds `value` to every edge of a path that `select` has counted; one that was masked meanwhile stays so."""
    for i in range(depth):
        tree.total[nodes[i], options[i]] += value
        if _MASKED < tree.best[nodes[i], options[i]] < value:
            tree.best[nodes[i], options[i]] = value


@njit(cache=True, nogil=True)
def mask_options(tree, node, depth, prefix, rules):  # type: ignore[no-untyped-def]
    """Masks the options of `node` that lead nowhere: a rule is broken whatever follows, or every plan below is known.

    `prefix` `[decisions]` holds the options chosen above (others are ignored). Where nothing is left the edge to the
    node is masked too, and so on up.
    """
    decision = tree.order[depth]
    below = 1.0
    for t in range(depth + 1, len(tree.sizes)):
        below *= tree.sizes[t]
    counts = np.zeros(tree.sizes[depth])
    for k in range(len(rules.known)):
        same = True
        for t in range(depth):
            if rules.known[k, tree.order[t]] != prefix[tree.order[t]]:
                same = False
                break
        if same:
            counts[rules.known[k, decision]] += 1
    for a in range(tree.sizes[depth]):
        if counts[a] >= below or _surely_broken(tree, depth, prefix, a, rules):
            tree.best[node, a] = _MASKED
    while node >= 0 and tree.best[node].max() == _MASKED:
        up = tree.parent[node]
        if up >= 0:
            tree.best[up, tree.edge[node]] = _MASKED
        node = up


@njit(cache=True, nogil=True)
def _surely_broken(tree, depth, prefix, option, rules):  # type: ignore[no-untyped-def]
    """Whether some rule names only decisions down to `depth`, and all of their options hit it."""
    for r in range(len(rules.table)):
        hit = True
        for t in range(len(tree.sizes)):
            d = tree.order[t]
            if rules.named[r, d]:
                code = option if t == depth else prefix[d]
                if t > depth or not rules.table[r, d, code]:
                    hit = False
                    break
        if hit:
            return True
    return False


@njit(cache=True, nogil=True)
def allowed(codes, rules):  # type: ignore[no-untyped-def]
    """Whether one complete plan, `[decisions]`, breaks no rule."""
    for r in range(len(rules.table)):
        hit = True
        for d in range(len(codes)):
            if not rules.table[r, d, codes[d]]:
                hit = False
                break
        if hit:
            return False
    return True
