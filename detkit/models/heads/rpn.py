"""Region proposal network (Ren et al., NeurIPS 2015, section 3.1) on a feature pyramid (Lin et al., CVPR 2017, 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.config import PROPOSAL_HEADS, Count, Share
from detkit.losses import BoxLoss, ClassificationLoss
from detkit.matching import (
    AnchorGrid,
    Assignment,
    BalancedSampler,
    DeltaCoder,
    MaxIoUAssigner,
    SizeRange,
    assign_anchors,
    check_ranges,
    of_level,
    select_proposals,
    top_proposals,
)
from detkit.models.heads.common import mean_count, per_anchor, regression_loss
from detkit.models.interfaces import ProposalHead
from detkit.ops.sampling import feature_table
from detkit.structures import FeatureSpec, Images, Losses, Target
from detkit.utils.precision import full_precision
from detkit.utils.seed import generator


class RawProposals(NamedTuple):
    """What the network says: ``logits`` (B, N_l, O) and ``deltas`` (B, N_l, 4) for the N_l anchors of each level."""

    logits: list[Tensor]
    deltas: list[Tensor]
    shapes: list[tuple[int, int]]


class SampledAnchors(NamedTuple):
    """Anchors of one image in the loss: ``index`` (S,), positives first, and ``matched`` (P,), their objects."""

    index: Tensor
    matched: Tensor


@PROPOSAL_HEADS
class RPN(ProposalHead):
    """A small network that slides over every level and scores and refines the anchors of each cell.

    Anchors whose centre lies in the padding are left out, so that an image's proposals do not depend on what else is in
    its batch; torchvision and detectron2 keep them, as ``anchors.in_padding`` does.

    Args:
        anchors, assigner, sampler, coder, cls_loss, box_loss: its parts.
        num_before_nms: best anchors of each level that enter NMS, in training and at test.
        num_proposals: proposals per image after NMS, in training and at test.
        nms_iou: NMS threshold, within a level.
        min_size: px; smaller proposals go.
        valid_ranges: SNIP: for each level the least and the largest size of its objects, see ``matching.ranges``; null
            lets every level answer for every object.
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
        num_before_nms: tuple[Count, Count] = (2000, 1000),
        num_proposals: tuple[Count, Count] = (1000, 1000),
        nms_iou: Share = 0.7,
        min_size: float = 1e-3,
        valid_ranges: tuple[SizeRange, ...] | None = None,
    ) -> None:
        super().__init__()
        check_ranges(valid_ranges, len(in_spec.strides))
        channels = in_spec.channels[0]
        if set(in_spec.channels) != {channels}:
            raise ValueError(f"the RPN is shared by all levels, which must have equal channels, not {in_spec.channels}")
        self.anchors, self.assigner, self.sampler, self.coder = anchors, assigner, sampler, coder
        self.cls_loss, self.box_loss = cls_loss, box_loss
        self.num_before_nms = num_before_nms
        self.num_proposals = num_proposals
        self.nms_iou = nms_iou
        self.min_size = min_size
        self.valid_ranges = valid_ranges
        self.num_outputs = cls_loss.num_outputs(1)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.cls_logits = nn.Conv2d(channels, anchors.num_per_cell * self.num_outputs, 1)
        self.bbox_pred = nn.Conv2d(channels, anchors.num_per_cell * 4, 1)
        for layer in (self.conv, self.cls_logits, self.bbox_pred):
            assert layer.bias is not None
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
        assert self.cls_logits.bias is not None
        with torch.no_grad():
            self.cls_logits.bias.copy_(cls_loss.initial_bias(1).repeat(anchors.num_per_cell))

    def forward(self, features: Sequence[Tensor]) -> RawProposals:
        """The raw outputs for ``features``, L maps (B, C, H_l, W_l)."""
        logits, deltas = [], []
        for x in features:
            x = F.relu(self.conv(x))
            logits.append(per_anchor(self.cls_logits(x), self.num_outputs))
            deltas.append(per_anchor(self.bbox_pred(x), 4))
        return RawProposals(logits, deltas, [(f.shape[2], f.shape[3]) for f in features])

    def propose(self, features: Sequence[Tensor], images: Images) -> list[Tensor]:
        with torch.no_grad():
            raw = self(features)
        return self._decode(raw, self.anchors(raw.shapes, images.pixels.device), images, training=False)

    def loss(
        self, features: Sequence[Tensor], images: Images, targets: Sequence[Target]
    ) -> tuple[Losses, list[Tensor]]:
        with torch.no_grad():  # proposals carry no gradient, and the loss looks at a few hundred anchors: see at()
            raw = self(features)
        anchors = self.anchors(raw.shapes, images.pixels.device)
        samples = self.sample(raw.shapes, images, targets)
        logits, deltas = self.at(features, samples)
        losses = self._loss_from_sampled(logits, deltas, torch.cat(anchors), samples, targets)
        return losses, self._decode(raw, anchors, images, training=True)

    def at(self, features: Sequence[Tensor], samples: Sequence[SampledAnchors]) -> tuple[Tensor, Tensor]:
        """The raw outputs for sampled anchors alone: ``logits`` (S, O) and ``deltas`` (S, 4), all images in turn.

        What :meth:`forward` says of them, computed again from the 3x3 cells around each. The gradient of all other
        anchors is zero; not computing it saves a tenth of a training step, and the memory of the dense maps.
        """
        cells, inside, anchor = self._neighbourhoods(features, samples)
        rows = F.embedding(cells, feature_table(features)).masked_fill(~inside[:, :, None], 0)
        x = F.linear(rows.flatten(1), self.conv.weight.permute(0, 2, 3, 1).flatten(1), self.conv.bias).relu()
        logits = F.linear(x, self.cls_logits.weight.flatten(1), self.cls_logits.bias).unflatten(
            1, (-1, self.num_outputs)
        )
        deltas = F.linear(x, self.bbox_pred.weight.flatten(1), self.bbox_pred.bias).unflatten(1, (-1, 4))
        pick = torch.arange(len(anchor), device=anchor.device)
        return logits[pick, anchor], deltas[pick, anchor]

    def _neighbourhoods(
        self, features: Sequence[Tensor], samples: Sequence[SampledAnchors]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rows (S, 9) of the feature table around each sampled anchor, which of them exist, and the anchor's number."""
        device = features[0].device
        shapes = torch.tensor([f.shape[2:] for f in features], device=device)
        cells = shapes.prod(1)
        first_cell = cells.cumsum(0) - cells
        index = torch.cat([s.index for s in samples])
        counts = torch.tensor([len(s.index) for s in samples], device=device)
        image = torch.arange(len(samples), device=device).repeat_interleave(counts)
        first_anchor = first_cell * self.anchors.num_per_cell
        level = torch.bucketize(index, first_anchor, right=True) - 1
        h, w = shapes[level].unbind(1)
        place = index - first_anchor[level]
        cell, anchor = place // self.anchors.num_per_cell, place % self.anchors.num_per_cell
        step = torch.arange(-1, 2, device=device)
        y = (cell // w)[:, None] + step.repeat_interleave(3)
        x = (cell % w)[:, None] + step.repeat(3)
        inside = (y >= 0) & (y < h[:, None]) & (x >= 0) & (x < w[:, None])
        first_row = first_cell[level] * len(samples) + image * h * w
        rows = first_row[:, None] + y * w[:, None] + x
        return torch.where(inside, rows, 0), inside, anchor

    def assign(self, shapes: Sequence[tuple[int, int]], images: Images, targets: Sequence[Target]) -> list[Assignment]:
        """Which anchor answers for which object, on maps of ``shapes``. The loss uses this very function."""
        return assign_anchors(self.anchors, self.assigner, shapes, images, targets, self.valid_ranges)

    @torch.no_grad()
    def sample(
        self, shapes: Sequence[tuple[int, int]], images: Images, targets: Sequence[Target]
    ) -> list[SampledAnchors]:
        """The anchors of each image that enter the loss."""
        samples = []
        for assignment, meta in zip(self.assign(shapes, images, targets), images.meta, strict=True):
            positive, negative = self.sampler(assignment, generator(meta.key, "rpn"))
            index = torch.cat([positive, negative])
            samples.append(SampledAnchors(index, assignment.matched[positive]))
        return samples

    @full_precision
    def _loss_from_sampled(
        self,
        logits: Tensor,
        deltas: Tensor,
        anchors: Tensor,
        samples: Sequence[SampledAnchors],
        targets: Sequence[Target],
    ) -> Losses:
        is_positive = torch.cat([torch.arange(len(s.index), device=logits.device) < len(s.matched) for s in samples])
        labels = torch.where(is_positive, 0, 1)  # one class, "object"; 1 is background
        references = torch.cat([anchors[s.index[: len(s.matched)]] for s in samples])
        boxes = torch.cat([target.boxes[s.matched] for s, target in zip(samples, targets, strict=True)])
        norm = mean_count(len(labels), logits)
        cls_norm = mean_count(len(boxes), logits) if self.cls_loss.normalizer == "positives" else norm
        box_loss = regression_loss(self.box_loss, self.coder, deltas[is_positive], references, boxes)
        return Losses(
            {"rpn_cls": self.cls_loss(logits, labels).sum() / cls_norm, "rpn_box": box_loss / norm},
            {"rpn_num_pos": anchors.new_tensor(len(boxes) / len(targets))},
        )

    @torch.no_grad()
    @full_precision
    def _decode(self, raw: RawProposals, anchors: Sequence[Tensor], images: Images, *, training: bool) -> list[Tensor]:
        num_before, num_after = (counts[0 if training else 1] for counts in (self.num_before_nms, self.num_proposals))
        proposals = []
        for i, size in enumerate(images.sizes):
            boxes, scores, levels, valid = [], [], [], []
            masks = self.anchors.inside(raw.shapes, size, images.pixels.device)
            for level, (logits, deltas, anchor, mask) in enumerate(
                zip(raw.logits, raw.deltas, anchors, masks, strict=True)
            ):
                box, score = self._best(logits[i], deltas[i], anchor, mask, size, num_before)
                boxes.append(box)
                valid.append(of_level(box, size, self.valid_ranges, level))
                scores.append(score)
                levels.append(torch.full_like(score, level, dtype=torch.int64))
            kept, _ = select_proposals(
                torch.cat(boxes), torch.cat(scores), torch.cat(levels), size,
                iou_threshold=self.nms_iou, max_proposals=num_after, min_size=self.min_size,
                valid=None if self.valid_ranges is None else torch.cat(valid),
            )  # fmt: skip
            proposals.append(kept)
        return proposals

    def _best(
        self, logits: Tensor, deltas: Tensor, anchors: Tensor, inside: Tensor, size: tuple[int, int], num: int
    ) -> tuple[Tensor, Tensor]:
        """Boxes and scores of the best ``num`` anchors of one level that are ``inside`` the image."""
        index = inside.nonzero().squeeze(1)
        scores = self.cls_loss.scores(logits[index]).squeeze(-1)
        return top_proposals(
            scores, lambda best: self.coder.decode(deltas[index[best]], anchors[index[best]]), size, num=num
        )
