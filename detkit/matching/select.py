"""From scored candidates to detections: thresholds, non-maximum suppression, top-k."""

from __future__ import annotations

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
    picked_scores = scores[candidate, label]
    picked_boxes = clip(boxes[candidate, label if boxes.shape[1] > 1 else 0], size)
    large = is_larger(picked_boxes, min_size)
    picked_boxes, picked_scores, label = picked_boxes[large], picked_scores[large], label[large]
    keep = batched_nms(picked_boxes, picked_scores, label, iou_threshold)[:max_detections]
    return Detections(picked_boxes[keep], picked_scores[keep], label[keep])


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
