import math
from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from model_opt.search.expected_improvement import log_expected_improvement, log_feasible
from model_opt.search.gram import cross, gram, gram_gradient, one_hot, option_tables
from model_opt.search.metric_model import MetricModel, Rows
from model_opt.search.regression import Conditioned, Fitted, Regression
from model_opt.search.surrogate import Surrogate
from model_opt.search.warp import RankWarp

SIZES = np.array([3, 4, 5, 2, 3, 4])
ORDERED = np.array([True, False, True, False, False, True])


def rows(many: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Plans `[decisions, rows]` and targets with main effects and an interaction."""
    rng = np.random.default_rng(seed)
    codes = np.stack([rng.integers(0, size, many) for size in SIZES]).astype(np.int16)
    return codes, codes[0] - 0.5 * codes[2] + (codes[1] == 2) * (codes[3] == 1) + 0.05 * rng.normal(size=many)


def test_gradient_is_that_of_finite_differences() -> None:
    codes, raw = rows(30)
    z, noise = RankWarp(raw).targets, np.linspace(0.0, 0.05, 30)
    surrogate = Surrogate(SIZES, ORDERED)
    at = surrogate.prior.parameters
    at = at + np.random.default_rng(1).normal(size=len(at)) * 0.3
    _, gradient = surrogate.loss(at, codes, z, noise, False)
    step = 1e-5 * np.eye(len(at))
    numeric = [
        (surrogate.loss(at + e, codes, z, noise, False)[0] - surrogate.loss(at - e, codes, z, noise, False)[0]) / 2e-5
        for e in step
    ]
    np.testing.assert_allclose(gradient, numeric, atol=1e-6)


def test_gradient_with_sources_is_that_of_finite_differences() -> None:
    codes, raw = rows(24)
    z, noise, source = RankWarp(raw).targets, np.full(24, 0.02), np.arange(24, dtype=np.int16) % 3
    surrogate = Surrogate(SIZES, ORDERED, np.array([0.05, 0.4]))
    at = surrogate.prior.parameters
    at = at + np.random.default_rng(1).normal(size=len(at)) * 0.3
    _, gradient = surrogate.loss(at, codes, z, noise, False, source)
    step = 1e-5 * np.eye(len(at))
    numeric = [
        surrogate.loss(at + e, codes, z, noise, False, source)[0]
        - surrogate.loss(at - e, codes, z, noise, False, source)[0]
        for e in step
    ]
    np.testing.assert_allclose(gradient, np.array(numeric) / 2e-5, atol=1e-6)


def test_a_source_that_is_just_like_the_problem_is_more_data_and_one_that_is_not_is_none() -> None:
    codes, raw = rows(40)
    z, noise, source = RankWarp(raw).targets, np.full(40, 0.02), (np.arange(40) >= 10).astype(np.int16)
    candidates = rows(15, 7)[0].T

    def told(unlike: float | None, many: int = 40) -> tuple[np.ndarray, np.ndarray]:
        prior = Surrogate(SIZES, ORDERED, None if unlike is None else np.array([unlike])).prior
        on_rows = prior.conditioned(codes[:, :many], noise[:many], None if unlike is None else source[:many])
        return on_rows.with_targets(z[:many]).posterior(candidates)

    np.testing.assert_allclose(told(1e-9), told(None), atol=1e-4)
    np.testing.assert_allclose(told(50.0), told(None, 10), atol=1e-4)


def test_errors_of_leaving_out_are_those_of_leaving_out() -> None:
    codes, raw = rows(20)
    z, noise = RankWarp(raw).targets, np.full(20, 0.02)
    prior = Surrogate(SIZES, ORDERED).prior
    whole = prior.conditioned(codes, noise).with_targets(z)
    rest = prior.conditioned(codes[:, 1:], noise[1:]).with_targets(z[1:])
    mean, _ = rest.posterior(codes[:, :1].T)
    assert whole.left_out()[0] == pytest.approx(z[0] - mean[0], abs=1e-4)


def test_kernel_by_hand() -> None:
    """Two decisions, h = (1, 2), o = (0, 3) over three ordered options: k_1 = e^-1, k_2 = e^-(2 + 3/2)."""
    tables = option_tables(np.array([1.0, 2.0]), np.array([0.0, 3.0]), np.array([2, 3]), 3)
    plans = np.array([[0, 1], [1, 2]], dtype=np.int16)  # [decisions, rows]
    a, b = math.exp(-1), math.exp(-3.5)
    weights = np.array([0.6, 0.4])
    expected = 0.6 * (a + b) / 2 + 0.4 * a * b
    covariance, products = gram(plans, tables, weights)
    assert covariance[0, 1] == pytest.approx(expected)
    assert covariance[0, 0] == pytest.approx(1.0)
    assert products[1, 0] == pytest.approx(a * b)
    changed = cross(np.array([[0, 2]]), tables, weights, one_hot(plans, 3))
    assert changed[0, 1] == pytest.approx(0.6 * (a + 1) / 2 + 0.4 * a)


@pytest.mark.parametrize("many", [1, 7, 300])
def test_covariances_are_those_of_the_formula_pair_by_pair(many: int) -> None:
    """In blocks, by matrices, or written out: the same; and the derivative is that of moving a parameter a little."""
    rng, weights = np.random.default_rng(many), np.array([0.6, 0.4])
    h, o, (codes, _) = rng.exponential(0.5, 6), rng.exponential(0.5, 6) * ORDERED, rows(many)
    tables = option_tables(h, o, SIZES, 5)
    each = np.stack([tables[d][codes[d][:, None], codes[d]] for d in range(6)])
    expected = 0.6 * each.mean(axis=0) + 0.4 * each.prod(axis=0)
    covariance, products = gram(codes, tables, weights)
    np.testing.assert_allclose(covariance, expected, rtol=1e-12)
    np.testing.assert_allclose(cross(codes.T, tables, weights, one_hot(codes, 5)), expected, rtol=1e-6)
    sensitivity = rng.normal(size=(many, many))
    sensitivity += sensitivity.T
    told = gram_gradient(codes, tables, weights, sensitivity, products)

    def changed(step_h: np.ndarray, step_o: np.ndarray) -> float:
        moved = option_tables(h + step_h, o + step_o, SIZES, 5)
        return float((sensitivity * gram(codes, moved, weights)[0]).sum())

    zero, step = np.zeros(6), 1e-5 * np.eye(6)
    by_h = [(changed(e, zero) - changed(-e, zero)) / 2e-5 for e in step]
    by_o = [(changed(zero, e) - changed(zero, -e)) / 2e-5 for e in step]
    scale = np.abs(sensitivity).sum()
    np.testing.assert_allclose(told[0] / scale, np.array(by_h) / scale, atol=1e-8)
    np.testing.assert_allclose(told[1] / (SIZES - 1) / scale, np.array(by_o) / scale, atol=1e-8)
    assert told[2, 0] == pytest.approx((sensitivity * each.mean(axis=0)).sum())
    assert told[2, 1] == pytest.approx((sensitivity * each.prod(axis=0)).sum())


def test_growing_by_rows_is_conditioning_on_all() -> None:
    codes, raw = rows(100)
    z, noise = RankWarp(raw).targets, np.full(100, 0.02)
    prior = Surrogate(SIZES, ORDERED).prior
    on_rows = prior.conditioned(codes[:, :5], noise[:5])
    for i in range(5, 100):
        on_rows = on_rows.appended(codes[:, i], 0.02)
    whole, grown = prior.conditioned(codes, noise).with_targets(z), on_rows.with_targets(z)
    np.testing.assert_allclose(whole.at_rows(), grown.at_rows(), atol=1e-6)
    np.testing.assert_allclose(whole.left_out(), grown.left_out(), atol=1e-6)
    unseen = rows(50, seed=9)[0].T
    np.testing.assert_allclose(whole.posterior(unseen), grown.posterior(unseen), atol=1e-4)


def answers(regression: Regression) -> np.ndarray:
    """All that it says, of its rows and of others."""
    unseen = rows(20, seed=9)[0].T
    return np.concatenate([*regression.posterior(unseen), *regression.at_rows(), regression.left_out()])


@pytest.mark.parametrize("many", [40, 64])
def test_rows_appended_to_the_same_do_not_disturb_one_another(many: int) -> None:
    """With room for more rows, and where it is used up."""
    codes, raw = rows(many + 60)
    z, noise = RankWarp(raw).targets, np.linspace(0.01, 0.2, many + 60)
    prior, start = Surrogate(SIZES, ORDERED).prior, list(range(many))

    def on_start() -> Conditioned:
        return prior.conditioned(codes[:, start], noise[start])

    shared, odd, even = on_start(), list(range(many + 1, many + 60, 2)), list(range(many, many + 60, 2))
    before = answers(shared.with_targets(z[start]))
    with_odd = with_even = shared
    for i, j in zip(odd, even, strict=True):  # in turns
        with_odd, with_even = with_odd.appended(codes[:, i], noise[i]), with_even.appended(codes[:, j], noise[j])
    for grown, others in ((with_odd, odd), (with_even, even)):
        alone = on_start()
        for i in others:
            alone = alone.appended(codes[:, i], noise[i])
        targets = z[start + others]
        np.testing.assert_array_equal(answers(grown.with_targets(targets)), answers(alone.with_targets(targets)))
    np.testing.assert_array_equal(answers(shared.with_targets(z[start])), before)


def test_what_is_made_of_a_value_leaves_it_as_it_was() -> None:
    codes, raw = rows(30)
    z, noise, source = RankWarp(raw).targets, np.full(30, 0.05), (np.arange(30) < 10).astype(np.int16)
    surrogate = Surrogate(SIZES, ORDERED, np.array([0.3]))

    def fitted(start: Fitted | None = None) -> Fitted:
        return surrogate.fit(codes, z, noise, guessed=True, steps=5, source=source, start=start)

    once = fitted()
    regression = once.conditioned(codes, noise, source).with_targets(z)
    parameters, told = once.parameters.copy(), answers(regression)
    assert not np.array_equal(fitted(once).parameters, parameters)
    once.trusting_noise().conditioned(codes, noise, source).appended(codes[:, 0], 0.1)
    regression.conditioned.appended(codes[:, 0], 0.1).with_targets(np.append(z, 3.0)).left_out()
    regression.conditioned.with_targets(-z).at_rows()
    np.testing.assert_array_equal(once.parameters, parameters)
    np.testing.assert_array_equal(fitted().parameters, parameters)
    np.testing.assert_array_equal(answers(regression), told)
    for value, name in (
        (surrogate, "sizes"),
        (once, "nugget"),
        (regression.conditioned, "size"),
        (regression, "alpha"),
    ):
        with pytest.raises(FrozenInstanceError):
            setattr(value, name, None)


def test_noise_that_is_trusted_is_taken_as_it_is_said_to_be() -> None:
    codes, raw = rows(40)
    surrogate, z, noise = Surrogate(SIZES, ORDERED), RankWarp(raw).targets, np.full(40, 0.3)
    fitted = surrogate.fit(codes, z, noise, guessed=True, steps=10)
    trusting = fitted.trusting_noise()
    assert fitted.noise_factor != 1.0
    np.testing.assert_array_equal(trusting.conditioned(codes, noise).noise, noise)
    again = surrogate.at(trusting.parameters)
    for name in ("tables", "weights", "kinship", "nugget", "noise_factor", "importance"):
        np.testing.assert_array_equal(getattr(again, name), getattr(trusting, name))


def test_posterior_is_the_textbook_one() -> None:
    """Mean k' K^-1 z and variance k(x, x) - k' K^-1 k (Rasmussen and Williams 2006, equations 2.25 and 2.26)."""
    codes, raw = rows(20)
    prior = Surrogate(SIZES, ORDERED).prior
    regression = prior.conditioned(codes, np.full(20, 0.1)).with_targets(RankWarp(raw).targets)
    unseen = rows(7, seed=5)[0]
    joint, _ = gram(np.concatenate([codes, unseen], axis=1), prior.tables, prior.weights)
    inverse = np.linalg.inv(joint[:20, :20] + (prior.nugget + 0.1 * prior.noise_factor + 1e-6) * np.eye(20))
    mean, std = regression.posterior(unseen.T)
    np.testing.assert_allclose(mean, joint[20:, :20] @ inverse @ RankWarp(raw).targets, atol=1e-5)
    reduction = np.einsum("ij,jk,ik->i", joint[20:, :20], inverse, joint[20:, :20])
    np.testing.assert_allclose(std**2, prior.weights.sum() + prior.nugget - reduction, atol=1e-5)


def test_fitting_finds_what_matters_and_predicts() -> None:
    codes, raw = rows(80)
    warp = RankWarp(raw)
    noise = np.full(80, 0.01)
    fitted = Surrogate(SIZES, ORDERED).fit(codes, warp.targets, noise, guessed=False, steps=30)
    unseen, truth = rows(300, seed=3)
    mean, _ = fitted.conditioned(codes, noise).with_targets(warp.targets).posterior(unseen.T)
    assert np.corrcoef(mean, truth)[0, 1] > 0.95
    assert fitted.importance[[4, 5]].max() < 0.5 * fitted.importance[:4].min()


def test_once_the_noise_is_known_a_plan_is_believed_as_surely_as_it_was_measured() -> None:
    """While the noise is unknown most of the spread is taken for noise; that must not outlive the first repeats."""
    rng, many = np.random.default_rng(0), 60
    codes = np.stack([rng.integers(0, size, many) for size in SIZES], axis=1).astype(np.int16)
    mean, count = rng.normal(size=many), np.ones(many)

    def told(variance: np.ndarray) -> Rows:
        source = np.zeros(many, dtype=np.int16)
        return Rows(codes=codes, mean=mean, variance=variance, count=count, rank=np.zeros(many), source=source)

    model = MetricModel(SIZES, ORDERED)
    model.update(told(np.full(many, np.nan)), repeated=False)
    before = model.at_rows()[1]
    model.update(told(np.full(many, 0.01)), repeated=True)
    after = model.at_rows()[1]
    assert np.median(before) > 0.3
    assert np.median(after) < 0.15


def test_what_was_believed_of_plans_in_flight_is_forgotten() -> None:
    """And rows that come after it are taken in as if it had never been."""
    codes, raw = rows(70)
    unseen = rows(20, seed=9)[0].T

    def first(n: int) -> Rows:
        exact, source = np.zeros(n), np.zeros(n, dtype=np.int16)
        return Rows(codes=codes[:, :n].T, mean=raw[:n], variance=exact, count=np.ones(n), rank=raw[:n], source=source)

    model, undisturbed = MetricModel(SIZES, ORDERED), MetricModel(SIZES, ORDERED)
    for n in range(60, 70):
        model.update(first(n), repeated=False)
        undisturbed.update(first(n), repeated=False)
        before = undisturbed.posterior(unseen)
        np.testing.assert_array_equal(model.posterior(unseen), before)
        model.add_pending(unseen[:3])
        model.add_pending(unseen[3:4])
        assert (model.posterior(unseen)[1] < before[1]).all()
        assert len(model.at_rows()[0]) == n
        if n % 2:  # the next `update` forgets as well
            model.forget()
            np.testing.assert_array_equal(model.posterior(unseen), before)


def test_equal_values_get_the_mean_rank() -> None:
    """Blom scores of ranks 1, 2.5, 2.5, 4 of four values."""
    targets = RankWarp(np.array([5.0, 1.0, 3.0, 3.0])).targets
    np.testing.assert_allclose(targets, [1.0491, -1.0491, 0.0, 0.0], atol=1e-4)


def test_warp_round_trip_ends_and_limits() -> None:
    values = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    warp = RankWarp(values)
    inside_and_beyond = np.array([-3.0, 1.0, 3.0, 16.0, 40.0])
    np.testing.assert_allclose(warp.backward(warp.forward(inside_and_beyond)), inside_and_beyond)
    scores = warp.forward(values)
    assert scores[1] < warp.limit(2.0, True) < scores[2]
    assert scores[0] < warp.limit(2.0, False) < scores[1]
    assert warp.limit(3.0, True) == pytest.approx((scores[1] + scores[2]) / 2)


def test_a_constant_metric_can_be_warped() -> None:
    warp = RankWarp(np.full(6, 2.0))
    np.testing.assert_array_equal(warp.targets, np.zeros(6))
    assert warp.limit(2.0, True) > 0 > warp.limit(2.0, False)
    assert warp.limit(1.0, True) < 0 < warp.limit(3.0, True)
    assert np.isfinite(RankWarp(np.zeros(3)).noise(np.zeros(3), np.full(3, 0.1))).all()


@pytest.mark.parametrize("z", [3.0, 0.0, -0.99, -1.01, -5.0, -20.0])
def test_log_expected_improvement_is_the_logarithm_of_the_formula(z: float) -> None:
    from scipy.integrate import quad
    from scipy.stats import norm

    scale = norm.logpdf(z)  # the integrand is scaled so that the far tail does not underflow
    integral, _ = quad(lambda x: x * math.exp(norm.logpdf(z - x) - scale), 0, 40, epsrel=1e-10)
    expected = math.log(integral) + scale + math.log(2.0)
    value = log_expected_improvement(np.array([1.0]), np.array([2.0]), 1.0 + 2.0 * z)
    assert value[0] == pytest.approx(expected, rel=1e-6)


def test_log_expected_improvement_is_finite_and_monotone_far_away() -> None:
    value = log_expected_improvement(np.array([0.0, 1e2, 1e4, 1e7]), np.ones(4), -1.0)
    assert np.isfinite(value).all() and (np.diff(value) < 0).all()


def test_log_feasible_by_hand() -> None:
    assert log_feasible(np.array([0.0]), np.array([1.0]), 1.644854, True)[0] == pytest.approx(math.log(0.95), abs=1e-5)
    assert log_feasible(np.array([0.0]), np.array([1.0]), 1.644854, False)[0] == pytest.approx(math.log(0.05), abs=1e-4)
