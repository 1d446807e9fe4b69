"""RetinaNet (Lin et al., "Focal loss for dense object detection", ICCV 2017, section 4): one stage of anchors.

Every anchor of every level is classified into K classes by sigmoids under the focal loss (equations 4 and 5), whose sum
over all anchors is divided by the number of positives; the box loss counts positives alone. Class and box towers share
nothing but their input, and both are shared by all levels. Departure: plain L1 rather than smooth L1 by default, as in
later work.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from detkit.config import HEADS, Count, Share
from detkit.losses import BoxLoss, ClassificationLoss
from detkit.matching import (
    AnchorGrid,
    Assignment,
    DeltaCoder,
    MaxIoUAssigner,
    SizeRange,
    assign_anchors,
    check_ranges,
    of_level,
    select_candidates,
    top_candidates,
)
from detkit.models.heads.common import mean_count, per_anchor, regression_loss
from detkit.models.heads.dense import CellMasks, DenseHead
from detkit.models.layers import ConvTower
from detkit.structures import Detections, FeatureSpec, Images, Losses, Target


class RawAnchors(NamedTuple):
    """What the network says of the N_l anchors of each level: ``logits`` (B, N_l, O) and ``deltas`` (B, N_l, 4)."""

    logits: list[Tensor]
    deltas: list[Tensor]
    shapes: list[tuple[int, int]]


@HEADS
class RetinaHead(DenseHead):
    """Anchors of every level, classified and refined in one stage.

    Args:
        anchors, assigner, coder, cls_loss, box_loss: its parts.
        num_convs: 3x3 convolutions before the predictions, for classes and boxes each.
        init_std: deviation of the towers' random weights, 0.01 in section 4.1. With fewer than 256 channels the signal
            fades through four such layers; null keeps its size, which a short run needs.
        num_before_nms: the best (anchor, class) pairs of each level that enter NMS.
        score_threshold, nms_iou, max_detections, min_size: which detections come out; ``min_size`` in px.
        valid_ranges: SNIP: for each level the least and the largest size of its objects, see ``matching.ranges``; null
            lets every level answer for every object.
    """

    def __init__(
        self,
        *,
        in_spec: FeatureSpec,
        num_classes: int,
        anchors: AnchorGrid,
        assigner: MaxIoUAssigner,
        coder: DeltaCoder,
        cls_loss: ClassificationLoss,
        box_loss: BoxLoss,
        num_convs: int = 4,
        init_std: float | None = 0.01,
        num_before_nms: Count = 1000,
        score_threshold: Share = 0.05,
        nms_iou: Share = 0.5,
        max_detections: Count = 100,
        min_size: float = 1e-2,
        valid_ranges: tuple[SizeRange, ...] | None = None,
    ) -> None:
        super().__init__()
        channels = in_spec.channels[0]
        if set(in_spec.channels) != {channels}:
            raise ValueError(f"the towers are shared by all levels, which must have equal channels: {in_spec.channels}")
        check_ranges(valid_ranges, len(in_spec.strides))
        self.strides, self.num_classes, self.valid_ranges = in_spec.strides, num_classes, valid_ranges
        self.anchors, self.assigner, self.coder = anchors, assigner, coder
        self.cls_loss, self.box_loss = cls_loss, box_loss
        self.num_before_nms, self.score_threshold = num_before_nms, score_threshold
        self.nms_iou, self.max_detections, self.min_size = nms_iou, max_detections, min_size
        self.num_outputs = cls_loss.num_outputs(num_classes)
        self.cls_tower = ConvTower(channels, channels, num_convs, init_std)
        self.box_tower = ConvTower(channels, channels, num_convs, init_std)
        self.cls_logits = nn.Conv2d(channels, anchors.num_per_cell * self.num_outputs, 3, padding=1)
        self.bbox_pred = nn.Conv2d(channels, anchors.num_per_cell * 4, 3, padding=1)
        for layer in (self.cls_logits, self.bbox_pred):
            assert layer.bias is not None
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
        assert self.cls_logits.bias is not None
        with torch.no_grad():  # section 4.1: every anchor starts as background, with probability 1 - prior_prob
            self.cls_logits.bias.copy_(cls_loss.initial_bias(num_classes).repeat(anchors.num_per_cell))

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
        cls_loss, box_loss, num_positive, num_used = logits.new_zeros(()), deltas.new_zeros(()), 0, 0
        for i, (assignment, target) in enumerate(zip(self.assign(raw.shapes, images, targets), targets, strict=True)):
            positive = assignment.positive.nonzero().squeeze(1)
            used = assignment.positive | assignment.negative
            labels = assignment.labels(target, self.num_classes)
            cls_loss = cls_loss + self.cls_loss(logits[i][used], labels[used]).sum()
            boxes = target.boxes[assignment.matched[positive]]
            box_loss = box_loss + regression_loss(
                self.box_loss, self.coder, deltas[i, positive], anchors[positive], boxes
            )
            num_positive += len(positive)
            num_used += int(used.sum())
        norm = mean_count(num_positive, logits)
        cls_norm = norm if self.cls_loss.normalizer == "positives" else mean_count(num_used, logits)
        return Losses(
            {"cls": cls_loss / cls_norm, "box": box_loss / norm},
            {"num_pos": logits.new_tensor(num_positive / len(targets))},
        )

    @torch.no_grad()
    def decode(self, raw: RawAnchors, images: Images) -> list[Detections]:
        levels = self.anchors(raw.shapes, images.pixels.device)
        detections = []
        for i, size in enumerate(images.sizes):
            boxes, scores, labels, valid = [], [], [], []
            masks = self.anchors.inside(raw.shapes, size, images.pixels.device)
            for level, (logits, deltas, anchors, mask) in enumerate(
                zip(raw.logits, raw.deltas, levels, masks, strict=True)
            ):
                score = self.cls_loss.scores(logits[i]).masked_fill(~mask[:, None], 0.0)
                found = top_candidates(
                    score,
                    functools.partial(_decode_some, self.coder, deltas[i], anchors),
                    size,
                    score_threshold=self.score_threshold,
                    num=self.num_before_nms,
                )
                valid.append(of_level(found[0], size, self.valid_ranges, level))
                for column, values in zip((boxes, scores, labels), found, strict=True):
                    column.append(values)
            found = select_candidates(
                torch.cat(boxes), torch.cat(scores), torch.cat(labels), size,
                iou_threshold=self.nms_iou, max_detections=self.max_detections, min_size=self.min_size,
                valid=None if self.valid_ranges is None else torch.cat(valid),
            )  # fmt: skip
            detections.append(found)
        return detections


def _decode_some(coder: DeltaCoder, deltas: Tensor, anchors: Tensor, index: Tensor) -> Tensor:
    """Boxes (Q, 4) px of the anchors ``index`` (Q,)."""
    return coder.decode(deltas[index], anchors[index])
