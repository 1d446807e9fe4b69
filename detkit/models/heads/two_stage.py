"""Two stages in a row: proposals, then what stands in them (Faster R-CNN, Ren et al. NeurIPS 2015)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from detkit.config import HEADS
from detkit.matching import Assignment
from detkit.models.interfaces import AssigningHead, Head, ProposalHead, RegionHead
from detkit.structures import Detections, FeatureSpec, Images, Losses, Target


@HEADS
class TwoStageHead(Head, AssigningHead):
    """A proposal head and a region head on the same pyramid, trained jointly ("approximate joint training").

    Args:
        rpn: the first stage.
        roi: the second stage.
        rpn_levels: the maps that the first stage is given, counted from 0 for the finest, -1 for the coarsest; null for
            all.
        roi_levels: those that the second stage is given; null for all.
    """

    def __init__(
        self,
        *,
        in_spec: FeatureSpec,
        rpn: ProposalHead,
        roi: RegionHead,
        rpn_levels: tuple[int, ...] | None = None,
        roi_levels: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        self.rpn = rpn
        self.roi = roi
        self.rpn_levels = in_spec.which(rpn_levels, "rpn_levels")
        self.roi_levels = in_spec.which(roi_levels, "roi_levels")
        self.reads = tuple(sorted({*self.rpn_levels, *self.roi_levels}))
        self.levels = tuple(self.rpn_levels[level] for level in rpn.levels)

    @staticmethod
    def part_specs(in_spec: FeatureSpec, options: Mapping[str, Any]) -> dict[str, FeatureSpec]:
        """The maps that each stage is given."""
        names = {"rpn": "rpn_levels", "roi": "roi_levels"}
        return {part: in_spec.select(in_spec.which(options.get(name), name)) for part, name in names.items()}

    def assign(self, shapes: Sequence[tuple[int, int]], images: Images, targets: Sequence[Target]) -> list[Assignment]:
        """The first stage's: an object that no anchor answers for can only be found by luck."""
        return self.rpn.assign([shapes[i] for i in self.rpn_levels], images, targets)

    def loss(self, features: Sequence[Tensor], images: Images, targets: Sequence[Target]) -> Losses:
        first, proposals = self.rpn.loss([features[i] for i in self.rpn_levels], images, targets)
        second = self.roi.loss([features[i] for i in self.roi_levels], proposals, images, targets)
        return Losses.merge(first, second)

    def predict(self, features: Sequence[Tensor], images: Images) -> list[Detections]:
        proposals = self.rpn.propose([features[i] for i in self.rpn_levels], images)
        return self.roi.predict([features[i] for i in self.roi_levels], proposals, images)
