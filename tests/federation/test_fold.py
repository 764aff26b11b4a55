"""Folding: the laws, bits that do not depend on order, and columns that are added."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_opt.federation.fold import fold, fold_runs
from model_opt.federation.moments import MomentColumns, Moments, merge
from model_opt.federation.row import Row
from model_opt.search.plan import Choice, Plan

VALUES = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=6)
PLACES = st.tuples(st.sampled_from("ab"), st.sampled_from("cd"), st.sampled_from("xyz"), st.sampled_from("123"))
TOLD = st.dictionaries(PLACES, VALUES, min_size=1, max_size=20)
"""Samples by plan, context, origin and epoch."""


def row(plan: str, context: str, origin: str, epoch: str, values: list[float], sequence: int = 2) -> Row:
    return Row(
        federation="local",
        signature="5" * 32,
        plan=Plan((Choice(decision="prune", option=plan),)),
        context=context * 32,
        origin=origin,
        epoch=epoch * 32,
        sequence=sequence,
        moments={"latency_ms": Moments.of(values)},
    )


@given(TOLD, st.integers(0, 2**16))
def test_order_and_repeats_do_not_change_a_bit(told: dict[tuple[str, ...], list[float]], seed: int) -> None:
    rows = [row(*place, values) for place, values in told.items()]
    stale = [row(*place, [1.0], sequence=1) for place in told]
    shuffled = [*rows, *rows[:3], *stale]
    random.Random(seed).shuffle(shuffled)
    one, other = fold(rows, "latency_ms"), fold(shuffled, "latency_ms")
    assert one.cells == other.cells and one.epochs == other.epochs
    assert one.moments.to_list() == other.moments.to_list()


@given(TOLD)
def test_an_origin_is_as_one_deployment_on_all_its_samples(told: dict[tuple[str, ...], list[float]]) -> None:
    folded = fold([row(*place, values) for place, values in told.items()], "latency_ms")
    together: dict[tuple[str, ...], list[float]] = {}
    for (plan, context, origin, _), values in told.items():
        together.setdefault((plan, context, origin), []).extend(values)
    assert len(folded) == len(together)
    by_cell = dict(zip(folded.cells, folded.moments.to_list(), strict=True))
    for (plan, context, origin), values in together.items():
        cell = next(
            c
            for c in by_cell
            if (c.plan, c.context, c.origin)
            == (Plan((Choice(decision="prune", option=plan),)).key, context * 32, origin)
        )
        found, wanted = by_cell[cell], Moments.of(values)
        assert (found.n, found.min, found.max) == (wanted.n, wanted.min, wanted.max)
        assert found.mean == pytest.approx(wanted.mean, abs=1e-9) and found.m2 == pytest.approx(wanted.m2, abs=1e-6)


@given(st.lists(st.lists(VALUES, min_size=1, max_size=5), min_size=1, max_size=6))
def test_runs_add_up_as_rows_do_bit_for_bit(runs: list[list[list[float]]]) -> None:
    moments = [[Moments.of(values) for values in run] for run in runs]
    starts = np.cumsum([0, *map(len, moments)])[:-1]
    folded = fold_runs(starts, MomentColumns.of(one for run in moments for one in run))
    for found, run in zip(folded.to_list(), moments, strict=True):
        wanted = run[0]
        for one in run[1:]:
            wanted = merge(wanted, one)
        assert found == wanted


def test_nothing_folds_to_nothing() -> None:
    assert len(fold([], "latency_ms")) == 0
    assert len(fold([row("a", "c", "x", "1", [1.0])], "accuracy_drop")) == 0
