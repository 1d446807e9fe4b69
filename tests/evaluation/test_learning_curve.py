"""The power law: found where it holds, its interval where seeds differ, and what it foretells."""

import numpy as np
import pytest
from scipy import stats

from detkit.evaluation.learning_curve import learning_curve

SHARES = np.array([0.125, 0.25, 0.5, 1.0])


def scores(exponents, level=0.4, num_samples=100):
    """(S, 4, 1 + B): 1 - level n^-b of each exponent b, the same in each sample."""
    lacking = level * SHARES[None, :] ** -np.array(exponents)[:, None]
    return np.repeat(1 - lacking[:, :, None], 1 + num_samples, axis=2)


def test_a_law_that_holds_is_found():
    curve = learning_curve(SHARES, scores([0.3, 0.3]), 50)
    assert curve.scores == pytest.approx(1 - 0.4 * SHARES**-0.3)
    assert curve.taken_off == pytest.approx(1 - 2**-0.3)
    assert curve.doubled.value == pytest.approx(0.4 - 0.4 * 2**-0.3)
    assert (curve.doubled.low, curve.doubled.high) == pytest.approx((curve.doubled.value,) * 2)
    assert curve.foretold == pytest.approx(0.6)


def test_images_that_bring_nothing_more_are_told():
    """It has risen, and does no longer: the law of the smaller shares promises what did not come."""
    values = scores([0.4])
    values[:, -1] = values[:, -2]
    curve = learning_curve(SHARES, values, 50)
    assert curve.foretold - curve.scores[-1] == pytest.approx(0.4 * (2**0.4 - 1))
    assert curve.doubled.value < 0.4 * (1 - 2**-0.4)


def test_the_interval_is_over_seeds_with_their_own_level():
    """Each seed has another level, the same exponent: what cancels is not noise."""
    alike = np.concatenate([scores([0.3], level) for level in (0.3, 0.31, 0.29)])
    other = np.concatenate([scores([b], 0.3) for b in (0.2, 0.3, 0.4)])
    narrow, wide = (learning_curve(SHARES, values, 50).doubled for values in (alike, other))
    assert narrow.seeds_vary
    assert narrow.high - narrow.low < 0.25 * (wide.high - wide.low)
    assert narrow.is_shown


def test_each_sample_has_a_law_of_its_own():
    """An exponent of 0.2 in every other sample and of 0.4 in the rest: what they gain is 0.4 (1 - 2^-b)."""
    exponents = np.array([0.3, *[0.2, 0.4] * 50])
    doubled = learning_curve(SHARES, 1 - 0.4 * SHARES[None, :, None] ** -exponents, 50).doubled
    gains = 0.4 * (1 - 2.0 ** -exponents[1:])
    assert doubled.high - doubled.value == pytest.approx(stats.t.ppf(0.975, 49) * gains.std(ddof=1))


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    """300 sets of three seeds whose log errors have noise of their own."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        noise = rng.normal(0, 0.04, (3, 4, 1))
        lacking = 0.4 * SHARES[None, :, None] ** -0.3 * np.exp(noise)
        d = learning_curve(SHARES, 1 - np.repeat(lacking, 101, axis=2), 1000).doubled
        held += d.low <= 0.4 * (1 - 2**-0.3) <= d.high
    assert 0.9 <= held / 300 <= 0.99


def test_samples_that_do_not_define_it_are_left_out():
    values = scores([0.3, 0.31], num_samples=250)
    values[:, :, 1:101] = -1
    curve = learning_curve(SHARES, values, 50)
    assert (curve.doubled.num_undefined, curve.doubled.num_samples) == (100, 250)
    assert curve.doubled.is_shown


def test_a_curve_near_the_best_is_not_cut():
    curve = learning_curve(SHARES, scores([0.3], level=0.04), 50)
    assert curve.scores == pytest.approx(1 - 0.04 * SHARES**-0.3)
    assert curve.foretold == pytest.approx(0.96)
