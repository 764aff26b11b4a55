"""The interval of a speed-up over fresh processes."""

import math

import numpy as np
import pytest
from scipy import stats

from model_opt.autotuner.finish import USUAL_DEGREES, USUAL_DRIFT, USUAL_SPREAD, prediction


def test_by_hand():
    figure = prediction(np.array([1.0, 1.1, 0.9, 1.0]))
    variance = (USUAL_DEGREES * USUAL_SPREAD**2 + 0.02) / (USUAL_DEGREES + 3)
    half = stats.t.ppf(0.975, USUAL_DEGREES + 3) * math.sqrt(variance * 1.25 + 2 * USUAL_DRIFT**2)
    assert figure.value == pytest.approx(math.e)
    assert (math.log(figure.low), math.log(figure.high)) == pytest.approx((1 - half, 1 + half))


@pytest.mark.parametrize("starts", [2, 3, 4])
@pytest.mark.parametrize("spread", [0.02, 0.04, 0.06])
def test_one_more_start_at_another_time_lies_within_nine_times_of_ten(starts, spread):
    generator = np.random.default_rng(0)
    inside = 0
    for _ in range(2000):
        then, now = generator.normal(1.0, USUAL_DRIFT, 2)
        figure = prediction(generator.normal(then, spread, starts))
        inside += figure.low <= math.exp(generator.normal(now, spread)) <= figure.high
    assert inside / 2000 >= 0.9
