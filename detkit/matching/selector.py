"""Which of a head's candidates come out as detections."""

from __future__ import annotations

from torch import Tensor

from detkit.config import SELECTORS, Count, Share
from detkit.matching.select import select_candidates, select_detections
from detkit.structures import Detections


@SELECTORS
class Selector:
    """A least score, NMS within each class or among all, and the best of what is left.

    Args:
        score_threshold: detections score more.
        nms_iou: of two candidates of one class that overlap more, the better one stays; null for no NMS.
        max_detections: at most so many in an image.
        min_size: px; smaller boxes go.
        class_agnostic: candidates of different classes are compared by NMS too: one place, one class.
    """

    def __init__(
        self,
        *,
        score_threshold: Share = 0.05,
        nms_iou: Share | None = 0.5,
        max_detections: Count = 100,
        min_size: float = 1e-2,
        class_agnostic: bool = False,
    ) -> None:
        self.score_threshold, self.nms_iou = score_threshold, nms_iou
        self.max_detections, self.min_size = max_detections, min_size
        self.class_agnostic = class_agnostic

    def of_each_class(
        self, boxes: Tensor, scores: Tensor, size: tuple[int, int], valid: Tensor | None = None
    ) -> Detections:
        """The detections of an image of ``size`` (h, w), from candidates that may be of any class.

        Args:
            boxes: (P, K, 4) px, a box for each class, or (P, 1, 4), one for all.
            scores: (P, K).
            valid: see :func:`detkit.matching.select_candidates`, (P, K) or (P, 1) here.
        """
        return select_detections(
            boxes, scores, size, score_threshold=self.score_threshold, iou_threshold=self.nms_iou,
            max_detections=self.max_detections, min_size=self.min_size, valid=valid,
            class_agnostic=self.class_agnostic,
        )  # fmt: skip

    def of_one_class(
        self, boxes: Tensor, scores: Tensor, labels: Tensor, size: tuple[int, int], valid: Tensor | None = None
    ) -> Detections:
        """The detections of an image from candidates of one class each, which score enough: see
        :func:`detkit.matching.select_candidates`."""
        return select_candidates(
            boxes, scores, labels, size, iou_threshold=self.nms_iou,
            max_detections=self.max_detections, min_size=self.min_size, valid=valid,
            class_agnostic=self.class_agnostic,
        )  # fmt: skip
