"""The interval of a difference holds the true one as often as it says."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from detkit.evaluation.bootstrap import image_weights, paired_difference
from detkit.evaluation.matches import Matches, accumulate
from tests.evaluation.simulated import Population

SKILLS = (0.5, 0.8)


def values(runs: list[Matches], weights: np.ndarray) -> np.ndarray:
    return np.stack([accumulate(run, run.metric("AP50"), weights) for run in runs])


def true_difference(population: Population) -> float:
    """Over 300 000 images and 60 seeds of each system."""
    rng = np.random.default_rng(12345)
    found = []
    for _ in range(60):
        images = rng.standard_normal(5000)
        one, other = (values(population.runs(rng, images, skill, 1), np.ones((1, 5000))) for skill in SKILLS)
        found.append((other - one).item())
    return float(np.mean(found))


def coverage(population: Population, num_images: int, seeds: int, trials: int, samples: int) -> float:
    """The share of data sets and trainings whose interval holds the true difference."""
    wanted = true_difference(population)
    rng = np.random.default_rng(1)
    held = 0
    for trial in range(trials):
        images = rng.standard_normal(num_images)
        weights = image_weights(num_images, samples, seed=trial)
        one, other = (values(population.runs(rng, images, skill, seeds), weights) for skill in SKILLS)
        found = paired_difference(one, other, num_images)
        held += found.low <= wanted <= found.high
    return held / trials


@pytest.mark.slow
@pytest.mark.parametrize(
    ("training", "taste", "num_images", "seeds"),
    [(0.0, 0.5, 150, 1), (0.1, 0.5, 100, 3), (0.05, 0.0, 200, 5)],
    ids=["one seed", "three seeds", "five seeds, mostly images"],
)
def test_coverage(training: float, taste: float, num_images: int, seeds: int) -> None:
    assert 0.93 <= coverage(Population(training, taste), num_images, seeds, trials=1500, samples=200) <= 0.97


def test_coverage_in_short() -> None:
    assert 0.90 <= coverage(Population(0.0, 0.5), 100, 1, trials=200, samples=100) <= 0.985


def test_without_the_seeds_the_interval_would_be_too_short() -> None:
    """Runs that differ much by their seed: the images alone would promise far too much."""
    population = Population(0.4, 0.0)
    wanted = true_difference(population)
    rng = np.random.default_rng(3)
    held = {True: 0, False: 0}
    for trial in range(60):
        images = rng.standard_normal(400)
        weights = image_weights(400, 100, seed=trial)
        one, other = (values(population.runs(rng, images, skill, 3), weights) for skill in SKILLS)
        for with_seeds in held:
            rows = (one, other) if with_seeds else (one[:1], other[:1])
            found = paired_difference(*rows, 400)
            assert found.seeds_vary is with_seeds
            held[with_seeds] += found.low <= wanted <= found.high
    assert held[True] >= 54
    assert held[False] <= 45


def test_the_interval_by_hand() -> None:
    """Runs at 0.1 and 0.3, in each sample at 0 and 0.4; by the images the other system is 0.3 better or worse.

    A mean of two runs varies by 0.02 / 2 by its seeds, by 0.08 / 2 in the samples: what is more, 0.03 for each system,
    is taken off what the samples of the images show (Welch and Satterthwaite: 10, 1 and 1 degrees of freedom).
    """
    runs = np.array([[0.1, *[0.0] * 100], [0.3, *[0.4] * 100]])
    found = paired_difference(runs, runs + np.array([0, *[0.3, -0.3] * 50]), num_images=11)
    of_images = 0.09 * 100 / 99 - 2 * 0.03
    variance = of_images + 2 * 0.01
    freedom = variance**2 / (of_images**2 / 10 + 2 * 0.01**2)
    assert found.high == pytest.approx(stats.t.ppf(0.975, freedom) * math.sqrt(variance))


def test_pairing_counts() -> None:
    """Two runs that differ on twelve images of two hundred only: their difference hardly moves, though each alone does."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal(200)
    run = Population(0.0, 0.0).runs(rng, images, 0.5, 1)[0]
    part = run.by_area["all"][0]
    hit = part.hit & ~np.isin(part.images, range(0, 200, 17))
    worse = Matches({"all": (replace(part, hit=hit),)}, run.max_detections, run.num_images)
    weights = image_weights(200, 300)
    one, other = values([run], weights), values([worse], weights)
    found = paired_difference(one, other, 200)
    alone = 1.96 * one[0, 1:].std()
    assert found.is_shown
    assert found.high < 0
    assert (found.high - found.low) / 2 < alone / 2


def test_the_same_runs_do_not_differ() -> None:
    run = Population(0.0, 0.0).runs(np.random.default_rng(0), np.zeros(20), 0.5, 1)
    weights = image_weights(20, 100)
    found = paired_difference(values(run, weights), values(run, weights), 20)
    assert (found.value, found.low, found.high, found.is_shown) == (0, 0, 0, False)


def test_the_first_weights_are_ones_and_samples_have_as_many_images() -> None:
    weights = image_weights(30, 50, seed=4)
    assert weights.shape == (51, 30)
    assert (weights[0] == 1).all()
    assert (weights.sum(axis=1) == 30).all()
    np.testing.assert_array_equal(weights, image_weights(30, 50, seed=4))
    assert not np.array_equal(weights, image_weights(30, 50, seed=5))


def test_samples_without_the_object_are_left_out() -> None:
    """One object in twenty images: a sample holds it or not, and where it does the difference is -0.3."""
    weights = image_weights(20, 1000)
    has_object = weights[:, 4] > 0
    one, other = np.where(has_object, 0.6, -1.0)[None], np.where(has_object, 0.3, -1.0)[None]
    found = paired_difference(one, other, 20)
    assert (found.value, found.low, found.high) == pytest.approx((-0.3, -0.3, -0.3))
    assert found.is_shown
    assert (found.num_undefined, found.num_samples) == (1000 - has_object[1:].sum(), 1000)
    assert 300 < found.num_undefined < 420, "a share of 1 / e"


def test_the_interval_is_that_of_the_samples_that_define_the_metric() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.random((3, 301)), rng.random((2, 301))
    gone = np.isin(np.arange(301), range(5, 301, 3))
    for undefined in (-1.0, np.nan):
        found = paired_difference(*(np.where(gone, undefined, rows) for rows in (one, other)), 50)
        expected = paired_difference(one[:, ~gone], other[:, ~gone], 50)
        assert found == replace(expected, num_undefined=int(gone.sum()), num_samples=300)


def test_too_few_samples_give_no_interval_and_no_object_no_difference() -> None:
    one, other = np.full((1, 201), -1.0), np.full((1, 201), -1.0)
    one[0, :100], other[0, :100] = 0.5, 0.25  # the data set and 99 samples of 200
    found = paired_difference(one, other, 20)
    assert (found.value, found.num_undefined, found.is_shown) == (-0.25, 101, False)
    assert np.isnan([found.low, found.high]).all()
    one[0, 100], other[0, 100] = 0.5, 0.25
    assert paired_difference(one, other, 20).is_shown
    nothing = paired_difference(np.full((2, 201), -1.0), np.full((2, 201), -1.0), 20)
    assert np.isnan([nothing.value, nothing.low, nothing.high]).all()
    assert not nothing.is_shown


def test_one_image_has_no_interval() -> None:
    """All its samples are alike, whether seeds vary or not: what other images would show is not known."""
    weights = image_weights(1, 100)
    for seeds in (1, 2, 3):
        one = np.repeat(np.linspace(0.5, 0.6, seeds)[:, None], len(weights), axis=1)
        found = paired_difference(one, one + 0.1, 1)
        assert found.value == pytest.approx(0.1)
        assert np.isnan([found.low, found.high]).all()
        assert not found.is_shown
        assert paired_difference(one, one + 0.1, 2).high >= found.value
