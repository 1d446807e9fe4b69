"""ObjectLab's scores of labels (Tkachenko, Thyagarajan, Mueller 2023, arXiv 2309.00832): the published baseline.

A score lies in [0, 1], and the lower it is, the likelier the label is wrong. Three kinds are told apart by how alike
predicted and labelled boxes are, s(b, b') = alpha IoU(b, b') + (1 - alpha) exp(-gamma |centre(b) - centre(b')|), with
alpha = 0.9 and gamma = 0.1 per px:

- overlooked, of a predicted box with a score p of at least 0.95: its greatest s with a labelled box of its class; where
  the image has none, s_min (1 - p), with s_min the least s above 0 of all images;
- badly located, of a labelled box: its greatest s with a predicted box of its class with a score of at least 0.5;
- swapped, of a labelled box: 1 minus its greatest s with a predicted box of another class with a score of at least
  0.95, no less than s_min.

Where no predicted box has the score that is asked for, a labelled box scores 1. An image has for each kind the softmin
of its boxes' scores at a temperature of 0.1, and the geometric mean of the three.

Held against the authors' own program (cleanlab, object_detection/rank.py, internal/constants.py and softmin1d of
internal/object_detection_utils.py), whose later check for two labels of other classes at one place is not of the paper
and left out here.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from detkit.structures.boxes import pairwise_iou

ALPHA, GAMMA = 0.9, 0.1

#: From these scores on a prediction counts.
HIGH_SCORE, LOW_SCORE = 0.95, 0.5

TEMPERATURE = 0.1


class ObjectLab(NamedTuple):
    """Scores of one image with G labelled and D predicted boxes: ``overlooked`` (D,), nan below ``HIGH_SCORE``;
    ``badly_located`` (G,), ``swapped`` (G,), and ``image``. ``least``: of its similarities above 0, 1 without any."""

    overlooked: np.ndarray
    badly_located: np.ndarray
    swapped: np.ndarray
    image: float
    least: float


def objectlab(
    boxes: np.ndarray,
    labels: np.ndarray,
    found: np.ndarray,
    found_labels: np.ndarray,
    scores: np.ndarray,
    least: float | None = None,
) -> ObjectLab:
    """The scores of one image.

    Args:
        boxes: (G, 4) float64, the labelled ones, x1 y1 x2 y2 px.
        labels: (G,) int64.
        found: (D, 4) float64, the predicted ones, alike.
        found_labels: (D,) int64.
        scores: (D,) float64.
        least: s_min, the least ``least`` of all images; None: that of this one.
    """
    alike = _similarity(found, boxes)
    own_least = float(alike[alike > 0].min(initial=1.0))
    least = own_least if least is None else least
    same = found_labels[:, None] == labels
    own = np.where(same, alike, -1.0).max(axis=1, initial=-1.0)
    overlooked = np.where(own < 0, least * (1 - scores), own)
    overlooked[scores < HIGH_SCORE] = np.nan
    near = np.where(same & (scores >= LOW_SCORE)[:, None], alike, -1.0).max(axis=0, initial=-1.0)
    other = np.where(~same & (scores >= HIGH_SCORE)[:, None], alike, -1.0).max(axis=0, initial=-1.0)
    badly_located = np.where(near < 0, 1.0, near)
    swapped = np.where(other < 0, 1.0, np.maximum(1 - other, least))
    pooled = [_softmin(kind) for kind in (overlooked[~np.isnan(overlooked)], badly_located, swapped)]
    return ObjectLab(overlooked, badly_located, swapped, float(np.prod(pooled) ** (1 / 3)), own_least)


def _similarity(found: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(D, G)."""
    iou = pairwise_iou(torch.from_numpy(found), torch.from_numpy(boxes)).numpy()
    centres = [(b[:, :2] + b[:, 2:]) / 2 for b in (found, boxes)]
    distance = np.linalg.norm(centres[0][:, None] - centres[1], axis=2)
    return ALPHA * iou + (1 - ALPHA) * np.exp(-GAMMA * distance)


def _softmin(scores: np.ndarray) -> float:
    """The mean of ``scores`` with weights that fall as they rise; 1 for none."""
    if not len(scores):
        return 1.0
    weights = np.exp((scores.min() - scores) / TEMPERATURE)
    return float((weights * scores).sum() / weights.sum())
