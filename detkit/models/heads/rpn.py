"""Region proposal network (Ren et al., NeurIPS 2015, section 3.1) on a feature pyramid (Lin et al., CVPR 2017, 4.1)."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.config import PROPOSAL_HEADS, Count, Share
from detkit.losses import BoxLoss, ClassificationLoss
from detkit.matching import (
    NO_SCORE,
    Anchors,
    Assigner,
    Assignment,
    Coder,
    Sampler,
    assign_anchors,
    select_proposals,
    top_proposals,
)
from detkit.models.heads.anchors import (
    LevelAnchors,
    RawAnchors,
    equal_channels,
    initialize_predictions,
    inside_images,
)
from detkit.models.heads.common import mean_count, per_anchor, regression_losses
from detkit.models.interfaces import ProposalHead
from detkit.ops import can_conv_at, conv_at
from detkit.structures import FeatureSpec, Images, Losses, Target, size_ranges
from detkit.utils.precision import full_precision
from detkit.utils.seed import generator
from detkit.utils.transfer import constant, row_owners


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
        valid_ranges: SNIP: for each level [from, to], the sizes of its objects, px of the network input, null for no
            upper bound; see ``matching.ranges``. null lets every level answer for every object.
        num_convs: 3x3 convolutions before the predictions; with more than one the loss costs dense maps.
    """

    def __init__(
        self,
        *,
        in_spec: FeatureSpec,
        anchors: Anchors,
        assigner: Assigner,
        sampler: Sampler,
        coder: Coder,
        cls_loss: ClassificationLoss,
        box_loss: BoxLoss,
        num_before_nms: tuple[Count, Count] = (2000, 1000),
        num_proposals: tuple[Count, Count] = (1000, 1000),
        nms_iou: Share = 0.7,
        min_size: float = 1e-3,
        valid_ranges: tuple[tuple[float, float | None], ...] | None = None,
        num_convs: Count = 1,
    ) -> None:
        super().__init__()
        if cls_loss.needs_own_layer:
            raise ValueError(
                f"{type(cls_loss).__name__} tells classes apart by their directions; the RPN has one, object: "
                "take BCE, CrossEntropy or Focal"
            )
        channels = equal_channels(in_spec, "the RPN")
        self.levels = tuple(range(len(in_spec.strides)))
        self.valid_ranges = size_ranges(valid_ranges, len(self.levels), "levels")
        self.anchors, self.assigner, self.sampler, self.coder = anchors, assigner, sampler, coder
        self.cls_loss, self.box_loss = cls_loss, box_loss
        self.num_before_nms = num_before_nms
        self.num_proposals = num_proposals
        self.nms_iou = nms_iou
        self.min_size = min_size
        self.num_outputs = cls_loss.num_outputs(1)
        convs = [nn.Conv2d(channels, channels, 3, padding=1) for _ in range(num_convs)]
        self.conv = convs[0] if num_convs == 1 else nn.Sequential(*_with_relus(convs))
        self.cls_logits = nn.Conv2d(channels, anchors.num_per_cell * self.num_outputs, 1)
        self.bbox_pred = nn.Conv2d(channels, anchors.num_per_cell * 4, 1)
        for conv in convs:
            assert conv.bias is not None
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)
        initialize_predictions(self.cls_logits, self.bbox_pred, cls_loss, 1)

    def forward(self, features: Sequence[Tensor]) -> RawAnchors:
        """The raw outputs for ``features``, L maps (B, C, H_l, W_l)."""
        logits, deltas = [], []
        for x in features:
            x = F.relu(self.conv(x))
            logits.append(per_anchor(self.cls_logits(x), self.num_outputs))
            deltas.append(per_anchor(self.bbox_pred(x), 4))
        return RawAnchors(logits, deltas, [(f.shape[2], f.shape[3]) for f in features])

    def propose(self, features: Sequence[Tensor], images: Images) -> list[Tensor]:
        with torch.no_grad():
            raw = self(features)
        return self._decode(raw, self.anchors(raw.shapes, images.pixels.device), images, training=False)

    def loss(
        self, features: Sequence[Tensor], images: Images, targets: Sequence[Target]
    ) -> tuple[Losses, list[Tensor]]:
        sparse = self._is_plain()  # the loss looks at a few hundred anchors: see at()
        with torch.set_grad_enabled(torch.is_grad_enabled() and not sparse):
            raw = self(features)
        by_level = self.anchors(raw.shapes, images.pixels.device)
        anchors = torch.cat(by_level)
        samples = self.sample(raw, anchors, images, targets)
        logits, deltas = self.at(features, samples) if sparse else _picked(raw, samples)
        losses = self._loss_from_sampled(logits, deltas, anchors, samples, targets)
        return losses, self._decode(raw, by_level, images, training=True)

    def _is_plain(self) -> bool:
        """Whether :meth:`at` does what :meth:`forward` does; any other layers that stand here are run densely."""
        layers = (self.conv, self.cls_logits, self.bbox_pred)
        return all(map(can_conv_at, layers)) and self.cls_logits.kernel_size == self.bbox_pred.kernel_size == (1, 1)

    def at(self, features: Sequence[Tensor], samples: Sequence[SampledAnchors]) -> tuple[Tensor, Tensor]:
        """The raw outputs for sampled anchors alone: ``logits`` (S, O) and ``deltas`` (S, 4), all images in turn.

        What :meth:`forward` says of them, computed again from the cells around each. The gradient of all other anchors
        is zero; not computing it saves a tenth of a training step, and the memory of the dense maps.
        """
        assert isinstance(self.conv, nn.Conv2d)
        image, level, cell, anchor = self._places(features, samples)
        x = conv_at(features, self.conv, image, level, cell).relu()
        logits = F.linear(x, self.cls_logits.weight.flatten(1), self.cls_logits.bias).unflatten(
            1, (-1, self.num_outputs)
        )
        deltas = F.linear(x, self.bbox_pred.weight.flatten(1), self.bbox_pred.bias).unflatten(1, (-1, 4))
        pick = torch.arange(len(anchor), device=anchor.device)
        return logits[pick, anchor], deltas[pick, anchor]

    def _places(
        self, features: Sequence[Tensor], samples: Sequence[SampledAnchors]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Image, level, cell and number within the cell (S,) of each sampled anchor."""
        device = features[0].device
        index = torch.cat([s.index for s in samples])
        image = row_owners([len(s.index) for s in samples], device)
        num_anchors = [f.shape[2] * f.shape[3] * self.anchors.num_per_cell for f in features]
        first_anchor = constant((0, *itertools.accumulate(num_anchors[:-1])), device)
        level = torch.bucketize(index, first_anchor, right=True) - 1
        place = index - first_anchor[level]
        return image, level, place // self.anchors.num_per_cell, place % self.anchors.num_per_cell

    def assign(self, shapes: Sequence[tuple[int, int]], images: Images, targets: Sequence[Target]) -> list[Assignment]:
        """Which anchor answers for which object, on maps of ``shapes``. The loss uses this very function."""
        return assign_anchors(self.anchors, self.assigner, shapes, images, targets, self.valid_ranges)

    @torch.no_grad()
    def sample(
        self, raw: RawAnchors, anchors: Tensor, images: Images, targets: Sequence[Target]
    ) -> list[SampledAnchors]:
        """The anchors of each image that enter the loss; ``anchors`` (N, 4) px are those of all levels."""
        assigned, losses = self.assign(raw.shapes, images, targets), None
        if self.sampler.needs_losses:
            of_images = [[torch.cat([level[i] for level in part]) for part in raw[:2]] for i in range(len(images))]
            losses = [
                self._losses_of_all(logits, deltas, anchors, assignment, target)
                for (logits, deltas), assignment, target in zip(of_images, assigned, targets, strict=True)
            ]
        drawn = self.sampler.of_batch(assigned, [generator(meta.key, "rpn") for meta in images.meta], losses)
        return [
            SampledAnchors(torch.cat([positive, negative]), assignment.matched[positive])
            for (positive, negative), assignment in zip(drawn, assigned, strict=True)
        ]

    @full_precision
    def _losses_of_all(
        self, logits: Tensor, deltas: Tensor, anchors: Tensor, assignment: Assignment, target: Target
    ) -> Tensor:
        """(N,): what each anchor of one image would add to the loss, those ignored as if they were background."""
        losses = self.cls_loss(logits, torch.where(assignment.positive, 0, 1))
        positive = assignment.positive.nonzero().squeeze(1)
        boxes = target.boxes[assignment.matched[positive]]
        of_boxes = regression_losses(self.box_loss, self.coder, deltas[positive], anchors[positive], boxes)
        return losses.index_add(0, positive, of_boxes)

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
        of_images = deltas.split([len(s.index) for s in samples])
        of_positives = torch.cat([d[: len(s.matched)] for d, s in zip(of_images, samples, strict=True)])
        labels = torch.where(is_positive, 0, 1)  # one class, "object"; 1 is background
        references = torch.cat([anchors[s.index[: len(s.matched)]] for s in samples])
        boxes = torch.cat([target.boxes[s.matched] for s, target in zip(samples, targets, strict=True)])
        norm = mean_count(len(labels), logits)
        cls_norm = mean_count(len(boxes), logits) if self.cls_loss.normalizer == "positives" else norm
        box_loss = regression_losses(self.box_loss, self.coder, of_positives, references, boxes).sum()
        return Losses(
            {"rpn_cls": self.cls_loss(logits, labels).sum() / cls_norm, "rpn_box": box_loss / norm},
            {"rpn_num_pos": anchors.new_full((), len(boxes) / len(targets))},
        )

    @torch.no_grad()
    @full_precision
    def _decode(self, raw: RawAnchors, anchors: Sequence[Tensor], images: Images, *, training: bool) -> list[Tensor]:
        num_before, num_after = (counts[0 if training else 1] for counts in (self.num_before_nms, self.num_proposals))
        inside = inside_images(self.anchors, raw.shapes, images, images.pixels.device)
        of_levels = zip(raw.logits, raw.deltas, anchors, inside, strict=True)
        found = [self._best(LevelAnchors(*level), images.sizes, num_before) for level in of_levels]
        # an image's own range is the second stage's to keep: a proposal may still grow or shrink
        selected = select_proposals(
            found, images.sizes, iou_threshold=self.nms_iou, max_proposals=num_after, min_size=self.min_size,
            valid_ranges=self.valid_ranges,
        )  # fmt: skip
        return [boxes for boxes, _ in selected]

    def _best(self, of_level: LevelAnchors, sizes: Sequence[tuple[int, int]], num: int) -> tuple[Tensor, Tensor]:
        """Boxes (B, Q, 4) and scores (B, Q) of the best ``num`` anchors of one level that are inside each image."""
        logits, deltas, anchors, inside = of_level
        scores = self.cls_loss.scores(logits).squeeze(-1).masked_fill(~inside, NO_SCORE)
        return top_proposals(scores, functools.partial(self._boxes_of, deltas, anchors), sizes, num=num)

    def _boxes_of(self, deltas: Tensor, anchors: Tensor, index: Tensor) -> Tensor:
        """Boxes (B, Q, 4) px of the anchors ``index`` (B, Q), by the ``deltas`` (B, N, 4) of all."""
        chosen = deltas.gather(1, index[:, :, None].expand(-1, -1, 4))
        return self.coder.decode(chosen.flatten(0, 1), anchors[index.flatten()]).view_as(chosen)


def _picked(raw: RawAnchors, samples: Sequence[SampledAnchors]) -> tuple[Tensor, Tensor]:
    """The sampled rows of dense outputs: ``logits`` (S, O) and ``deltas`` (S, 4), all images in turn."""
    logits, deltas = (torch.cat(part, dim=1) for part in (raw.logits, raw.deltas))
    return tuple(torch.cat([part[i, s.index] for i, s in enumerate(samples)]) for part in (logits, deltas))  # pyright: ignore


def _with_relus(convs: Sequence[nn.Conv2d]) -> list[nn.Module]:
    """``convs`` with a ReLU between two of them."""
    layers: list[nn.Module] = [convs[0]]
    for conv in convs[1:]:
        layers += [nn.ReLU(inplace=True), conv]
    return layers
