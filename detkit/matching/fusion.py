"""Several sets of detections of one image become one: by suppression, by decaying scores, or by averaging boxes.

The three differ in what becomes of boxes of one class that overlap: NMS keeps the best, soft-NMS (Bodla et al.,
ICCV 2017) keeps all and lowers the others' scores, weighted boxes fusion (Solovyev, Wang, Gabruseva, Image and Vision
Computing 2021) averages them. The last two go from box to box; here all classes take each step together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from detkit.config import MERGES
from detkit.structures import Detections
from detkit.utils.precision import widened

#: Weight of a box of score 0 in a mean, so that a mean of such boxes alone is defined.
_LEAST_WEIGHT = 1e-12


class Merge(ABC):
    """One set of detections from several of the same image.

    ``counts_views``: a score depends on the share of the views that found the object, so that each view must have had
    the chance to.
    """

    counts_views: bool = False

    @abstractmethod
    def __call__(self, views: Sequence[Detections]) -> Detections:
        """The merged detections, best first, from those of each of the ``views``; all in one frame, px."""


@MERGES
class NMS(Merge):
    """Non-maximum suppression: of two boxes of one class that overlap, the better one stays.

    Args:
        iou_threshold: they overlap if their IoU is greater.
    """

    def __init__(self, *, iou_threshold: float = 0.5) -> None:
        self.iou_threshold = _fraction(iou_threshold, "iou_threshold")

    def __call__(self, views: Sequence[Detections]) -> Detections:
        found = _join(views)
        return found.select(batched_nms(found.boxes, found.scores, found.labels, self.iou_threshold))


@MERGES
class SoftNMS(Merge):
    """Soft-NMS (Bodla et al., ICCV 2017): every box stays, scored less for each better one that it overlaps.

    Args:
        method: the decay of a score s by a better box of IoU u: "gaussian" s * exp(-u^2 / sigma), or "linear"
            s * (1 - u) where u is at least ``iou_threshold`` (section 4).
        sigma: of the gaussian; the paper's 0.5.
        iou_threshold: of the linear decay; the paper's 0.3.
    """

    def __init__(
        self, *, method: Literal["gaussian", "linear"] = "gaussian", sigma: float = 0.5, iou_threshold: float = 0.3
    ) -> None:
        if sigma <= 0:
            raise ValueError(f"sigma must be positive, not {sigma}")
        self.method, self.sigma = method, sigma
        self.iou_threshold = _fraction(iou_threshold, "iou_threshold")

    def __call__(self, views: Sequence[Detections]) -> Detections:
        found = _join(views)
        scores = soft_nms(found.boxes, found.scores, found.labels, self.decay)
        order = scores.argsort(descending=True, stable=True)
        return Detections(found.boxes[order], scores[order], found.labels[order])

    def decay(self, iou: np.ndarray) -> np.ndarray:
        """The factor for the score of a box that overlaps a better one by ``iou``."""
        if self.method == "gaussian":
            return np.exp(-(iou**2) / self.sigma)
        return np.where(iou >= self.iou_threshold, 1 - iou, 1.0)


@MERGES
class WBF(Merge):
    """Weighted boxes fusion (Solovyev, Wang, Gabruseva 2021): overlapping boxes of one class become their mean.

    The mean is weighted by the scores. A fused box scores the mean of its T boxes, times min(T, N) / N for N views:
    what few views see counts less.

    Args:
        iou_threshold: a box joins the fused box that it overlaps most if their IoU is greater; the paper's 0.55.
    """

    counts_views = True

    def __init__(self, *, iou_threshold: float = 0.55) -> None:
        self.iou_threshold = _fraction(iou_threshold, "iou_threshold")

    def __call__(self, views: Sequence[Detections]) -> Detections:
        found = _join(views)
        boxes, scores, labels = weighted_boxes_fusion(
            found.boxes, found.scores, found.labels, num_views=len(views), iou_threshold=self.iou_threshold
        )
        return Detections(boxes, scores, labels)


def soft_nms(boxes: Tensor, scores: Tensor, labels: Tensor, decay: Callable[[np.ndarray], np.ndarray]) -> Tensor:
    """The decayed scores (N,) of ``boxes`` (N, 4) px with ``scores`` (N,) and ``labels`` (N,).

    Again and again the best box not yet taken is taken, and each other one not yet taken is multiplied by
    ``decay(IoU)`` of the two (Bodla et al. 2017, figure 2); each class by itself.
    """
    if len(boxes) == 0:
        return scores
    box, score, rows = _by_class(boxes, scores, labels)
    line = np.arange(len(rows))
    taken = rows < 0
    for _ in range(rows.shape[1]):
        best = np.where(taken, -1.0, score).argmax(1)  # a class of which all are taken changes no more
        taken[line, best] = True
        factor = decay(_iou(box[line, best][:, None], box))
        np.multiply(score, factor, out=score, where=~taken)
    decayed = np.empty(len(boxes))
    decayed[rows[rows >= 0]] = score[rows >= 0]
    return torch.from_numpy(decayed).to(scores)


def weighted_boxes_fusion(
    boxes: Tensor, scores: Tensor, labels: Tensor, *, num_views: int, iou_threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Fuse ``boxes`` (N, 4) px with ``scores`` (N,) and ``labels`` (N,), found by ``num_views`` views together.

    From the best to the worst, each box joins the fused box of its class that it overlaps most, by more than
    ``iou_threshold``, or begins a new one (Solovyev et al. 2021, section 3):

        X = sum_i C_i X_i / sum_i C_i,   C = (1/T) sum_i C_i * min(T, num_views) / num_views

    for the T boxes X_i with scores C_i that have joined.

    Returns:
        boxes (M, 4), scores (M,) and labels (M,), the highest score first.
    """
    if len(boxes) == 0:
        return boxes, scores, labels
    box, score, rows = _by_class(boxes, scores, labels)
    line = np.arange(len(rows))
    fused = np.zeros_like(box)
    total, count, num_fused = np.zeros_like(score), np.zeros_like(rows), np.zeros_like(line)
    for step, index in enumerate(rows.T):  # the next best of each class; where there is none left, nothing changes
        exists = index >= 0
        new, weight = box[:, step], np.maximum(score[:, step], _LEAST_WEIGHT) * exists
        overlap = _iou(new[:, None], fused)
        nearest = overlap.argmax(1)
        joins = overlap[line, nearest] > iou_threshold
        where = np.where(joins, nearest, num_fused)
        total[line, where] += weight
        count[line, where] += exists
        share = weight / np.maximum(total[line, where], _LEAST_WEIGHT)
        fused[line, where] += (new - fused[line, where]) * share[:, None]
        num_fused += exists & ~joins
    made = np.nonzero(count)
    mean = total[made] / count[made] * np.minimum(count[made], num_views) / num_views
    order = np.argsort(-mean, kind="stable")
    label = labels[torch.from_numpy(rows[made[0][order], 0]).to(labels.device)]
    return torch.from_numpy(fused[made][order]).to(boxes), torch.from_numpy(mean[order]).to(scores), label


def _join(views: Sequence[Detections]) -> Detections:
    """All detections of ``views``, one view after the other, in float32 at least."""
    boxes, scores = widened(torch.cat([v.boxes for v in views])), widened(torch.cat([v.scores for v in views]))
    return Detections(boxes, scores, torch.cat([v.labels for v in views]))


def _by_class(boxes: Tensor, scores: Tensor, labels: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes (C, M, 4) and scores (C, M) of each of the C classes that occur, best first, and their numbers (C, M).

    Rows are filled up with boxes of number -1. In float64 and numpy, whose calls cost a fraction of torch's: there are
    some twenty for each of M steps, on small arrays.
    """
    label, score = labels.cpu().numpy(), scores.cpu().double().numpy()
    order = np.lexsort((-score, label))
    _, counts = np.unique(label, return_counts=True)
    row = np.repeat(np.arange(len(counts)), counts)
    column = np.arange(len(order)) - np.repeat(counts.cumsum() - counts, counts)
    rows = np.full((len(counts), counts.max()), -1)
    rows[row, column] = order
    return boxes.cpu().double().numpy()[rows], score[rows], rows


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union (...) of ``a`` and ``b`` (..., 4), which are broadcast against each other."""
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    np.maximum(sides, 0, out=sides)
    inter = sides[..., 0] * sides[..., 1]
    return inter / np.maximum(_area(a) + _area(b) - inter, np.finfo(np.float64).tiny)


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _fraction(value: float, name: str) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], not {value}")
    return value
