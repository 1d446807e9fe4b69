"""The second stage of Faster R-CNN (Girshick ICCV 2015; on a pyramid, Lin et al. CVPR 2017, section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.config import ROI_HEADS, Count, Share
from detkit.losses import BoxLoss, ClassificationLoss
from detkit.matching import Assignment, BalancedSampler, DeltaCoder, MaxIoUAssigner, select_detections
from detkit.models.heads.common import mean_count, regression_loss
from detkit.models.interfaces import RegionHead
from detkit.models.layers import DeformRoIPool
from detkit.ops import multi_level_roi_align
from detkit.structures import Detections, FeatureSpec, Images, Losses, Target
from detkit.structures.boxes import area
from detkit.utils.precision import full_precision
from detkit.utils.seed import generator


class RawRegions(NamedTuple):
    """For R regions: ``logits`` (R, O) and ``deltas`` (R, K or 1, 4)."""

    logits: Tensor
    deltas: Tensor


class Sampled(NamedTuple):
    """Regions (R, 4) of one image that enter the loss, their labels (R,) in [0, K], and the boxes of the positives."""

    regions: Tensor
    labels: Tensor
    boxes: Tensor
    num_positive: int


@ROI_HEADS
class RoIHead(RegionHead):
    """RoIAlign, two fully connected layers, then a class and a box for each region.

    Args:
        assigner, sampler, coder, cls_loss, box_loss: its parts.
        resolution: side of the pooled grid.
        sampling_ratio: RoIAlign's samples per bin and axis; 0 for one per feature cell.
        aligned: RoIAlign's half-cell correction; false for torchvision's published weights.
        in_padding: read the maps as a whole, as torchvision does in padded batches; else a map ends where its image
            ends, and results for an image do not depend on the other images of its batch.
        pooling: RoIAlign, or deformable RoI pooling (Dai et al., ICCV 2017, section 2.2), which is aligned, or its
            modulated form (Zhu et al., CVPR 2019, section 3.2).
        hidden: widths of the fully connected layers.
        class_agnostic: one box per region rather than one per class.
        num_levels: the finest levels, from which regions are pooled (FPN leaves out P6); null for all.
        canonical_size: a region of this side (px) is pooled at ``canonical_stride`` (Lin et al., eq. 1: 224 at 16).
        canonical_stride: see there.
        add_ground_truth: let the objects themselves be regions in training, so that there are positives from the start.
        score_threshold, nms_iou, max_detections, min_size: which detections come out; ``min_size`` in px.
    """

    def __init__(
        self,
        *,
        in_spec: FeatureSpec,
        num_classes: int,
        assigner: MaxIoUAssigner,
        sampler: BalancedSampler,
        coder: DeltaCoder,
        cls_loss: ClassificationLoss,
        box_loss: BoxLoss,
        resolution: Count = 7,
        sampling_ratio: int = 2,
        aligned: bool = True,
        in_padding: bool = False,
        pooling: Literal["align", "deform", "modulated_deform"] = "align",
        hidden: tuple[int, ...] = (1024, 1024),
        class_agnostic: bool = False,
        num_levels: int | None = 4,
        canonical_size: float = 224.0,
        canonical_stride: float = 16.0,
        add_ground_truth: bool = True,
        score_threshold: Share = 0.05,
        nms_iou: Share = 0.5,
        max_detections: Count = 100,
        min_size: float = 1e-2,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.assigner, self.sampler, self.coder = assigner, sampler, coder
        self.cls_loss, self.box_loss = cls_loss, box_loss
        self.resolution, self.sampling_ratio, self.aligned = resolution, sampling_ratio, aligned
        self.in_padding = in_padding
        self.strides = in_spec.strides[:num_levels]
        if len(set(in_spec.channels[:num_levels])) != 1:
            raise ValueError(f"the RoI head pools from levels of equal channels, not {in_spec.channels[:num_levels]}")
        if pooling != "align" and not aligned:
            raise ValueError(f"pooling={pooling!r} is aligned: aligned must be true")
        self.deform = None
        if pooling != "align":
            self.deform = DeformRoIPool(
                channels=in_spec.channels[0], resolution=resolution, sampling_ratio=sampling_ratio,
                modulated=pooling == "modulated_deform",
            )  # fmt: skip
        self.canonical_size, self.canonical_stride = canonical_size, canonical_stride
        self.add_ground_truth = add_ground_truth
        self.score_threshold, self.nms_iou = score_threshold, nms_iou
        self.max_detections, self.min_size = max_detections, min_size
        widths = (in_spec.channels[0] * resolution**2, *hidden)
        self.fcs = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, hidden, strict=False))
        self.cls_score = nn.Linear(widths[-1], cls_loss.num_outputs(num_classes))
        self.bbox_pred = nn.Linear(widths[-1], 4 if class_agnostic else 4 * num_classes)
        self._initialize()

    def _initialize(self) -> None:
        for fc in self.fcs:
            assert isinstance(fc, nn.Linear)
            nn.init.kaiming_uniform_(fc.weight, a=1)
            nn.init.zeros_(fc.bias)
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        nn.init.zeros_(self.bbox_pred.bias)
        with torch.no_grad():
            self.cls_score.bias.copy_(self.cls_loss.initial_bias(self.num_classes))

    def forward(self, features: Sequence[Tensor], regions: Sequence[Tensor], images: Images) -> RawRegions:
        """The raw outputs for ``regions``, boxes (R_i, 4) px of each image, all images after one another."""
        boxes = torch.cat(list(regions))
        counts = torch.tensor([len(r) for r in regions], device=boxes.device)
        image_index = torch.arange(len(regions), device=boxes.device).repeat_interleave(counts)
        x = self._pool(features[: len(self.strides)], boxes, image_index, images).flatten(1)
        for fc in self.fcs:
            x = F.relu(fc(x))
        return RawRegions(self.cls_score(x), self.bbox_pred(x).unflatten(1, (-1, 4)))

    def _pool(self, features: Sequence[Tensor], boxes: Tensor, image_index: Tensor, images: Images) -> Tensor:
        levels, scales = self.levels(boxes), [1 / s for s in self.strides]
        sizes = None if self.in_padding else images.sizes
        if self.deform is not None:
            return self.deform(features, boxes, image_index, levels, scales=scales, image_sizes=sizes)
        return multi_level_roi_align(
            features, boxes, image_index, levels, output_size=(self.resolution, self.resolution), scales=scales,
            sampling_ratio=self.sampling_ratio, aligned=self.aligned, image_sizes=sizes,
        )  # fmt: skip

    def levels(self, boxes: Tensor) -> Tensor:
        """The level (R,) from which each box is pooled: k = floor(k0 + log2(sqrt(w h) / 224)) (Lin et al., eq. 1)."""
        size = area(boxes).clamp(min=0).sqrt()
        octave = torch.floor(torch.log2(size / self.canonical_size + 1e-8) + 1e-6)
        stride = self.canonical_stride * torch.exp2(octave.nan_to_num())
        index = torch.bucketize(stride, stride.new_tensor(self.strides))  # the first level at least that coarse
        return index.clamp(max=len(self.strides) - 1)

    def loss(
        self, features: Sequence[Tensor], proposals: Sequence[Tensor], images: Images, targets: Sequence[Target]
    ) -> Losses:
        sampled = [
            self.sample(p, target, meta.key) for p, target, meta in zip(proposals, targets, images.meta, strict=True)
        ]
        return self._loss_from_raw(self(features, [s.regions for s in sampled], images), sampled)

    def predict(self, features: Sequence[Tensor], proposals: Sequence[Tensor], images: Images) -> list[Detections]:
        return self._decode(self(features, proposals, images), proposals, images)

    @torch.no_grad()
    def assign(self, proposals: Tensor, target: Target) -> tuple[Tensor, Assignment]:
        """The candidate regions of one image (its objects added where asked) and which object each answers for."""
        if self.add_ground_truth:
            proposals = torch.cat([proposals, target.wanted.boxes])
        return proposals, self.assigner(proposals, target)

    @torch.no_grad()
    def sample(self, proposals: Tensor, target: Target, key: int) -> Sampled:
        """The regions of one image that enter the loss, positives first."""
        proposals, assignment = self.assign(proposals, target)
        positive, negative = self.sampler(assignment, generator(key, "roi"))
        index = torch.cat([positive, negative])
        labels = assignment.labels(target, self.num_classes)[index]
        return Sampled(proposals[index], labels, target.boxes[assignment.matched[positive]], len(positive))

    @full_precision
    def _loss_from_raw(self, raw: RawRegions, sampled: Sequence[Sampled]) -> Losses:
        labels = torch.cat([s.labels for s in sampled])
        regions, boxes = torch.cat([s.regions for s in sampled]), torch.cat([s.boxes for s in sampled])
        positive = (labels < self.num_classes).nonzero().squeeze(1)
        box_index = labels[positive] if raw.deltas.shape[1] > 1 else 0
        norm = mean_count(len(labels), raw.logits)  # all regions, so that a positive weighs the same in every image
        cls_norm = mean_count(len(positive), raw.logits) if self.cls_loss.normalizer == "positives" else norm
        cls_loss = self.cls_loss(raw.logits, labels).sum() / cls_norm
        deltas = raw.deltas[positive, box_index]
        box_loss = regression_loss(self.box_loss, self.coder, deltas, regions[positive], boxes)
        with torch.no_grad():
            found = self.cls_loss.scores(raw.logits[positive]).argmax(1) == labels[positive]
        stats = {
            "roi_num_pos": labels.new_tensor(len(positive) / len(sampled), dtype=torch.float32),
            "roi_accuracy": found.float().mean() if len(positive) else labels.new_zeros((), dtype=torch.float32),
        }
        return Losses({"roi_cls": cls_loss, "roi_box": box_loss / norm}, stats)

    @torch.no_grad()
    @full_precision
    def _decode(self, raw: RawRegions, proposals: Sequence[Tensor], images: Images) -> list[Detections]:
        counts = [len(p) for p in proposals]
        scores = self.cls_loss.scores(raw.logits).split(counts)
        return [
            select_detections(
                self.coder.decode(deltas, regions), score, size,
                score_threshold=self.score_threshold, iou_threshold=self.nms_iou,
                max_detections=self.max_detections, min_size=self.min_size,
            )
            for deltas, regions, score, size in zip(
                raw.deltas.split(counts), proposals, scores, images.sizes, strict=True
            )
        ]  # fmt: skip
