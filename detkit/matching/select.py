"""From scored candidates to detections: thresholds, non-maximum suppression, top-k."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from detkit.structures import Detections
from detkit.structures.boxes import clip, is_larger


def select_detections(
    boxes: Tensor,
    scores: Tensor,
    size: tuple[int, int],
    *,
    score_threshold: float,
    iou_threshold: float,
    max_detections: int,
    min_size: float = 0.0,
) -> Detections:
    """The detections of one image from its candidates.

    Args:
        boxes: (P, K, 4) px, a box for each candidate and class, or (P, 1, 4), one for all classes.
        scores: (P, K) in [0, 1].
        size: (h, w) of the image, at which boxes are clipped.
        score_threshold: candidates must score more.
        iou_threshold: of two candidates of one class that overlap more, the better one stays.
        max_detections: at most so many, the best.
        min_size: px; smaller boxes go.
    """
    candidate, label = (scores > score_threshold).nonzero().unbind(1)
    return select_candidates(
        boxes[candidate, label if boxes.shape[1] > 1 else 0], scores[candidate, label], label, size,
        iou_threshold=iou_threshold, max_detections=max_detections, min_size=min_size,
    )  # fmt: skip


def select_candidates(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    size: tuple[int, int],
    *,
    iou_threshold: float | None,
    max_detections: int,
    min_size: float = 0.0,
) -> Detections:
    """:func:`select_detections` for candidates that have one class each.

    Args:
        boxes: (P, 4) px.
        scores: (P,) in [0, 1].
        labels: (P,) int64 in [0, K).
        iou_threshold: None goes without NMS, for heads whose candidates are peaks already.
    """
    boxes = clip(boxes, size)
    large = is_larger(boxes, min_size)
    boxes, scores, labels = boxes[large], scores[large], labels[large]
    if iou_threshold is None:
        keep = scores.argsort(descending=True, stable=True)[:max_detections]
    else:
        keep = batched_nms(boxes, scores, labels, iou_threshold)[:max_detections]
    return Detections(boxes[keep], scores[keep], labels[keep])


def top_candidates(scores: Tensor, *, score_threshold: float, num: int) -> tuple[Tensor, Tensor]:
    """The best ``num`` of all (candidate, class) pairs that score more than ``score_threshold``, best first.

    Args:
        scores: (P, K).

    Returns:
        candidate (Q,) in [0, P) and label (Q,) in [0, K).
    """
    best, index = scores.flatten().topk(min(num, scores.numel()))
    index = index[best > score_threshold]
    return torch.div(index, scores.shape[1], rounding_mode="floor"), index % scores.shape[1]


def select_proposals(
    boxes: Tensor,
    scores: Tensor,
    levels: Tensor,
    size: tuple[int, int],
    *,
    iou_threshold: float,
    max_proposals: int,
    min_size: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The proposals of one image, best first: NMS within each pyramid level, then the best of all levels.

    Args:
        boxes: (P, 4) px.
        scores: (P,).
        levels: (P,) int64, the level that each box comes from.

    Returns:
        boxes (R, 4) clipped to ``size`` and their scores (R,).
    """
    boxes = clip(boxes, size)
    large = is_larger(boxes, min_size)
    boxes, scores, levels = boxes[large], scores[large], levels[large]
    keep = batched_nms(boxes, scores, levels, iou_threshold)[:max_proposals]
    return boxes[keep], scores[keep]
