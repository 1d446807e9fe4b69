"""How far a number, or the difference of two, would move with other images and other seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from detkit.evaluation.summary import with_nan

#: Share of such intervals that hold the true value.
CONFIDENCE = 0.95

#: Fewer samples of the images say nothing about an interval.
LEAST_SAMPLES = 100

#: All samples of fewer images are alike: how much it varies with the images is not known.
LEAST_IMAGES = 2


@dataclass(frozen=True, slots=True)
class Difference:
    """The mean of one system's runs minus that of the baseline's, with its interval.

    ``value`` is nan where the metric is not defined on the data set; ``low`` and ``high`` are too where fewer than
    ``LEAST_SAMPLES`` samples define it, or there are fewer than ``LEAST_IMAGES`` images. ``seeds_vary``: whether the
    interval holds the noise of training too. Without a second run of either system it cannot: it is then about these
    very weights. ``num_undefined``: how many of the ``num_samples`` samples have no object that the metric is about;
    the interval is over the others.
    """

    value: float
    low: float
    high: float
    seeds_vary: bool
    num_undefined: int = 0
    num_samples: int = 0

    @property
    def is_shown(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


def image_weights(num_images: int, num_samples: int, seed: int = 0) -> np.ndarray:
    """(1 + B, I) float64: how often each image counts; ones for the data set itself, then B samples of its images."""
    samples = np.random.default_rng(seed).multinomial(num_images, np.full(num_images, 1 / num_images), num_samples)
    return np.concatenate([np.ones((1, num_images)), samples])


def paired_difference(baseline: np.ndarray, other: np.ndarray, num_images: int) -> Difference:
    """The difference of two systems that have been evaluated on the same images.

    Two things move it, and both enter the interval. Other images: each of the B samples gives all runs the same images,
    so what is hard for both cancels. Other seeds: the variance over the runs of a system, less the part that the images
    have in it already (it grows by that part in the samples). The seeds of the two systems are taken as independent.
    The interval is symmetric, of Student's t with the degrees of freedom of Welch and Satterthwaite, since a handful of
    seeds tells little of their variance, which resampling them would understate.

    A sample without any object that the metric is about says nothing of it and is left out. One image has no interval,
    however many seeds there are.

    Args:
        baseline: (S, 1 + B) of S runs: the metric with the weights of :func:`image_weights`, -1 or nan where it is not
            defined.
        other: (S', 1 + B), the same of the other system.
    """
    baseline, other = with_nan(baseline), with_nan(other)
    means = other.mean(axis=0) - baseline.mean(axis=0)
    defined = ~np.isnan(means)
    value, num_samples = float(means[0]), len(means) - 1
    num_undefined = num_samples - int(defined[1:].sum())
    half = math.nan
    if defined[0] and num_samples - num_undefined >= LEAST_SAMPLES and num_images >= LEAST_IMAGES:
        half = _half_width(baseline[:, defined], other[:, defined], num_images)
    seeds_vary = len(baseline) > 1 and len(other) > 1
    return Difference(value, value - half, value + half, seeds_vary, num_undefined, num_samples)


def _half_width(baseline: np.ndarray, other: np.ndarray, num_images: int) -> float:
    """Half the interval of :func:`paired_difference`, of samples all of which define the metric, of several images."""
    means = other.mean(axis=0) - baseline.mean(axis=0)
    of_images = float(np.var(means[1:], ddof=1))
    parts = [(of_images, num_images - 1)]
    if len(baseline) > 1 and len(other) > 1:
        by_seeds = [_by_seeds(values) for values in (baseline, other)]
        parts = [(max(0.0, of_images - sum(shared for _, shared in by_seeds)), num_images - 1)]
        parts += [(own, len(values) - 1) for (own, _), values in zip(by_seeds, (baseline, other), strict=True)]
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return 0.0
    freedom = variance**2 / sum(part**2 / freedom for part, freedom in parts)
    return _student(freedom) * math.sqrt(variance)


def _by_seeds(values: np.ndarray) -> tuple[float, float]:
    """The variance of a system's mean by its seeds, and the part of it that the samples of the images have too."""
    observed = float(np.var(values[:, 0], ddof=1))
    in_samples = float(np.var(values[:, 1:], axis=0, ddof=1).mean())
    return observed / len(values), (in_samples - observed) / len(values)


def _student(freedom: float) -> float:
    """The quantile of Student's t that a two-sided interval needs."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))
