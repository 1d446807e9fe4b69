"""Which of a head's candidates come out as detections."""

from __future__ import annotations

from torch import Tensor

from detkit.config import SELECTORS, Count, Share
from detkit.matching.fusion import check_sigma
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

    #: Of soft-NMS, which a plain selector does not do.
    sigma: float | None = None

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
            class_agnostic=self.class_agnostic, sigma=self.sigma,
        )  # fmt: skip

    def of_one_class(
        self, boxes: Tensor, scores: Tensor, labels: Tensor, size: tuple[int, int], valid: Tensor | None = None
    ) -> Detections:
        """The detections of an image from candidates of one class each, which score enough: see
        :func:`detkit.matching.select_candidates`."""
        return select_candidates(
            boxes, scores, labels, size, iou_threshold=self.nms_iou,
            max_detections=self.max_detections, min_size=self.min_size, valid=valid,
            class_agnostic=self.class_agnostic, sigma=self.sigma, score_threshold=self.score_threshold,
        )  # fmt: skip


@SELECTORS
class SoftSelector(Selector):
    """Soft-NMS (Bodla et al., ICCV 2017) in place of NMS: what overlaps a better candidate stays, at a lower score.

    A score is multiplied by exp(-u^2 / sigma) for each better candidate of its class that it overlaps by an IoU of u
    (their equation 3). Of two objects side by side the second is not lost, and an object has more than one box, the
    later ones far below the first: choose what to draw by score.

    Args:
        score_threshold: candidates score more, and again when they have been lowered. It is below that of a
            :class:`Selector`, for what soft-NMS brings lies at low scores.
        sigma: the less, the more a score is lowered; the paper's 0.5.
        max_detections: at most so many in an image.
        min_size: px; smaller boxes go.
        class_agnostic: candidates of different classes lower each other too: one place, one class.
    """

    def __init__(
        self,
        *,
        score_threshold: Share = 0.01,
        sigma: float = 0.5,
        max_detections: Count = 100,
        min_size: float = 1e-2,
        class_agnostic: bool = False,
    ) -> None:
        super().__init__(
            score_threshold=score_threshold, nms_iou=None, max_detections=max_detections, min_size=min_size,
            class_agnostic=class_agnostic,
        )  # fmt: skip
        check_sigma(sigma)
        self.sigma = sigma
