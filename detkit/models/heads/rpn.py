"""Region proposal network (Ren et al., NeurIPS 2015, section 3.1) on a feature pyramid (Lin et al., CVPR 2017, 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.config import PROPOSAL_HEADS
from detkit.losses import BoxLoss, ClassificationLoss
from detkit.matching import AnchorGrid, Assignment, BalancedSampler, DeltaCoder, MaxIoUAssigner, select_proposals
from detkit.models.interfaces import ProposalHead
from detkit.structures import FeatureSpec, Images, Losses, Target
from detkit.utils.precision import full_precision
from detkit.utils.seed import generator


class RawProposals(NamedTuple):
    """What the network itself says: ``logits`` (B, N_l, O) and ``deltas`` (B, N_l, 4) for the N_l anchors of each level."""

    logits: list[Tensor]
    deltas: list[Tensor]
    shapes: list[tuple[int, int]]


@PROPOSAL_HEADS
class RPN(ProposalHead):
    """A small network that slides over every level and scores and refines the anchors of each cell.

    Anchors whose centre lies in the padding are left out, so that an image's proposals do not depend on what else is in
    its batch; torchvision and detectron2 keep them.

    Args:
        anchors, assigner, sampler, coder, cls_loss, box_loss: its parts.
        num_convs: 3x3 convolutions, each with a ReLU, before the two outputs.
        num_before_nms: best anchors of each level that enter NMS, in training and at test.
        num_proposals: proposals per image after NMS, in training and at test.
        nms_iou: NMS threshold, within a level.
        min_size: px; smaller proposals go.
    """

    def __init__(
        self,
        *,
        in_spec: FeatureSpec,
        anchors: AnchorGrid,
        assigner: MaxIoUAssigner,
        sampler: BalancedSampler,
        coder: DeltaCoder,
        cls_loss: ClassificationLoss,
        box_loss: BoxLoss,
        num_convs: int = 1,
        num_before_nms: tuple[int, int] = (2000, 1000),
        num_proposals: tuple[int, int] = (1000, 1000),
        nms_iou: float = 0.7,
        min_size: float = 1e-3,
    ) -> None:
        super().__init__()
        channels = in_spec.channels[0]
        if set(in_spec.channels) != {channels}:
            raise ValueError(f"the RPN is shared by all levels, which must have equal channels, not {in_spec.channels}")
        self.anchors, self.assigner, self.sampler, self.coder = anchors, assigner, sampler, coder
        self.cls_loss, self.box_loss = cls_loss, box_loss
        self.num_before_nms = num_before_nms
        self.num_proposals = num_proposals
        self.nms_iou = nms_iou
        self.min_size = min_size
        self.num_outputs = cls_loss.num_outputs(1)
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(num_convs))
        self.cls_logits = nn.Conv2d(channels, anchors.num_per_cell * self.num_outputs, 1)
        self.bbox_pred = nn.Conv2d(channels, anchors.num_per_cell * 4, 1)
        for conv in (*self.convs, self.cls_logits, self.bbox_pred):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)
        with torch.no_grad():
            self.cls_logits.bias.copy_(cls_loss.initial_bias(1).repeat(anchors.num_per_cell))

    def forward(self, features: Sequence[Tensor]) -> RawProposals:
        """The raw outputs for ``features``, L maps (B, C, H_l, W_l)."""
        logits, deltas = [], []
        for x in features:
            for conv in self.convs:
                x = F.relu(conv(x))
            logits.append(_per_anchor(self.cls_logits(x), self.num_outputs))
            deltas.append(_per_anchor(self.bbox_pred(x), 4))
        return RawProposals(logits, deltas, [(f.shape[2], f.shape[3]) for f in features])

    def propose(self, features: Sequence[Tensor], images: Images) -> list[Tensor]:
        raw = self(features)
        return self._decode(raw, self.anchors(raw.shapes, images.pixels.device), images, training=False)

    def loss(
        self, features: Sequence[Tensor], images: Images, targets: Sequence[Target]
    ) -> tuple[Losses, list[Tensor]]:
        raw = self(features)
        anchors = self.anchors(raw.shapes, images.pixels.device)
        losses = self._loss_from_raw(raw, torch.cat(anchors), images, targets)
        return losses, self._decode(raw, anchors, images, training=True)

    @torch.no_grad()
    def assign(
        self, shapes: Sequence[tuple[int, int]], images: Images, targets: Sequence[Target]
    ) -> list[Assignment]:
        """Which anchor answers for which object, for each image; maps of ``shapes``. The loss uses this very function."""
        device = images.pixels.device
        anchors = torch.cat(self.anchors(shapes, device))
        assignments = []
        for size, target in zip(images.sizes, targets, strict=True):
            inside = torch.cat(self.anchors.inside(shapes, size, device))
            assignments.append(self.assigner(anchors, target).without(~inside))
        return assignments

    @full_precision
    def _loss_from_raw(
        self, raw: RawProposals, anchors: Tensor, images: Images, targets: Sequence[Target]
    ) -> Losses:
        logits, deltas = torch.cat(raw.logits, dim=1), torch.cat(raw.deltas, dim=1)
        cls_sum, box_sum, num_sampled, num_positive = logits.sum() * 0, deltas.sum() * 0, 0, 0
        for i, (assignment, target) in enumerate(zip(self.assign(raw.shapes, images, targets), targets, strict=True)):
            positive, negative = self.sampler(assignment, generator(images.meta[i].key, "rpn"))
            sampled = torch.cat([positive, negative])
            labels = torch.zeros_like(sampled)
            labels[len(positive) :] = 1  # one class, "object"; 1 is background
            cls_sum = cls_sum + self.cls_loss(logits[i, sampled], labels).sum()
            boxes = target.boxes[assignment.matched[positive]]
            box_sum = box_sum + regression_loss(
                self.box_loss, self.coder, deltas[i, positive], anchors[positive], boxes
            )
            num_sampled += len(sampled)
            num_positive += len(positive)
        norm = max(num_sampled, 1)
        return Losses(
            {"rpn_cls": cls_sum / norm, "rpn_box": box_sum / norm},
            {"rpn_num_pos": anchors.new_tensor(num_positive / len(targets))},
        )

    @torch.no_grad()
    @full_precision
    def _decode(self, raw: RawProposals, anchors: Sequence[Tensor], images: Images, *, training: bool) -> list[Tensor]:
        num_before, num_after = (counts[0 if training else 1] for counts in (self.num_before_nms, self.num_proposals))
        proposals = []
        for i, size in enumerate(images.sizes):
            boxes, scores, levels = [], [], []
            masks = self.anchors.inside(raw.shapes, size, images.pixels.device)
            for level, (logits, deltas, anchor, mask) in enumerate(
                zip(raw.logits, raw.deltas, anchors, masks, strict=True)
            ):
                score = self.cls_loss.scores(logits[i]).squeeze(-1).masked_fill(~mask, -1.0)
                top, index = score.topk(min(num_before, len(score)))
                index = index[top >= 0]
                boxes.append(self.coder.decode(deltas[i, index], anchor[index]))
                scores.append(score[index])
                levels.append(torch.full_like(index, level))
            kept, _ = select_proposals(
                torch.cat(boxes), torch.cat(scores), torch.cat(levels), size,
                iou_threshold=self.nms_iou, max_proposals=num_after, min_size=self.min_size,
            )  # fmt: skip
            proposals.append(kept)
        return proposals


def regression_loss(
    loss: BoxLoss, coder: DeltaCoder, deltas: Tensor, references: Tensor, boxes: Tensor
) -> Tensor:
    """Sum of ``loss`` over N boxes, in the space that it compares: offsets, or decoded boxes in px."""
    if loss.space == "delta":
        return loss(deltas, coder.encode(boxes, references)).sum()
    return loss(coder.decode(deltas, references), boxes).sum()


def _per_anchor(x: Tensor, num_outputs: int) -> Tensor:
    """(B, A * O, H, W) to (B, H * W * A, O), in the anchors' order."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, num_outputs)
