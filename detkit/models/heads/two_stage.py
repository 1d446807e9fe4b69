"""Two stages in a row: proposals, then what stands in them (Faster R-CNN, Ren et al. NeurIPS 2015)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from detkit.config import HEADS
from detkit.matching import Assignment
from detkit.models.interfaces import Head, ProposalHead, RegionHead
from detkit.structures import Detections, Images, Losses, Target


@HEADS
class TwoStageHead(Head):
    """A proposal head and a region head on the same features, trained jointly ("approximate joint training").

    Args:
        rpn: the first stage.
        roi: the second stage.
    """

    def __init__(self, *, rpn: ProposalHead, roi: RegionHead) -> None:
        super().__init__()
        self.rpn = rpn
        self.roi = roi

    def assign(self, shapes: Sequence[tuple[int, int]], images: Images, targets: Sequence[Target]) -> list[Assignment]:
        """The first stage's: an object that no anchor answers for can only be found by luck."""
        return self.rpn.assign(shapes, images, targets)

    def loss(self, features: Sequence[Tensor], images: Images, targets: Sequence[Target]) -> Losses:
        first, proposals = self.rpn.loss(features, images, targets)
        return Losses.merge(first, self.roi.loss(features, proposals, images, targets))

    def predict(self, features: Sequence[Tensor], images: Images) -> list[Detections]:
        return self.roi.predict(features, self.rpn.propose(features, images), images)
