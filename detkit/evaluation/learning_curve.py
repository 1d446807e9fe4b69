"""How a score grows with the number of training images, and what twice as many would bring if it went on like that.

What is lacking to a score of 1 is taken to fall as a power of the number of images, 1 - score = a n^-b (Hestness et al.
2017, arXiv 1712.00409, found such laws for the errors of many tasks), so that each doubling takes off the same share of
it, 1 - 2^-b. The line is fitted in logarithms, by least squares, to each seed by itself.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from detkit.evaluation.bootstrap import Difference, paired_difference
from detkit.evaluation.summary import with_nan

#: Two points lie on any line.
LEAST_POINTS = 3

#: A score of 1 has no logarithm of what is lacking.
_LEAST_LACKING = 1e-6


class LearningCurve(NamedTuple):
    """Of P numbers of images: ``shares`` (P,) of all of them, ascending; ``scores`` (P,), means over the seeds.

    ``taken_off``: what a doubling takes off of what is lacking, 1 - 2^-b. ``doubled``: the gain that twice the images
    of the last point would bring by the law, with its interval over validation images and seeds. ``foretold``: the
    score of the last point by the law of those before it, which tells how far to trust the law.
    """

    shares: np.ndarray
    scores: np.ndarray
    taken_off: float
    doubled: Difference
    foretold: float


def learning_curve(shares: np.ndarray, values: np.ndarray, num_images: int) -> LearningCurve:
    """Fit the law.

    Args:
        shares: (P,) of the training images, ascending, at least ``LEAST_POINTS``.
        values: (S, P, 1 + B) of S seeds: the score with the weights of
            :func:`~detkit.evaluation.bootstrap.image_weights`, -1 or nan where it is not defined.
        num_images: of validation, that were resampled.
    """
    assert len(shares) >= LEAST_POINTS
    lacking = (1 - with_nan(values)).clip(min=_LEAST_LACKING)
    taken_off = 1 - 2 ** _slope(shares, lacking)[0]
    gains = lacking[:, -1] * taken_off
    slope, height = _slope(shares[:-1], lacking[:, :-1])
    foretold = 1 - np.exp(height + slope * np.log(shares[-1]))
    return LearningCurve(
        shares,
        1 - lacking[:, :, 0].mean(axis=0),
        float(taken_off[:, 0].mean()),
        paired_difference(np.zeros_like(gains), gains, num_images),  # seed by seed, so that a seed's own level cancels
        float(foretold[:, 0].mean()),
    )


def _slope(shares: np.ndarray, lacking: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slope and height (S, 1 + B) of the line of log ``lacking`` (S, P, 1 + B) over log ``shares`` (P,)."""
    x, y = np.log(shares), np.log(lacking)
    apart = (x - x.mean())[None, :, None]
    slope = (apart * y).sum(axis=1) / (apart**2).sum()
    return slope, y.mean(axis=1) - slope * x.mean()
