"""Several sets of detections of one image become one: by suppression, by decaying scores, or by averaging boxes.

The three differ in what becomes of boxes of one class that overlap: NMS keeps the best, soft-NMS (Bodla et al.,
ICCV 2017) keeps all and lowers the others' scores, weighted boxes fusion (Solovyev, Wang, Gabruseva, Image and Vision
Computing 2021) averages them. The last two go from box to box; here all classes take each step together.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from detkit.config import MERGES
from detkit.matching.groups import nms_by_group, nms_over_smaller
from detkit.matching.trace import active_trace, selection_of_merge
from detkit.structures import Detections
from detkit.utils.precision import widened

#: What a box that weighted boxes fusion made may score, in the words of the authors' package.
Confidence = Literal["avg", "max", "box_and_model_avg", "absent_model_aware_avg"]

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
        return found.select(nms_by_group(found.boxes, found.scores, found.labels, self.iou_threshold))


@MERGES
class OverSmaller(Merge):
    """Suppression by the intersection over the smaller area: a part of an object goes where its whole scores more.

    Args:
        threshold: of two boxes of one class of which the intersection is a greater share of the smaller, the better
            one stays.
    """

    def __init__(self, *, threshold: float = 0.5) -> None:
        self.threshold = _fraction(threshold, "threshold")

    def __call__(self, views: Sequence[Detections]) -> Detections:
        found = _join(views)
        return found.select(nms_over_smaller(found.boxes, found.scores, found.labels, self.threshold))


@MERGES
class SoftNMS(Merge):
    """Soft-NMS (Bodla et al., ICCV 2017): every box stays, scored less for each better one that it overlaps.

    Args:
        method: the decay of a score s by a better box of IoU u: "gaussian" s * exp(-u^2 / sigma), or "linear"
            s * (1 - u) where u is at least ``iou_threshold`` (section 4).
        sigma: of the gaussian; the paper's 0.5.
        iou_threshold: of the linear decay; the paper's 0.3.
        least_score: boxes whose score has fallen below go; the authors' code has 0.001.
    """

    def __init__(
        self,
        *,
        method: Literal["gaussian", "linear"] = "gaussian",
        sigma: float = 0.5,
        iou_threshold: float = 0.3,
        least_score: float = 0.0,
    ) -> None:
        check_sigma(sigma)
        self.method, self.sigma = method, sigma
        self.iou_threshold = _fraction(iou_threshold, "iou_threshold")
        self.least_score = _fraction(least_score, "least_score")

    def __call__(self, views: Sequence[Detections]) -> Detections:
        found = _join(views)
        scores = soft_nms(found.boxes, found.scores, found.labels, self.decay)
        order = scores.argsort(descending=True, stable=True)
        order = order[scores[order] >= self.least_score]
        return replace(found, scores=scores).select(order)

    def decay(self, iou: np.ndarray) -> np.ndarray:
        """The factor for the score of a box that overlaps a better one by ``iou``."""
        if self.method == "gaussian":
            return gaussian_decay(self.sigma)(iou)
        return np.where(iou >= self.iou_threshold, 1 - iou, 1.0)


@MERGES
class WBF(Merge):
    """Weighted boxes fusion (Solovyev, Wang, Gabruseva 2021): overlapping boxes of one class become their mean.

    The mean is weighted by the scores. By default a fused box scores the mean of its T boxes, times min(T, N) / N for N
    views: what few views see counts less.

    Args:
        iou_threshold: a box joins the fused box that it overlaps most if their IoU is greater; the paper's 0.55.
        weights: of the views, in their order; a box counts by its score times its view's weight. null for 1 each.
        confidence: what a fused box scores. "avg": as above. "max": the greatest score of its boxes.
            "box_and_model_avg": the mean by weights, times the share of the views, by weight, that have one of them.
            "absent_model_aware_avg": the sum of the scores over the weights of its boxes and of the views without one.
        least_score: boxes that score less are left out first.
    """

    counts_views = True

    def __init__(
        self,
        *,
        iou_threshold: float = 0.55,
        weights: tuple[float, ...] | None = None,
        confidence: Confidence = "avg",
        least_score: float = 0.0,
    ) -> None:
        self.iou_threshold = _fraction(iou_threshold, "iou_threshold")
        self.least_score = _fraction(least_score, "least_score")
        if weights is not None and not (all(0 <= w < math.inf for w in weights) and sum(weights) > 0):
            raise ValueError(f"weights must be numbers from 0 on, and one above it, not {list(weights)}")
        self.weights = weights
        self.confidence: Confidence = confidence

    def __call__(self, views: Sequence[Detections]) -> Detections:
        if self.weights is not None and len(self.weights) != len(views):
            raise ValueError(f"weights must have a number for each of the {len(views)} views, not {len(self.weights)}")
        views = [view.select(view.scores >= self.least_score) for view in views]
        found = _join(views)
        of_view = torch.cat([torch.full((len(v),), i, device=v.boxes.device) for i, v in enumerate(views)])
        points = [] if found.landmarks is None else [widened(found.landmarks.flatten(1))]
        fused, scores, labels = weighted_boxes_fusion(
            torch.cat([found.boxes, *points], dim=1), found.scores, found.labels, num_views=len(views),
            iou_threshold=self.iou_threshold, views=of_view, weights=self.weights, confidence=self.confidence,
        )  # fmt: skip
        landmarks = None if found.landmarks is None else fused[:, 4:].unflatten(1, found.landmarks.shape[1:])
        return Detections(fused[:, :4], scores, labels, landmarks)


def merge_views(
    merge: Merge,
    views: Sequence[Detections],
    *,
    score_threshold: float,
    limit: int,
    seen: Sequence[Detections] | None = None,
) -> Detections:
    """What ``merge`` makes of the ``views`` of an image, as far as it scores above ``score_threshold``: the ``limit``
    best of it. The trace is told what became of the others; ``seen`` are the views with what the caller has left out.
    """
    merged = merge(views)
    enough = (merged.scores > score_threshold).nonzero().squeeze(1)
    if (trace := active_trace()) is not None:
        trace.selections.append(selection_of_merge(_join(seen or views), merged, enough, limit))
    return merged.select(enough[:limit])


def check_sigma(sigma: float) -> None:
    """Refuse the ``sigma`` of a gaussian decay that is none."""
    if not 0 < sigma < math.inf:
        raise ValueError(f"sigma must be positive, not {sigma}")


def gaussian_decay(sigma: float) -> Callable[[np.ndarray], np.ndarray]:
    """The factor exp(-u^2 / sigma) for a score by an IoU u with a better box (Bodla et al. 2017, equation 3)."""
    return lambda iou: np.exp(-(iou**2) / sigma)


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    decay: Callable[[np.ndarray], np.ndarray],
    most: int | None = None,
) -> Tensor:
    """The decayed scores (N,) of ``boxes`` (N, 4) px with ``scores`` (N,) and ``labels`` (N,).

    Again and again the best box not yet taken is taken, and each other one not yet taken is multiplied by
    ``decay(IoU)`` of the two (Bodla et al. 2017, figure 2); each class by itself. After ``most`` of a class the rest
    is left as it is, below these.
    """
    if len(boxes) == 0:
        return scores
    box, score, rows = _by_class(boxes, scores, labels)
    line = np.arange(len(rows))
    taken = rows < 0
    for _ in range(rows.shape[1] if most is None else min(most, rows.shape[1])):
        best = np.where(taken, -1.0, score).argmax(1)  # a class of which all are taken changes no more
        taken[line, best] = True
        factor = decay(_iou(box[line, best][:, None], box))
        np.multiply(score, factor, out=score, where=~taken)
    decayed = np.empty(len(boxes))
    decayed[rows[rows >= 0]] = score[rows >= 0]
    return torch.from_numpy(decayed).to(scores)


def weighted_boxes_fusion(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    *,
    num_views: int,
    iou_threshold: float,
    views: Tensor | None = None,
    weights: Sequence[float] | None = None,
    confidence: Confidence = "avg",
) -> tuple[Tensor, Tensor, Tensor]:
    """Fuse ``boxes`` (N, 4 + E) px with ``scores`` (N,) and ``labels`` (N,), found by ``num_views`` views together.

    From the best to the worst, each box joins the fused box of its class that it overlaps most, by more than
    ``iou_threshold``, or begins a new one (Solovyev et al. 2021, section 3):

        X = sum_i C_i X_i / sum_i C_i,   C = (1/T) sum_i C_i * min(T, num_views) / num_views

    for the T boxes X_i with scores C_i that have joined, each times its view's weight. What stands behind the corners
    of a box, E numbers, goes into the same mean.

    Args:
        views: (N,) which of the views each box is from; needed with ``weights`` or another ``confidence`` than "avg".
        weights: of the views; None for 1 each.
        confidence: see :class:`WBF`; the names and values are those of the authors' package.

    Returns:
        boxes (M, 4 + E), scores (M,) and labels (M,), the highest score first.
    """
    if len(boxes) == 0:
        return boxes, scores, labels
    of_view = np.ones(num_views) if weights is None else np.asarray(weights, np.float64)
    view = np.zeros(len(boxes), np.int64) if views is None else views.cpu().numpy()
    weighted = scores.double() * torch.from_numpy(of_view[view]).to(scores.device)
    box, score, rows = _by_class(boxes, weighted, labels)
    line = np.arange(len(rows))
    fused = np.zeros_like(box)
    total, count, num_fused = np.zeros_like(score), np.zeros_like(rows), np.zeros_like(line)
    joined = np.zeros_like(rows)  # the fused box that each box is in
    for step, index in enumerate(rows.T):  # the next best of each class; where there is none left, nothing changes
        exists = index >= 0
        new, weight = box[:, step], np.maximum(score[:, step], _LEAST_WEIGHT) * exists
        overlap = _iou(new[:, None], fused)
        nearest = overlap.argmax(1)
        joins = overlap[line, nearest] > iou_threshold
        where = np.where(joins, nearest, num_fused)
        total[line, where] += weight
        count[line, where] += exists
        joined[line, step] = where
        share = weight / np.maximum(total[line, where], _LEAST_WEIGHT)
        fused[line, where] += (new - fused[line, where]) * share[:, None]
        num_fused += exists & ~joins
    made = np.nonzero(count)
    if confidence == "avg":
        value = total[made] / count[made] * np.minimum(count[made], num_views) / of_view.sum()
    else:
        value = _confidence(confidence, score, total, joined, np.where(rows >= 0, view[rows], -1), of_view)[made]
    order = np.argsort(-value, kind="stable")
    label = labels[torch.from_numpy(rows[made[0][order], 0]).to(labels.device)]
    return torch.from_numpy(fused[made][order]).to(boxes), torch.from_numpy(value[order]).to(scores), label


def _confidence(
    kind: Confidence, score: np.ndarray, total: np.ndarray, joined: np.ndarray, view: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """(C, M): what fused boxes score, from the M boxes of each class, in ``joined`` (C, M), from ``view`` (C, M)."""
    row, column = np.nonzero(view >= 0)
    where, by = joined[row, column], view[row, column]
    if kind == "max":
        greatest = np.zeros_like(total)
        np.maximum.at(greatest, (row, where), score[row, column])
        return greatest / weights.max()
    own = np.zeros_like(total)  # the weights of its boxes
    np.add.at(own, (row, where), weights[by])
    present = np.zeros((*total.shape, len(weights)), bool)
    present[row, where, by] = True
    if kind == "box_and_model_avg":
        return total / np.maximum(own, _LEAST_WEIGHT) * (present @ weights) / weights.sum()
    return total / np.maximum(own + ~present @ weights, _LEAST_WEIGHT)


def _join(views: Sequence[Detections]) -> Detections:
    """All detections of ``views``, one view after the other, in float32 at least."""
    found = Detections.join(views)
    return replace(found, boxes=widened(found.boxes), scores=widened(found.scores))


def _by_class(boxes: Tensor, scores: Tensor, labels: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes (C, M, 4 + E) and scores (C, M) of each of the C classes that occur, best first, and their numbers (C, M).

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
    """Intersection over union (...) of ``a`` and ``b`` (..., 4 + E), which are broadcast against each other."""
    sides = np.minimum(a[..., 2:4], b[..., 2:4]) - np.maximum(a[..., :2], b[..., :2])
    np.maximum(sides, 0, out=sides)
    inter = sides[..., 0] * sides[..., 1]
    return inter / np.maximum(_area(a) + _area(b) - inter, np.finfo(np.float64).tiny)


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _fraction(value: float, name: str) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], not {value}")
    return value
