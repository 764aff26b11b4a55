"""Moments merge like the samples that they are of."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_opt.errors import InvalidInput
from model_opt.federation.moments import MomentColumns, Moments, merge, merge_columns

SAMPLES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20)


def close(a: Moments, b: Moments) -> bool:
    scale = max(1.0, abs(a.min), abs(a.max))
    same = (a.n, a.min, a.max) == (b.n, b.min, b.max)
    return same and abs(a.mean - b.mean) <= 1e-9 * scale and abs(a.m2 - b.m2) <= 1e-9 * scale**2 * a.n


@given(SAMPLES, SAMPLES)
def test_merging_equals_the_concatenated_samples(a: list[float], b: list[float]) -> None:
    assert close(merge(Moments.of(a), Moments.of(b)), Moments.of(a + b))


@given(SAMPLES, SAMPLES, SAMPLES)
def test_merging_is_commutative_and_associative(a: list[float], b: list[float], c: list[float]) -> None:
    x, y, z = Moments.of(a), Moments.of(b), Moments.of(c)
    assert merge(x, y) == merge(y, x)
    assert close(merge(merge(x, y), z), merge(x, merge(y, z)))


@given(st.lists(st.tuples(SAMPLES, SAMPLES), min_size=1, max_size=5))
def test_columns_merge_as_rows_do(pairs: list[tuple[list[float], list[float]]]) -> None:
    left, right = [Moments.of(a) for a, _ in pairs], [Moments.of(b) for _, b in pairs]
    columns = merge_columns(MomentColumns.of(left), MomentColumns.of(right))
    assert columns.to_list() == [merge(a, b) for a, b in zip(left, right, strict=True)]
    assert columns.faults() is None
    assert np.allclose(columns.variance, [moments.variance for moments in columns.to_list()])


def test_variance_of_one_sample_is_nought() -> None:
    assert Moments.of([3.0]).variance == 0.0
    assert Moments.of([1.0, 2.0, 3.0]).variance == pytest.approx(1.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"n": 0},
        {"n": 2**53 + 1},
        {"m2": -1.0},
        {"mean": 5.0},
        {"min": 2.0},
        {"max": float("inf")},
        {"m2": float("nan")},
    ],
)
def test_moments_that_no_samples_have_are_refused(wrong: dict[str, float]) -> None:
    fields = {"n": 2, "mean": 1.0, "m2": 0.5, "min": 0.5, "max": 1.5} | wrong
    with pytest.raises(InvalidInput):
        Moments(**fields)
    with pytest.raises(InvalidInput):
        Moments.of([])
