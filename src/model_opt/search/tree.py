"""The search tree as one compiled struct of arrays, and estimated simulations on it; sums, not means.

A node at depth t decides `order[t]`; an edge is one option of it. All functions work on the arrays in place. Several
simulations go side by side: down the tree by PUCT, complete the plan, climb, back up. The walkers ask for estimates in
batches, because a surrogate answers many plans for little more than one: `step` moves all of them as far as they get
with the estimates there are, and lists the plans whose estimates they wait for.

These functions are plain Python. `compiled` makes twins of them by numba that answer the same to the last bit, and
`compiling` says which to use. All that is compiled is in this one file, because a function compiled earlier is kept
until its own file changes; it makes no arrays, raises nothing and needs no other compiled code, so that it is compiled
in seconds.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

EXPLORATION = 0.5
"""c of PUCT: Q + c P sqrt(N + 1) / (1 + n) (Rosin 2011; Silver et al. 2017)."""


NONE = -1
"""In the place of a node, a place in the archive, or a count: there is none."""
IDLE, STARTING, CLIMBING = 0, 1, 2
"""What a walker does: nothing yet, it waits for the estimate of its start, it waits for those of changes."""

_HALF, _ONE, _MASKED = np.float32(0.5), np.float32(1.0), np.float32(-np.inf)
_VECTORS = {"nnan", "nsz"}
"""What lets LLVM find a greatest number by vectors. Nothing that rounds differently: the twins would part."""

_LEAN: Mapping[str, Any] = {"nogil": True, "_nrt": False, "error_model": "numpy", "no_cfunc_wrapper": True}
"""For functions that make no arrays: without counting references to those that they read, which takes half of the
time; and without what nobody calls, which takes half of the compiling."""

KERNELS: dict[str, Mapping[str, Any]] = {}
"""What is compiled, callees first: name → numba's options."""


def kernel(*, entry: bool = False, **options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Marks a function that has a compiled twin; Python calls only that of an `entry`."""

    def mark(function: Callable[..., Any]) -> Callable[..., Any]:
        KERNELS[function.__name__] = {**_LEAN, "no_cpython_wrapper": not entry, **options}
        return function

    return mark


class Tree(NamedTuple):
    """`children` `[nodes, options]` (`NONE`: not expanded); `visits`, `total` and `best` of the values in [0, 1] backed
    up through each edge, `[nodes, options]`, `best` -inf where the edge is masked: not allowed, exhausted, or no such
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


class ForbiddenMoves(NamedTuple):
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
        children=np.full(shape, NONE, dtype=np.int32),
        visits=np.zeros(shape, dtype=np.int32),
        total=np.zeros(shape, dtype=np.float32),
        best=np.zeros(shape, dtype=np.float32),
        parent=np.full(capacity, NONE, dtype=np.int32),
        edge=np.zeros(capacity, dtype=np.int16),
        used=np.ones(1, dtype=np.int64),
        order=np.ascontiguousarray(order, dtype=np.int64),
        sizes=np.ascontiguousarray(sizes[order], dtype=np.int64),
        scores=np.zeros(widest, dtype=np.float32),
    )
    tree.best[0, int(tree.sizes[0]) :] = -np.inf
    return tree


@kernel(fastmath=_VECTORS)
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
        node = tree.children[node, chosen] if depth < len(tree.sizes) else NONE
    for i in range(depth):
        tree.visits[nodes[i], options[i]] += 1
    return depth


@kernel()
def expand(tree, node, option, depth):  # type: ignore[no-untyped-def]
    """Adds the child below an edge whose node is at `depth` - 1; returns it, or `NONE` where the tree is full or
    ends."""
    if tree.used[0] >= len(tree.parent) or depth >= len(tree.sizes):
        return NONE
    child = tree.used[0]
    tree.used[0] += 1
    tree.children[node, option] = child
    tree.parent[child], tree.edge[child] = node, option
    for a in range(tree.sizes[depth], tree.children.shape[1]):
        tree.best[child, a] = _MASKED
    return child


@kernel()
def back_up(tree, nodes, options, depth, value):  # type: ignore[no-untyped-def]
    """Adds `value` to every edge of a path that `select` has counted; one that was masked meanwhile stays so."""
    for i in range(depth):
        tree.total[nodes[i], options[i]] += value
        if _MASKED < tree.best[nodes[i], options[i]] < value:
            tree.best[nodes[i], options[i]] = value


@kernel(entry=True)
def mask_options(tree, node, depth, prefix, rules):  # type: ignore[no-untyped-def]
    """Masks the options of `node` that lead nowhere: a rule is broken whatever follows, or every plan below is known.

    `prefix` `[decisions]` holds the options chosen above (others are ignored). Where nothing is left the edge to the
    node is masked too, and so on up.
    """
    decision = tree.order[depth]
    below = 1.0
    for t in range(depth + 1, len(tree.sizes)):
        below *= tree.sizes[t]
    counts = tree.scores
    for a in range(tree.sizes[depth]):
        counts[a] = 0
    for k in range(len(rules.known)):
        same = True
        for t in range(depth):
            if rules.known[k, tree.order[t]] != prefix[tree.order[t]]:
                same = False
                break
        if same:
            counts[rules.known[k, decision]] += _ONE
    for a in range(tree.sizes[depth]):
        if counts[a] >= below or _surely_broken(tree, depth, prefix, a, rules):
            tree.best[node, a] = _MASKED
    while node >= 0:
        for a in range(tree.best.shape[1]):
            if tree.best[node, a] != _MASKED:
                return
        up = tree.parent[node]
        if up >= 0:
            tree.best[up, tree.edge[node]] = _MASKED
        node = up


@kernel()
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


@kernel()
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


# walkers -------------------------------------------------------------------------------------------------------------

CHUNK = 8
"""One-option changes that a walker has estimated at once; it moves to the best of them if that is better."""
NATS = 12.0
"""Acquisitions are scaled to [0, 1] over so many nats below the best."""
REDRAW = 0.1
"""Probability that completing a plan redraws a decision of the incumbent."""


class Archive(NamedTuple):
    """Every plan met: `slots` `[2^k]` open-addressed by `hashes` `[plans]`; `codes` `[plans, decisions]`; `values`
    `[plans]` log acquisition, -inf where not to be proposed; `used` `[1]`; `twist` `[decisions, widest]` random
    words."""

    slots: NDArray[np.int32]
    hashes: NDArray[np.uint64]
    codes: NDArray[np.int16]
    values: NDArray[np.float64]
    used: NDArray[np.int64]
    twist: NDArray[np.uint64]


class Walkers(NamedTuple):
    """`codes` `[walkers, decisions]`, `values` `[walkers]`; `state` `[walkers]`: `IDLE`, `STARTING` or `CLIMBING`;
    `moves` `[walkers, changes]` a shuffled list of all (decision, option) pairs, `cursor` how far it is tried;
    `picks` `[walkers, CHUNK]` archive places of the changes being estimated (or `NONE`); `nodes`, `options` `[walkers,
    decisions]` and `depth` `[walkers]` the path down the tree; `pairs` `[changes, 2]`; `random` `[1]` the generator's
    state."""

    codes: NDArray[np.int16]
    values: NDArray[np.float64]
    state: NDArray[np.int64]
    moves: NDArray[np.int64]
    cursor: NDArray[np.int64]
    picks: NDArray[np.int64]
    nodes: NDArray[np.int64]
    options: NDArray[np.int64]
    depth: NDArray[np.int64]
    pairs: NDArray[np.int64]
    random: NDArray[np.uint64]


def new_archive(capacity: int, sizes: NDArray[np.int64], rng: np.random.Generator) -> Archive:
    """Room for `capacity` plans."""
    widest = int(sizes.max())
    return Archive(
        slots=np.full(1 << (2 * capacity - 1).bit_length(), NONE, dtype=np.int32),
        hashes=np.zeros(capacity, dtype=np.uint64),
        codes=np.zeros((capacity, len(sizes)), dtype=np.int16),
        values=np.full(capacity, -np.inf),
        used=np.zeros(1, dtype=np.int64),
        twist=rng.integers(0, 2**64, (len(sizes), widest), dtype=np.uint64),
    )


def new_walkers(many: int, sizes: NDArray[np.int64], rng: np.random.Generator) -> Walkers:
    """Idle walkers."""
    pairs = np.array([(d, o) for d, size in enumerate(sizes) for o in range(size)], dtype=np.int64)
    return Walkers(
        codes=np.zeros((many, len(sizes)), dtype=np.int16),
        values=np.full(many, -np.inf),
        state=np.full(many, IDLE, dtype=np.int64),
        moves=np.tile(np.arange(len(pairs)), (many, 1)),
        cursor=np.zeros(many, dtype=np.int64),
        picks=np.full((many, CHUNK), NONE, dtype=np.int64),
        nodes=np.zeros((many, len(sizes)), dtype=np.int64),
        options=np.zeros((many, len(sizes)), dtype=np.int64),
        depth=np.zeros(many, dtype=np.int64),
        pairs=pairs,
        random=rng.integers(1, 2**64, 1, dtype=np.uint64),
    )


@kernel()
def enlist(archive, codes):  # type: ignore[no-untyped-def]
    """The place of a plan in the archive, and whether it is new there; `NONE` where the archive is full."""
    word = np.uint64(0)
    for d in range(len(codes)):
        word ^= archive.twist[d, codes[d]]
    last = np.uint64(len(archive.slots) - 1)
    at = word & last
    while archive.slots[at] >= 0:
        if archive.hashes[archive.slots[at]] == word:
            return np.int64(archive.slots[at]), False
        at = (at + np.uint64(1)) & last
    place = archive.used[0]
    if place >= len(archive.hashes):
        return np.int64(NONE), False
    archive.slots[at], archive.hashes[place] = place, word
    for d in range(len(codes)):
        archive.codes[place, d] = codes[d]
    archive.used[0] = place + 1
    return np.int64(place), True


@kernel(entry=True)
def enlist_all(archive, codes, value):  # type: ignore[no-untyped-def]
    """Puts all of `codes`, `[plans, decisions]`, into the archive with one value."""
    for k in range(len(codes)):
        place, _ = enlist(archive, codes[k])
        if place >= 0:
            archive.values[place] = value


@kernel()
def _uniform(random):  # type: ignore[no-untyped-def]
    """The next number in [0, 1) by splitmix64 (Steele, Lea and Flood 2014)."""
    random[0] += np.uint64(0x9E3779B97F4A7C15)
    z = random[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@kernel()
def _start(tree, rules, walkers, w, incumbents, prior):  # type: ignore[no-untyped-def]
    """Sends walker `w` down the tree and completes its plan from an incumbent; False where no allowed one was found."""
    nodes, options, codes = walkers.nodes[w], walkers.options[w], walkers.codes[w]
    depth = select(tree, prior, nodes, options)
    walkers.depth[w] = depth
    if depth == 0:
        return False
    which = 0 if _uniform(walkers.random) < 0.5 else int(_uniform(walkers.random) * len(incumbents))
    for attempt in range(10):
        for d in range(len(codes)):
            codes[d] = incumbents[which, d]
        for t in range(len(tree.sizes)):
            d = tree.order[t]
            if t < depth:
                codes[d] = options[t]
            elif _uniform(walkers.random) < REDRAW * (1 + attempt):
                codes[d] = _draw(prior[d], tree.sizes[t], walkers.random)
        if attempt == 0:
            child = expand(tree, nodes[depth - 1], options[depth - 1], depth)
            if child >= 0:
                mask_options(tree, child, depth, codes, rules)
        if allowed(codes, rules):
            return True
    return False


@kernel()
def _draw(weights, size, random):  # type: ignore[no-untyped-def]
    left = _uniform(random)
    for a in range(size):
        left -= weights[a]
        if left < 0:
            return a
    return size - 1


@kernel()
def _shuffle(walkers, w):  # type: ignore[no-untyped-def]
    moves = walkers.moves[w]
    for i in range(len(moves) - 1, 0, -1):
        j = int(_uniform(walkers.random) * (i + 1))
        moves[i], moves[j] = moves[j], moves[i]
    walkers.cursor[w] = 0


@kernel()
def _arrive(tree, archive, walkers, w, top):  # type: ignore[no-untyped-def]
    """Takes the estimates that walker `w` waited for: moves it, or ends its climb and backs its value up."""
    target, value = NONE, walkers.values[w]
    for c in range(CHUNK):
        place = walkers.picks[w, c]
        if place >= 0 and archive.values[place] > value + 1e-9:
            target, value = place, archive.values[place]
    if target >= 0:
        for d in range(walkers.codes.shape[1]):
            walkers.codes[w, d] = archive.codes[target, d]
        walkers.values[w] = value
        _shuffle(walkers, w)
    elif walkers.cursor[w] >= len(walkers.pairs):
        scaled = max(0.0, 1.0 - (top - value) / NATS) if value > -np.inf else 0.0
        back_up(tree, walkers.nodes[w], walkers.options[w], walkers.depth[w], scaled)
        walkers.state[w] = IDLE


@kernel()
def _await(archive, places, waiting, codes, rules):  # type: ignore[no-untyped-def]
    """Looks up one plan; a new one that is allowed joins those that wait. Returns its place, and how many wait."""
    place, new = enlist(archive, codes)
    if new and allowed(codes, rules):
        places[waiting] = place
        waiting += 1
    return place, waiting


@kernel(entry=True)
def step(tree, rules, archive, walkers, places, incumbents, prior, top):  # type: ignore[no-untyped-def]
    """Moves every walker on once the estimates it waited for are in `archive.values`, the greatest of which is `top`.

    Writes the archive places of what waits for an estimate now to `places`, `[walkers * CHUNK]`; returns how many, or
    `NONE` where nothing is left to explore.
    """
    waiting, alive = np.int64(0), False
    for w in range(len(walkers.state)):
        if walkers.state[w] == STARTING:  # its start has been estimated
            walkers.values[w] = archive.values[walkers.picks[w, 0]] if walkers.picks[w, 0] >= 0 else -np.inf
            walkers.state[w] = CLIMBING
        elif walkers.state[w] == CLIMBING:
            _arrive(tree, archive, walkers, w, top)
        for c in range(CHUNK):
            walkers.picks[w, c] = NONE
        codes = walkers.codes[w]
        if walkers.state[w] == IDLE:
            if _start(tree, rules, walkers, w, incumbents, prior):
                walkers.state[w] = STARTING
                _shuffle(walkers, w)
                walkers.picks[w, 0], waiting = _await(archive, places, waiting, codes, rules)
            alive |= walkers.depth[w] > 0
            continue
        alive = True
        taken = 0
        while taken < CHUNK and walkers.cursor[w] < len(walkers.pairs):
            move = walkers.moves[w, walkers.cursor[w]]
            d, o = walkers.pairs[move, 0], walkers.pairs[move, 1]
            walkers.cursor[w] += 1
            if codes[d] != o:
                old = codes[d]
                codes[d] = o
                walkers.picks[w, taken], waiting = _await(archive, places, waiting, codes, rules)
                codes[d] = old
                taken += 1
    return waiting if alive else NONE
