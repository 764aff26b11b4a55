"""Estimated simulations, several side by side: down the tree, complete the plan, climb, back up; compiled.

The walkers ask for estimates in batches, because a surrogate answers many plans for little more than one. `step` moves
all walkers as far as they get with the estimates there are, and lists the plans whose estimates they wait for.
"""

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from model_opt.search.tree import allowed, back_up, expand, mask_options, select

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
    """`codes` `[walkers, decisions]`, `values` `[walkers]`; `state` `[walkers]`: 0 idle, 1 at a start, 2 climbing;
    `moves` `[walkers, changes]` a shuffled list of all (decision, option) pairs, `cursor` how far it is tried;
    `picks` `[walkers, CHUNK]` archive places of the changes being estimated (-1: none); `nodes`, `options` `[walkers,
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


class Batch(NamedTuple):
    """What waits for an estimate, `[waiting]`: the archive's place, the walker whose plan is changed, the decision (-1:
    the walker's plan itself) and its option."""

    place: NDArray[np.int64]
    base_of: NDArray[np.int32]
    decision: NDArray[np.int16]
    option: NDArray[np.int16]


def new_archive(capacity: int, sizes: NDArray[np.int64], rng: np.random.Generator) -> Archive:
    """Room for `capacity` plans."""
    widest = int(sizes.max())
    return Archive(
        slots=np.full(1 << (2 * capacity - 1).bit_length(), -1, dtype=np.int32),
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
        state=np.zeros(many, dtype=np.int64),
        moves=np.tile(np.arange(len(pairs)), (many, 1)),
        cursor=np.zeros(many, dtype=np.int64),
        picks=np.full((many, CHUNK), -1, dtype=np.int64),
        nodes=np.zeros((many, len(sizes)), dtype=np.int64),
        options=np.zeros((many, len(sizes)), dtype=np.int64),
        depth=np.zeros(many, dtype=np.int64),
        pairs=pairs,
        random=rng.integers(1, 2**64, 1, dtype=np.uint64),
    )


@njit(cache=True, nogil=True)
def enlist(archive, codes):  # type: ignore[no-untyped-def]
    """The place of a plan in the archive, and whether it is new there; -1 where the archive is full."""
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
        return np.int64(-1), False
    archive.slots[at], archive.hashes[place] = place, word
    archive.codes[place] = codes
    archive.used[0] = place + 1
    return np.int64(place), True


@njit(cache=True, nogil=True)
def enlist_all(archive, codes, value):  # type: ignore[no-untyped-def]
    """Puts all of `codes`, `[plans, decisions]`, into the archive with one value."""
    for k in range(len(codes)):
        place, _ = enlist(archive, codes[k])
        if place >= 0:
            archive.values[place] = value


@njit(cache=True, nogil=True)
def _uniform(random):  # type: ignore[no-untyped-def]
    """The next number in [0, 1) by splitmix64 (Steele, Lea and Flood 2014)."""
    random[0] += np.uint64(0x9E3779B97F4A7C15)
    z = random[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@njit(cache=True, nogil=True)
def _start(tree, rules, walkers, w, incumbents, prior):  # type: ignore[no-untyped-def]
    """Sends walker `w` down the tree and completes its plan from an incumbent; False where no allowed one was found."""
    nodes, options, codes = walkers.nodes[w], walkers.options[w], walkers.codes[w]
    depth = select(tree, prior, nodes, options)
    walkers.depth[w] = depth
    if depth == 0:
        return False
    which = 0 if _uniform(walkers.random) < 0.5 else int(_uniform(walkers.random) * len(incumbents))
    for attempt in range(10):
        codes[:] = incumbents[which]
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


@njit(cache=True, nogil=True)
def _draw(weights, size, random):  # type: ignore[no-untyped-def]
    left = _uniform(random)
    for a in range(size):
        left -= weights[a]
        if left < 0:
            return a
    return size - 1


@njit(cache=True, nogil=True)
def _shuffle(walkers, w):  # type: ignore[no-untyped-def]
    moves = walkers.moves[w]
    for i in range(len(moves) - 1, 0, -1):
        j = int(_uniform(walkers.random) * (i + 1))
        moves[i], moves[j] = moves[j], moves[i]
    walkers.cursor[w] = 0


@njit(cache=True, nogil=True)
def _arrive(tree, archive, walkers, w):  # type: ignore[no-untyped-def]
    """Takes the estimates that walker `w` waited for: moves it, or ends its climb and backs its value up."""
    target, value = -1, walkers.values[w]
    for c in range(CHUNK):
        place = walkers.picks[w, c]
        if place >= 0 and archive.values[place] > value + 1e-9:
            target, value = place, archive.values[place]
    if target >= 0:
        walkers.codes[w], walkers.values[w] = archive.codes[target], value
        _shuffle(walkers, w)
    elif walkers.cursor[w] >= len(walkers.pairs):
        top = archive.values[: archive.used[0]].max()
        scaled = max(0.0, 1.0 - (top - value) / NATS) if value > -np.inf else 0.0
        back_up(tree, walkers.nodes[w], walkers.options[w], walkers.depth[w], scaled)
        walkers.state[w] = 0


@njit(cache=True, nogil=True)
def _await(archive, batch, waiting, codes, w, d, o, rules):  # type: ignore[no-untyped-def]
    """Looks up one plan, a change of walker `w`'s; a new one that is allowed joins the batch. Returns place,
    waiting."""
    place, new = enlist(archive, codes)
    if new and allowed(codes, rules):
        batch.place[waiting], batch.base_of[waiting] = place, w
        batch.decision[waiting], batch.option[waiting] = d, o
        waiting += 1
    return place, waiting


@njit(cache=True, nogil=True)
def step(tree, rules, archive, walkers, batch, incumbents, prior):  # type: ignore[no-untyped-def]
    """Moves every walker on once the estimates of the last batch are in `archive.values`; returns how many wait now, or
    -1 where nothing is left to explore."""
    waiting, alive = 0, False
    for w in range(len(walkers.state)):
        if walkers.state[w] == 1:  # its start has been estimated
            walkers.values[w] = archive.values[walkers.picks[w, 0]] if walkers.picks[w, 0] >= 0 else -np.inf
            walkers.state[w] = 2
        elif walkers.state[w] == 2:
            _arrive(tree, archive, walkers, w)
        walkers.picks[w] = -1
        codes = walkers.codes[w]
        if walkers.state[w] == 0:
            if _start(tree, rules, walkers, w, incumbents, prior):
                walkers.state[w] = 1
                _shuffle(walkers, w)
                walkers.picks[w, 0], waiting = _await(archive, batch, waiting, codes, w, -1, 0, rules)
            alive |= walkers.depth[w] > 0
            continue
        alive = True
        taken = 0
        while taken < CHUNK and walkers.cursor[w] < len(walkers.pairs):
            d, o = walkers.pairs[walkers.moves[w, walkers.cursor[w]]]
            walkers.cursor[w] += 1
            if codes[d] != o:
                old = codes[d]
                codes[d] = o
                walkers.picks[w, taken], waiting = _await(archive, batch, waiting, codes, w, d, o, rules)
                codes[d] = old
                taken += 1
    return waiting if alive else -1
