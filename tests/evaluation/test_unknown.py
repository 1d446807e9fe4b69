"""Least cosines: the share of known objects below them, in truth, for a finite number of right detections."""

import numpy as np
import pytest

from detkit.evaluation.unknown import check_least_cosines, least_cosines, least_detections


@pytest.mark.parametrize(("share", "count"), [(0.05, 19), (0.05, 60), (0.2, 40)])
def test_no_more_known_objects_than_the_share_are_below(share, count):
    """Over 2000 draws, each tested on 50 others: the mean share below is j / (n + 1) for continuous cosines."""
    rng = np.random.default_rng(0)
    below = []
    for _ in range(2000):
        draw = rng.beta(5, 2, count + 50)
        found = least_cosines(np.zeros(count, int), draw[:count], 1, share)
        below.append((draw[count:] < found.values[0]).mean())
    expected = np.floor(share * (count + 1)) / (count + 1)
    assert expected <= share + 1e-9
    assert np.mean(below) == pytest.approx(expected, abs=4 * np.std(below) / 2000**0.5)


def test_ties_are_not_below():
    found = least_cosines(np.zeros(40, int), np.full(40, 0.5), 1, 0.1)
    assert found.values.tolist() == [0.5]
    assert not (found.values[0] > 0.5)


def test_a_class_with_too_few_has_the_threshold_of_all_together():
    nearest = np.array([0] * 19 + [1] * 18)
    best = np.concatenate([np.linspace(0.9, 0.5, 19), np.linspace(0.4, 0.1, 18)])
    found = least_cosines(nearest, best, 3, 0.05)
    assert found.own.tolist() == [True, False, False]
    assert found.counts.tolist() == [19, 18, 0]
    assert found.values == pytest.approx([0.5, 0.1, 0.1])


def test_too_few_at_all_are_told():
    assert least_detections(0.05) == 19
    with pytest.raises(ValueError, match=r"unknown=0\.05 needs 19 right detections at least; here are 18"):
        least_cosines(np.zeros(18, int), np.ones(18), 1, 0.05)


def test_what_a_checkpoint_holds_is_looked_at():
    for nothing in (None, {}, {"unknown": None}):
        with pytest.raises(
            ValueError, match=r"x\.pt: it does not say which cosines .* calibrate it with unknown=0\.05"
        ):
            check_least_cosines(nothing, 2, "x.pt")
    for wrong in ({}, [1], {"thresholds": [0.5]}, {"thresholds": [0.5, "x"]}, {"thresholds": [0.5, 3]}):
        with pytest.raises(ValueError, match=r"x\.pt: its least cosines are not 2 numbers from -1 to 1"):
            check_least_cosines({"unknown": wrong}, 2, "x.pt")
    assert check_least_cosines({"unknown": {"thresholds": [0.5, -1]}}, 2, "x.pt").tolist() == [0.5, -1]
