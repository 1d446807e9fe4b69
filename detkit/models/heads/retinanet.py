"""RetinaNet (Lin et al., "Focal loss for dense object detection", ICCV 2017, section 4): one stage of anchors.

Every anchor of every level is classified into K classes by sigmoids under the focal loss (equations 4 and 5), whose sum
over all anchors is divided by the number of positives; the box loss counts positives alone. Class and box towers share
nothing but their input, and both are shared by all levels. Departure: plain L1 rather than smooth L1 by default, as in
later work.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detkit.config import HEADS, Count, Whole
from detkit.losses import BoxLoss, ClassificationLoss
from detkit.matching import IGNORED, Anchors, Assigner, Assignment, Coder, Selector, assign_anchors, top_candidates
from detkit.models.heads.anchors import (
    LevelAnchors,
    RawAnchors,
    candidates_of,
    equal_channels,
    initialize_predictions,
)
from detkit.models.heads.common import matched_objects, mean_count, per_anchor, regression_losses
from detkit.models.heads.dense import CellMasks, DenseHead
from detkit.models.interfaces import AssigningHead
from detkit.models.layers import ConvTower, NormName
from detkit.structures import Detections, FeatureSpec, Images, Losses, Target, size_ranges


@HEADS
class RetinaHead(DenseHead, AssigningHead):
    """Anchors of every level, classified and refined in one stage.

    Args:
        anchors, assigner, coder, cls_loss, box_loss, selector: its parts.
        num_convs: 3x3 convolutions before the predictions, for classes and boxes each.
        init_std: deviation of the towers' random weights, 0.01 in section 4.1. With fewer than 256 channels the signal
            fades through four such layers; null keeps its size, which a short run needs.
        norm: normalisation after each convolution of the towers (gn in torchvision's second RetinaNet); null for none.
        in_padding: read the maps as a whole, as torchvision and others do in padded batches, and let a group norm count
            the padding. Results for an image then depend on the other images of its batch.
        num_before_nms: the best (anchor, class) pairs of each level that enter NMS.
        valid_ranges: SNIP: for each level [from, to], the sizes of its objects, px of the network input, null for no
            upper bound; see ``matching.ranges``. null lets every level answer for every object.
    """

    def __init__(
        self,
        *,
        in_spec: FeatureSpec,
        num_classes: int,
        anchors: Anchors,
        assigner: Assigner,
        coder: Coder,
        cls_loss: ClassificationLoss,
        box_loss: BoxLoss,
        selector: Selector,
        num_convs: Whole = 4,
        init_std: float | None = 0.01,
        norm: NormName | None = None,
        in_padding: bool = False,
        num_before_nms: Count = 1000,
        valid_ranges: tuple[tuple[float, float | None], ...] | None = None,
    ) -> None:
        super().__init__()
        channels = equal_channels(in_spec, "RetinaNet's head")
        self.strides, self.num_classes = in_spec.strides, num_classes
        self.levels = tuple(range(len(in_spec.strides)))
        self.valid_ranges = size_ranges(valid_ranges, len(self.levels), "levels")
        self.anchors, self.assigner, self.coder = anchors, assigner, coder
        self.cls_loss, self.box_loss, self.selector = cls_loss, box_loss, selector
        self.num_before_nms, self.in_padding = num_before_nms, in_padding
        self.num_outputs = cls_loss.num_outputs(num_classes)
        self.cls_tower = ConvTower(channels, channels, num_convs, init_std, norm)
        self.box_tower = ConvTower(channels, channels, num_convs, init_std, norm)
        self.cls_logits = cls_loss.make_map(channels, anchors.num_per_cell, num_classes)
        self.bbox_pred = nn.Conv2d(channels, anchors.num_per_cell * 4, 3, padding=1)
        initialize_predictions(self.cls_logits, self.bbox_pred, cls_loss, num_classes)

    def forward(self, features: Sequence[Tensor], masks: CellMasks = None) -> RawAnchors:
        logits, deltas = [], []
        for level, x in enumerate(features):
            mask = None if masks is None else masks[level]
            logits.append(per_anchor(self.cls_logits(self.cls_tower(x, mask)), self.num_outputs))
            deltas.append(per_anchor(self.bbox_pred(self.box_tower(x, mask)), 4))
        return RawAnchors(logits, deltas, [(f.shape[2], f.shape[3]) for f in features])

    def assign(self, shapes: Sequence[tuple[int, int]], images: Images, targets: Sequence[Target]) -> list[Assignment]:
        """Anchors from IoU 0.5 are positive, below 0.4 negative, in the paper's section 4.1."""
        return assign_anchors(self.anchors, self.assigner, shapes, images, targets, self.valid_ranges)

    def loss_from_raw(self, raw: RawAnchors, images: Images, targets: Sequence[Target]) -> Losses:
        logits, deltas = torch.cat(raw.logits, dim=1), torch.cat(raw.deltas, dim=1)
        anchors = torch.cat(self.anchors(raw.shapes, logits.device))
        assigned = self.assign(raw.shapes, images, targets)
        of_images = zip(logits, assigned, targets, strict=True)
        cls_loss = torch.stack([self._cls_loss(*of_image) for of_image in of_images]).sum()
        matched = torch.stack([a.matched for a in assigned])
        image, positive, boxes, _ = matched_objects(targets, matched)
        box_loss = regression_losses(self.box_loss, self.coder, deltas[image, positive], anchors[positive], boxes).sum()
        norm = mean_count(len(positive), logits)
        by_positives = self.cls_loss.normalizer == "positives"
        cls_norm = norm if by_positives else mean_count((matched != IGNORED).sum(), logits)
        return Losses(
            {"cls": cls_loss / cls_norm, "box": box_loss / norm},
            {"num_pos": logits.new_full((), len(positive) / len(targets))},
        )

    def _cls_loss(self, logits: Tensor, assignment: Assignment, target: Target) -> Tensor:
        """The sum over the anchors of one image. Those ignored are masked: to pick the others is to count them."""
        ignored = assignment.matched == IGNORED
        # before the loss too: its gradient at an infinite logit is not finite, and 0 times that is NaN
        losses = self.cls_loss(logits.masked_fill(ignored[:, None], 0), assignment.labels(target, self.num_classes))
        return losses.masked_fill(ignored, 0).sum()

    @torch.no_grad()
    def decode(self, raw: RawAnchors, images: Images) -> list[Detections]:
        anchors = self.anchors(raw.shapes, images.pixels.device)
        found = candidates_of(raw, self.anchors, anchors, images, self._best, self.valid_ranges)
        detections = []
        for (columns, _, valid), size in zip(found, images.sizes, strict=True):
            boxes, scores, labels = columns
            detections.append(self.selector.of_one_class(boxes, scores, labels, size, valid))
        return detections

    def _best(self, of_level: LevelAnchors, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, scores and labels of the best (anchor, class) pairs of one level that are inside the image."""
        logits, deltas, anchors, inside = of_level
        return top_candidates(
            self.cls_loss.scores(logits).masked_fill(~inside[:, None], 0.0),
            lambda index: self.coder.decode(deltas[index], anchors[index]),
            size,
            score_threshold=self.selector.score_threshold,
            num=self.num_before_nms,
        )
