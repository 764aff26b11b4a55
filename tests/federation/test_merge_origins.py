"""Weights: known answers, what must not change, nobody's certainty, and no division by zero."""

import math
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_opt.errors import InvalidInput
from model_opt.federation.merge_origins import LEAST_FLOOR, Merged, merge_origins
from model_opt.federation.moments import Moments
from model_opt.federation.row import Row
from model_opt.federation.similarities import SAME_FAMILY, freshness, similarities
from model_opt.search.plan import Choice, Plan
from model_opt.storage.testing import CONTEXT, OTHER_CONTEXT

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
import merge_accuracy

HERE, ELSEWHERE = "1" * 32, "2" * 32


def row(
    origin: str,
    moments: Moments | list[float],
    *,
    plan: str = "0.5",
    context: str = HERE,
    epoch: str = "e",
    metric: str = "log_speedup",
) -> Row:
    return Row(
        federation="local",
        signature="5" * 32,
        plan=Plan((Choice(decision="prune", option=plan),)),
        context=context,
        origin=origin,
        epoch=epoch,
        sequence=1,
        moments={metric: moments if isinstance(moments, Moments) else Moments.of(moments)},
    )


def merged(rows: list[Row], **options: object) -> Merged:
    return merge_origins(rows, **({"metric": "log_speedup", "floor": 0.01} | options))  # type: ignore[arg-type]


def test_one_origin_has_its_own_variance() -> None:
    found = merged([row("a", [1.0, 1.2, 1.4])])
    own = (0.08 + 4 * 0.04) / 6
    assert found.mean[0] == pytest.approx(1.2) and found.variance[0] == pytest.approx(own / 3)
    assert (found.n[0], found.origins[0], found.sources[0]) == (3, 1, {"a": 1.0})


def test_two_that_agree_are_as_certain_as_their_samples() -> None:
    found = merged([row("a", [1.0]), row("b", [1.0])])
    assert found.mean[0] == 1.0 and found.variance[0] == pytest.approx(0.01 / 2)
    half = 12.706 * math.sqrt(0.005)
    assert found.high[0] - 1 == pytest.approx(half, rel=1e-4)


def test_three_that_differ_by_paule_and_mandel() -> None:
    found = merged([row(name, [value]) for name, value in (("a", 0.0), ("b", 1.0), ("c", 2.0))])
    # v = 0.01 each; the misfit 2/(0.01 + τ²) equals 2 where τ² = 0.99, and the mean's variance is (v + τ²)/3.
    assert found.mean[0] == pytest.approx(1.0) and found.variance[0] == pytest.approx(1 / 3)
    assert found.outliers[0] == ()


def test_a_liar_among_four_is_named_and_hardly_heeded() -> None:
    lie = Moments(n=10**9, mean=9.0, m2=0.0, min=9.0, max=9.0)
    found = merged([*(row(name, [1.0, 1.1]) for name in "abc"), row("liar", lie)])
    assert found.outliers[0] == ("liar",) and found.mean[0] == pytest.approx(1.05, abs=0.01)
    assert "liar" not in found.sources[0]


def test_workers_of_one_liar_count_as_one() -> None:
    workers = [row("liar", [1.3] * 50, epoch=str(number)) for number in range(8)]
    found = merged([*(row(name, [1.0, 1.05]) for name in "abcde"), *workers])
    assert found.origins[0] <= 6 and abs(found.mean[0] - 1.025) < 0.05


def test_trust_age_and_hardware_take_weight_away() -> None:
    rows = [row("a", [0.0] * 4), row("b", [0.05] * 4)]
    even = merged(rows).mean[0]
    assert even == pytest.approx(0.025)
    assert merged(rows, trust={"b": 0.1}).mean[0] < 0.01
    assert merged(rows, trust={"b": 0.0}).sources[0] == {"a": 1.0}
    old = merged(rows, heard_at={("b", "e"): 0.0}, now=1000.0, half_life_s=250.0)
    assert old.sources[0]["b"] == pytest.approx(1 / 17)
    apart = [row("a", [0.0] * 4), row("b", [0.05] * 4, context=ELSEWHERE)]
    assert merged(apart, similarity={HERE: 1.0}).sources[0] == {"a": 1.0}
    assert merged(apart, similarity={HERE: 1.0, ELSEWHERE: 0.25}).sources[0]["b"] == pytest.approx(0.2)


def test_contexts_of_one_origin_never_mix() -> None:
    rows = [row("a", [1.0] * 3), row("a", [50.0] * 900, context=ELSEWHERE)]
    found = merged(rows, similarity={HERE: 1.0, ELSEWHERE: 0.9})
    assert (found.mean[0], found.n[0]) == (1.0, 3)


def test_what_is_merged_is_never_heard_again() -> None:
    """An echo is a row that is there already: it changes nothing."""
    rows = [row("a", [1.0, 2.0]), row("b", [1.5])]
    once, twice = merged(rows), merged([*rows, *rows])
    assert np.array_equal(once.mean, twice.mean) and np.array_equal(once.variance, twice.variance)


def test_exact_metrics_agree_or_are_flagged() -> None:
    size = {"metric": "log_size_ratio"}
    same = merged([row(name, [1.25], **size) for name in "ab"], **size)
    assert (same.mean[0], same.variance[0], bool(same.agreed[0]), same.outliers[0]) == (1.25, 0.0, True, ())
    apart = merged([row("a", [1.25], **size), row("b", [1.5], **size)], **size)
    assert not apart.agreed[0] and (apart.low[0], apart.high[0]) == (1.25, 1.5)
    lied = merged([*(row(name, [1.25], **size) for name in "abc"), row("d", [7.0] * 99, **size)], **size)
    assert (lied.mean[0], bool(lied.agreed[0]), lied.outliers[0]) == (1.25, True, ("d",))
    torn = merged([row("a", [1.25], **size), row("b", [1.25, 1.9], **size)], trust={"b": 0.5}, **size)
    assert (torn.mean[0], torn.outliers[0]) == (1.25, ("b",))


def test_confidence_and_prior() -> None:
    found = merged([row("a", [1.0])])
    assert found.confidence(0.01)[0] == pytest.approx(0.5)
    assert found.prior(np.array([3.0]), 0.01)[0] == pytest.approx(2.0)
    with pytest.raises(InvalidInput):
        found.confidence(0.0)


CLAIMS = st.builds(
    lambda n, values, spread: Moments(n=n, mean=sorted(values)[1], m2=spread, min=min(values), max=max(values)),
    st.integers(1, 4) | st.integers(1, 2**53),
    st.tuples(*[st.floats(allow_nan=False, allow_infinity=False)] * 3),
    st.just(0.0) | st.floats(0, allow_nan=False, allow_infinity=False),
)
SHARES = st.sampled_from([0.0, 1e-300, 0.3, 1.0]) | st.floats(0, 1)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("pq"), st.sampled_from("abcdefgh"), CLAIMS), max_size=14),
    st.dictionaries(st.sampled_from("abcdefgh"), SHARES),
    st.sampled_from([LEAST_FLOOR, 1e-6, 1.0, 1e30]),
    st.sampled_from(["log_speedup", "log_size_ratio"]),
)
def test_nothing_divides_by_zero(
    claims: list[tuple[str, str, Moments]], trust: dict[str, float], floor: float, metric: str
) -> None:
    rows = [row(o, m, plan=p, epoch=f"{i:032x}", metric=metric) for i, (p, o, m) in enumerate(claims)]
    kept = list({(r.plan.key, r.origin): r for r in rows}.values())
    with np.errstate(divide="raise", invalid="raise"):
        found = merge_origins(kept, metric=metric, floor=floor, trust=trust)
    for column in (found.mean, found.variance, found.low, found.high):
        assert np.isfinite(column).all()
    assert (found.variance >= 0).all() and (found.low <= found.high).all() and (found.origins >= 1).all()
    assert all(sum(shares.values()) == pytest.approx(1.0) for shares in found.sources)


@given(
    st.lists(st.tuples(st.sampled_from("pqr"), st.sampled_from("abcdef"), st.floats(-1, 1)), max_size=14), st.randoms()
)
def test_order_does_not_change_a_bit(told: list[tuple[str, str, float]], source: random.Random) -> None:
    rows = [row(o, [x], plan=p, epoch=f"{i:032x}") for i, (p, o, x) in enumerate(told)]
    shuffled = source.sample(rows, len(rows))
    one, other = merged(rows), merged(shuffled)
    assert one.subjects == other.subjects and one.outliers == other.outliers
    for name in ("mean", "variance", "low", "high", "n"):
        assert np.array_equal(getattr(one, name), getattr(other, name))


def test_intervals_cover_and_liars_do_not_move() -> None:
    for case in ("homogeneous", "heterogeneous", "single_samples"):
        assert merge_accuracy.measure(case, 200)["ours"]["coverage"] >= 90
    for case in ("liar_huge_n", "liar_zero_variance", "liar_eight_workers"):
        found = merged(merge_accuracy.rows(case, 200), floor=merge_accuracy.NOISE**2)
        assert np.abs(found.mean).mean() < 0.05
    assert merge_accuracy.exact(20) == 100


def test_discounts() -> None:
    assert freshness(10, 10) == 0.5 and freshness(-5, 10) == 1.0 and freshness(1e300, 1e-9) >= 0
    known = {context.key: context for context in (CONTEXT, OTHER_CONTEXT)}
    assert similarities(CONTEXT, known, "latency_ms") == {CONTEXT.key: 1.0, OTHER_CONTEXT.key: 0.0}
    assert similarities(CONTEXT, known, "log_size_ratio")[OTHER_CONTEXT.key] == SAME_FAMILY
    for wrong in ({"floor": 0.0}, {"floor": {ELSEWHERE: 1.0}}, {"trust": {"a": 1.5}}, {"half_life_s": 0.0}):
        with pytest.raises(InvalidInput):
            merged([row("a", [1.0])], **wrong)
