"""Scores as probabilities: errors by hand, and known distortions undone."""

import numpy as np
import pytest

from detkit.evaluation.reliability import crossed, expected_calibration_error, fit, reliability


def distorted(temperature, count=40_000, seed=0):
    """True chances, what a detector that is too sure by ``temperature`` says of them, and what came of them."""
    rng = np.random.default_rng(seed)
    chance = rng.beta(1.2, 1.2, count)
    logit = np.log(chance / (1 - chance)) * temperature
    return chance, 1 / (1 + np.exp(-logit)), rng.random(count) < chance


def test_the_error_by_hand():
    scores = np.array([0.05, 0.06, 0.95, 0.95, 0.5])
    right = np.array([False, True, True, True, False])
    # bins 0 (mean 0.055, share 1/2), 14 (0.95, 1) and 7 (0.5, 0)
    assert expected_calibration_error(scores, right) == pytest.approx((2 * 0.445 + 2 * 0.05 + 1 * 0.5) / 5)
    assert reliability(scores, right)[0] == (pytest.approx(0.055), 0.5, 2)
    assert expected_calibration_error(np.ones(3), np.ones(3, bool)) == 0
    assert np.isnan(expected_calibration_error(np.zeros(0), np.zeros(0, bool)))


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_a_temperature_is_found_again(temperature):
    chance, scores, right = distorted(temperature)
    found = fit("temperature", scores, right)
    assert found.temperature == pytest.approx(temperature, rel=0.05)
    np.testing.assert_allclose(found(scores), chance, atol=0.03)


@pytest.mark.parametrize("kind", ["temperature", "isotonic"])
def test_calibrated_scores_are_nearer_on_other_detections(kind):
    _, scores, right = distorted(2.5)
    _, others, others_right = distorted(2.5, seed=1)
    found = fit(kind, scores, right)
    before, after = (expected_calibration_error(s, others_right) for s in (others, found(others)))
    assert before > 0.1
    assert after < 0.02
    assert (np.diff(found(np.linspace(0, 1, 500))) >= 0).all(), "the order of scores stays"


def test_isotonic_is_the_nearest_function_that_never_falls():
    """Four points: 0, 1, 0, 1 at rising scores become 0, 1/2, 1/2, 1."""
    found = fit("isotonic", np.array([0.1, 0.2, 0.3, 0.4]), np.array([False, True, False, True]))
    assert found.y.tolist() == [0, 0.5, 0.5, 1]
    ties = fit("isotonic", np.array([0.1, 0.1, 0.4]), np.array([False, True, True]))
    assert (ties.x.tolist(), ties.y.tolist()) == ([0.1, 0.4], [0.5, 1])
    scipy = pytest.importorskip("scipy.optimize")
    rng = np.random.default_rng(0)
    scores, right = rng.random(300), rng.random(300) < 0.4
    theirs = scipy.isotonic_regression(right[np.argsort(scores)].astype(float)).x
    kept = np.unique(np.linspace(0, 299, 100).round().astype(int))
    np.testing.assert_allclose(fit("isotonic", scores, right).y, theirs[kept])


def test_no_detections_are_refused_and_scores_of_0_and_1_are_fine():
    with pytest.raises(ValueError, match="there are no detections to calibrate scores on"):
        fit("temperature", np.zeros(0), np.zeros(0, bool))
    found = fit("temperature", np.array([0.0, 1.0, 1.0, 0.5]), np.array([False, True, False, True]))
    assert np.isfinite(found(np.array([0.0, 1.0]))).all()


def test_a_map_is_judged_on_images_that_it_has_not_seen():
    """Scores that say nothing: an isotonic map knows its own 60 detections by heart, and no others."""
    rng = np.random.default_rng(0)
    scores, right, images = rng.random(60), rng.random(60) < 0.5, np.arange(60) // 3
    known = expected_calibration_error(fit("isotonic", scores, right)(scores), right)
    mapped = crossed("isotonic", scores, right, images)
    assert mapped is not None
    assert known < 0.01 < 0.05 < expected_calibration_error(mapped, right)
    others = images % 5 != 2
    by_others = fit("isotonic", scores[others], right[others])
    np.testing.assert_array_equal(mapped[~others], by_others(scores[~others]))
    assert crossed("isotonic", scores, right, np.full(60, 7)) is None, "one image"
