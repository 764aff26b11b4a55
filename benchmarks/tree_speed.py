"""Simulations per second of the search tree on one core: select by PUCT, expand, back up an additive reward.

`fused` runs the whole loop compiled; `stepped` hands a block of leaves to Python and takes their values back, as a
search over measured plans does; `python_objects` is the same algorithm with one Python object a node. OpenSpiel and
mctx are given the same rewards and prior, in an environment of their own under --cache. Branching 12, depth 6.

    python benchmarks/tree_speed.py [--quick] [--peers | --no-peers] [--plot FILE] [--json]
"""

import argparse
import json
import math
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from contenders.environments import environment
from numba import njit

from model_opt.search.compiled import twins
from model_opt.search.tree import EXPLORATION, Tree, new_tree

BRANCHING, DEPTH, BLOCK = 12, 6, 64
PEERS: Mapping[str, tuple[str, ...]] = {"open_spiel": ("open_spiel==2.0.2",), "mctx": ("mctx==0.0.71",)}
"""Peer → what its environment is pinned to."""
select, expand, back_up = (twins()[name] for name in ("select", "expand", "back_up"))


@njit(cache=True, _nrt=False)  # as the product's
def leaves(tree, prior, many, nodes, options, depths):
    """Selects and expands `many` leaves, whose paths are written to `nodes` and `options`, `[many, depths]`."""
    for i in range(many):
        depths[i] = select(tree, prior, nodes[i], options[i])
        if depths[i] > 0:
            expand(tree, nodes[i, depths[i] - 1], options[i, depths[i] - 1], depths[i])


@njit(cache=True, _nrt=False)  # as the product's
def values_back(tree, many, nodes, options, depths, values):
    for i in range(many):
        back_up(tree, nodes[i], options[i], depths[i], values[i])


@njit(cache=True, _nrt=False)  # as the product's
def fused(tree, prior, rewards, many, nodes, options):
    for _ in range(many):
        depth = select(tree, prior, nodes, options)
        expand(tree, nodes[depth - 1], options[depth - 1], depth)
        value = np.float32(0.0)
        for t in range(depth):
            value += rewards[t, options[t]]
        back_up(tree, nodes, options, depth, value)


class Node:
    """The peer: a node as a Python object."""

    __slots__ = ("best", "children", "total", "visits")

    def __init__(self) -> None:
        self.children: list[Node | None] = [None] * BRANCHING
        self.visits, self.total, self.best = [0] * BRANCHING, [0.0] * BRANCHING, [0.0] * BRANCHING


def objects(root: Node, prior: list[list[float]], rewards: list[list[float]], many: int) -> None:
    for _ in range(many):
        node, path, value = root, [], 0.0
        while node is not None and len(path) < DEPTH:
            reach, weights = EXPLORATION * math.sqrt(1 + sum(node.visits)), prior[len(path)]
            scores = [
                reach * p / (1 + n) + (0.5 * total / n + 0.5 * best if n else 0.0)
                for p, n, total, best in zip(weights, node.visits, node.total, node.best, strict=True)
            ]
            option = scores.index(max(scores))
            value += rewards[len(path)][option]
            path.append((node, option))
            parent, node = node, node.children[option]
        if node is None and len(path) < DEPTH:
            parent.children[option] = Node()
        for node, option in path:
            node.visits[option] += 1
            node.total[option] += value
            node.best[option] = max(node.best[option], value)


def per_second(run: Callable[[int], None], many: int) -> float:
    run(BLOCK)
    start = time.perf_counter()
    run(many)
    return many / (time.perf_counter() - start)


def fresh(many: int) -> Tree:
    return new_tree(np.arange(DEPTH), np.full(DEPTH, BRANCHING), many + 2 * BLOCK)


def task() -> tuple[np.ndarray, np.ndarray]:
    """Prior and rewards, `[depth, branching]`: a path's rewards add up to at most 1."""
    rng = np.random.default_rng(0)
    prior = rng.dirichlet(np.full(BRANCHING, 2.0), DEPTH)
    return prior.astype(np.float32), (rng.random((DEPTH, BRANCHING)) / DEPTH).astype(np.float32)


def measure(many: int) -> dict[str, float]:
    prior, rewards = task()
    tree, path = fresh(many), np.zeros((2, DEPTH), dtype=np.int64)
    fused_per_s = per_second(lambda n: fused(tree, prior, rewards, n, path[0], path[1]), many)
    stepped_tree = fresh(many)
    nodes, options = np.zeros((BLOCK, DEPTH), dtype=np.int64), np.zeros((BLOCK, DEPTH), dtype=np.int64)
    depths, level = np.zeros(BLOCK, dtype=np.int64), np.arange(DEPTH)

    def stepped(n: int) -> None:
        for _ in range(n // BLOCK):
            leaves(stepped_tree, prior, BLOCK, nodes, options, depths)
            values = np.where(level < depths[:, None], rewards[level, options], np.float32(0.0)).sum(axis=1)
            values_back(stepped_tree, BLOCK, nodes, options, depths, values)

    stepped_per_s = per_second(stepped, many)
    root = Node()
    objects_per_s = per_second(lambda n: objects(root, prior.tolist(), rewards.tolist(), n), many // 50)
    arrays = (tree.children, tree.visits, tree.total, tree.best, tree.parent, tree.edge)
    return {
        "fused_per_s": fused_per_s,
        "stepped_per_s": stepped_per_s,
        "python_objects_per_s": objects_per_s,
        "bytes_per_node": sum(array.nbytes for array in arrays) / len(tree.parent),
    }


def peers(cache: Path, quick: bool) -> tuple[dict[str, float], dict[str, str]]:
    """Simulations per second of each peer, and why one is missing."""
    found, missing = {}, {}
    prior, rewards = task()
    given = json.dumps({"prior": prior.tolist(), "rewards": rewards.tolist(), "quick": quick})
    for name, pins in PEERS.items():
        try:
            python = environment(name, pins, cache)
            run = subprocess.run(
                [str(python), str(Path(__file__).parent / "searching" / "tree_peers.py"), name],
                input=given, capture_output=True, text=True, check=True, timeout=600,
            )  # fmt: skip
            found |= json.loads(run.stdout.splitlines()[-1])
        except (subprocess.SubprocessError, OSError) as error:
            told = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
            missing[name] = told[-1][:200] if told else type(error).__name__
    return found, missing


def plot(figures: Mapping[str, float], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rates = {name[:-6].replace("_", " "): value for name, value in figures.items() if name.endswith("_per_s")}
    figure, axes = pyplot.subplots(figsize=(7, 3))
    bars = axes.barh(
        list(rates), list(rates.values()), color=["C0" if n in ("fused", "stepped") else "C7" for n in rates]
    )
    axes.bar_label(bars, labels=[f"{value:,.0f}" for value in rates.values()], padding=3)
    axes.set(xscale="log", xlabel="simulations a second on one core", xlim=(None, 10 * max(rates.values())))
    axes.invert_yaxis()
    figure.savefig(path, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the simulations, and no peers to install")
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, help="OpenSpiel and mctx too")
    parser.add_argument("--cache", type=Path, default=Path(".cache/tree_speed"), help="where peers are installed")
    parser.add_argument("--plot", type=Path, help="write a picture here")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    arguments = parser.parse_args()
    figures, missing = measure(100_000 if arguments.quick else 1_000_000), {}
    if arguments.peers or (arguments.peers is None and not arguments.quick):
        found, missing = peers(arguments.cache.resolve(), arguments.quick)
        figures |= found
    if arguments.plot:
        plot(figures, arguments.plot)
    if arguments.json:
        print(json.dumps(figures | ({"missing": missing} if missing else {})))
        return
    for name, value in figures.items():
        print(f"{name:>28} {value:>12,.0f}")
    for name, reason in missing.items():
        print(f"{name:>28} skipped: {reason}")


if __name__ == "__main__":
    main()
