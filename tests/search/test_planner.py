"""The tree against the exhaustive answer, its masks, and its arithmetic by hand."""

import math

import numpy as np
import pytest
from synthetic import Table

from model_opt.search import Decision, Forbid, SearchSpace
from model_opt.search.encoding import Encoding
from model_opt.search.planner import Planner, Ranking
from model_opt.search.tree import ForbiddenMoves, Tree, back_up, expand, mask_options, new_tree, select

NONE = np.zeros((0, 2), dtype=np.int16)


def rank(planner: Planner, encoding: Encoding, score: object, known: np.ndarray, seed: int = 0) -> Ranking:
    dims = len(encoding.sizes)
    within = np.arange(encoding.widest) < encoding.sizes[:, None]
    return planner.rank(
        score,  # type: ignore[arg-type]
        known=known.astype(np.int16),
        incumbents=np.zeros((1, dims), dtype=np.int16),
        importance=np.linspace(1, 2, dims),
        prior=within / encoding.sizes[:, None],
        rng=np.random.default_rng(seed),
    )


@pytest.mark.parametrize("seed", range(6))
def test_in_a_space_that_can_be_enumerated_the_tree_picks_the_best(seed: int) -> None:
    """65,536 plans, an acquisition with interactions, 600 estimates."""
    table = Table(seed, decisions=8)
    encoding = Encoding(table.space)
    planner = Planner(encoding)
    assert planner.every is None
    exhaustive = 4 * table.metrics(table.all_codes())[0]
    ranking = rank(planner, encoding, lambda codes: 4 * table.metrics(codes)[0], np.zeros((1, 8)), seed)
    assert len(ranking.values) < 1000
    assert ranking.values[0] >= exhaustive.max() - 0.35  # nats, of a range of about 20
    assert (exhaustive > ranking.values[0] + 1e-9).sum() <= 3


def test_a_small_space_is_searched_whole() -> None:
    table = Table(3, decisions=5)
    encoding = Encoding(table.space)
    codes = table.all_codes()
    value = table.metrics(codes)[0]
    known = codes[np.argsort(-value)[:20]]
    assert len(codes) == 1024
    ranking = rank(Planner(encoding), encoding, lambda c: table.metrics(c)[0], known)
    np.testing.assert_allclose(ranking.values, np.sort(value)[::-1][20:])


def test_the_same_seed_gives_the_same_ranking() -> None:
    table = Table(1, decisions=8)
    encoding = Encoding(table.space)
    first, again = (
        rank(Planner(encoding), encoding, lambda c: table.metrics(c)[0], np.zeros((1, 8)), 5) for _ in range(2)
    )
    np.testing.assert_array_equal(first.codes, again.codes)
    np.testing.assert_array_equal(first.values, again.values)


def test_nothing_forbidden_or_known_is_ever_proposed() -> None:
    forbidden = [
        Forbid({"d0": ["1", "2"], "d7": ["3"]}),
        Forbid({"d1": ["3"]}),
        Forbid({"d2": ["1"], "d3": ["1", "2", "3"], "d4": ["2"]}),
    ]
    table = Table(2, decisions=8)
    space = SearchSpace(table.space.decisions, forbidden)
    encoding = Encoding(space)
    known = np.random.default_rng(0).integers(0, 4, (300, 8))
    ranking = rank(Planner(encoding), encoding, lambda c: table.metrics(c)[0], known)
    assert space.allowed(ranking.codes).all()
    assert not {row.tobytes() for row in ranking.codes} & {row.tobytes() for row in known.astype(np.int16)}
    assert len(np.unique(ranking.codes, axis=0)) == len(ranking.codes) > 300


def test_rules_that_leave_little_of_a_large_space_make_it_enumerable() -> None:
    names = [f"d{i}" for i in range(14)]
    pairs = [Forbid({a: ["1", "2", "3"], b: ["1", "2", "3"]}) for i, a in enumerate(names) for b in names[:i]]
    space = SearchSpace([Decision(name, ["0", "1", "2", "3"]) for name in names], pairs)
    every = Encoding(space).enumerate()
    assert every is not None
    assert len(every) == 1 + 14 * 3
    assert space.allowed(every).all()


def two_level_tree() -> tuple:  # type: ignore[type-arg]
    sizes = np.array([2, 3])
    return new_tree(np.array([0, 1]), sizes, 10), np.zeros(2, dtype=np.int64), np.zeros(2, dtype=np.int64)


def masked(tree: Tree, node: int) -> list[bool]:
    return [bool(hidden) for hidden in np.isneginf(tree.best[node])]


def test_puct_by_hand() -> None:
    """After one visit of each option with values 0.8 and 0.2: Q = mean, and U = 0.5 P sqrt(N + 1) / (1 + n), N = 2.

    P = (0.1, 0.9): 0.8 + 0.05 sqrt(3) / 2 = 0.843 against 0.2 + 0.45 sqrt(3) / 2 = 0.590.
    P = (0.01, 0.99) and values 0.5, 0.2: 0.504 against 0.629.
    """
    for prior, values, expected in (((0.1, 0.9), (0.8, 0.2), 0), ((0.01, 0.99), (0.5, 0.2), 1)):
        tree, nodes, options = two_level_tree()
        table = np.array([[*prior, 0.0], [1 / 3, 1 / 3, 1 / 3]])
        tree.visits[0, :2] = 1
        tree.total[0, :2] = tree.best[0, :2] = values
        assert select(tree, table, nodes, options) == 1
        assert options[0] == expected


def test_an_unvisited_tree_follows_the_prior_and_backs_up_sums_and_maxima() -> None:
    tree, nodes, options = two_level_tree()
    table = np.array([[0.3, 0.7, 0.0], [0.2, 0.2, 0.6]])
    assert select(tree, table, nodes, options) == 1 and options[0] == 1
    child = expand(tree, 0, 1, 1)
    back_up(tree, nodes, options, 1, 0.5)
    tree.visits[0, 0] = 50  # so that the next descent goes through the child
    assert select(tree, table, nodes, options) == 2
    assert list(nodes) == [0, child] and list(options) == [1, 2]
    back_up(tree, nodes, options, 2, 0.25)
    assert tree.visits[0, 1] == 2
    assert math.isclose(tree.total[0, 1], 0.75) and tree.best[0, 1] == 0.5
    assert tree.total[child, 2] == tree.best[child, 2] == 0.25


def test_a_full_tree_grows_no_further() -> None:
    tree = new_tree(np.array([0, 1]), np.array([2, 3]), 1)
    assert expand(tree, 0, 0, 1) == -1
    assert tree.used[0] == 1


def test_exhausted_subtrees_are_masked_up_to_the_root() -> None:
    encoding = Encoding(SearchSpace([Decision("a", ["0", "1"]), Decision("b", ["0", "1", "2"])]))
    below_first = np.array([[0, 0], [0, 1], [0, 2]], dtype=np.int16)
    tree, nodes, options = two_level_tree()
    prior = np.full((2, 3), 1 / 3)
    mask_options(tree, 0, 0, below_first[0], ForbiddenMoves(encoding.rules, encoding.named, below_first))
    assert masked(tree, 0) == [True, False, True]
    everything = np.concatenate([below_first, below_first + np.array([1, 0], dtype=np.int16)])
    child = expand(tree, 0, 1, 1)
    mask_options(tree, child, 1, everything[3], ForbiddenMoves(encoding.rules, encoding.named, everything))
    assert all(masked(tree, 0))
    assert select(tree, prior, nodes, options) == 0


def test_an_option_that_breaks_a_rule_whatever_follows_is_masked() -> None:
    space = SearchSpace(
        [Decision("a", ["0", "1"]), Decision("b", ["0", "1", "2"])], [Forbid({"a": ["1"], "b": ["1", "2"]})]
    )
    encoding = Encoding(space)
    tree, _, _ = two_level_tree()
    rules = ForbiddenMoves(encoding.rules, encoding.named, NONE)
    mask_options(tree, 0, 0, np.zeros(2, dtype=np.int16), rules)
    assert masked(tree, 0) == [False, False, True]
    child = expand(tree, 0, 1, 1)
    mask_options(tree, child, 1, np.array([1, 0], dtype=np.int16), rules)
    assert masked(tree, child) == [False, True, True]


def test_a_node_takes_at_most_300_bytes() -> None:
    tree = new_tree(np.arange(6), np.full(6, 12), 1000)
    arrays = (tree.children, tree.visits, tree.total, tree.best, tree.parent, tree.edge)
    assert sum(array.nbytes for array in arrays) / 1000 <= 300
