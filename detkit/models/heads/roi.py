"""The second stage of Faster R-CNN (Girshick ICCV 2015; on a pyramid, Lin et al. CVPR 2017, section 4.2).

It samples regions, scores and decodes them. How a region is read is its pool's (:mod:`detkit.models.heads.pools`), what
is made of that its network's (:mod:`detkit.models.heads.regions`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from detkit.config import ROI_HEADS, Share
from detkit.losses import BoxLoss, ClassificationLoss, ClassLayer
from detkit.matching import (
    Assigner,
    Assignment,
    Coder,
    Sampler,
    Selector,
    allowed_pairs,
    assign_allowed,
    found_in_range,
    in_own_range,
)
from detkit.models.heads.common import mean_count, regression_losses
from detkit.models.interfaces import RawRegions, RegionHead, RegionNetwork, RegionPool
from detkit.structures import Detections, FeatureSpec, ImageMeta, Images, Losses, Ratio, Target, size_ranges
from detkit.utils.precision import full_precision
from detkit.utils.seed import generator


class Sampled(NamedTuple):
    """Regions (R, 4) of one image that enter the loss, their labels (R,) in [0, K], and the boxes of the positives."""

    regions: Tensor
    labels: Tensor
    boxes: Tensor


@ROI_HEADS
class RoIHead(RegionHead):
    """Samples regions in training; a pool and a network give each of them a class and a box.

    Args:
        pool, network, assigner, sampler, coder, cls_loss, box_loss, selector: its parts.
        add_ground_truth: let the objects themselves be regions in training, so that there are positives from the start.
        valid_ranges: SNIP: for each level that regions are pooled from [from, to], the sizes of its objects, px of the
            network input, null for no upper bound; see ``matching.ranges``. null lets every level answer for every one.
        class_share: for vocabularies of many thousands: the share of the classes that a training step compares, those
            of its regions and others by chance, drawn by the images' keys (PartialFC, An et al., ICCVW 2021). Each of
            the others counts for those left out too, so that background learns to be weighed against all classes. null
            for all of them. Losses of an evaluation always have all.
    """

    def __init__(
        self,
        *,
        in_spec: FeatureSpec,
        num_classes: int,
        pool: RegionPool,
        network: Callable[..., RegionNetwork],
        assigner: Assigner,
        sampler: Sampler,
        coder: Coder,
        cls_loss: ClassificationLoss,
        box_loss: BoxLoss,
        selector: Selector,
        add_ground_truth: bool = True,
        valid_ranges: tuple[tuple[float, float | None], ...] | None = None,
        class_share: Share | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.pool = pool
        spec = FeatureSpec(in_spec.channels[: pool.num_levels], in_spec.strides[: pool.num_levels])
        self.network = network(in_spec=spec, num_classes=num_classes, pool=pool, cls_loss=cls_loss)
        if cls_loss.needs_own_layer and not any(isinstance(part, ClassLayer) for part in self.network.modules()):
            raise ValueError(
                f"{type(cls_loss).__name__} needs the layer that it makes, and {type(self.network).__name__} has "
                "another: take RegionMLP, or a loss on plain logits such as CrossEntropy"
            )
        if class_share is not None and not self.network.takes_classes:
            raise ValueError(
                f"class_share needs a network that takes classes, and {type(self.network).__name__} does not"
            )
        self.class_share = class_share
        self.assigner, self.sampler, self.coder = assigner, sampler, coder
        self.cls_loss, self.box_loss, self.selector = cls_loss, box_loss, selector
        self.add_ground_truth = add_ground_truth
        self.valid_ranges = size_ranges(valid_ranges, pool.num_levels, "levels that regions are pooled from")

    def forward(self, features: Sequence[Tensor], regions: Sequence[Tensor], images: Images) -> RawRegions:
        """The raw outputs for ``regions``, boxes (R_i, 4) px of each image, all images after one another."""
        return self._answer(self._maps(features), regions, images)

    def _maps(self, features: Sequence[Tensor]) -> Sequence[Tensor]:
        return self.network.maps(features[: self.pool.num_levels])

    def _answer(
        self, maps: Sequence[Tensor], regions: Sequence[Tensor], images: Images, classes: Tensor | None = None
    ) -> RawRegions:
        """As :meth:`forward`, of the network's maps; ``classes`` (K',): those whose logits are wanted, None for all."""
        pooled = self.pool(maps, regions, images)
        return self.network(pooled) if classes is None else self.network(pooled, classes)

    def loss(
        self, features: Sequence[Tensor], proposals: Sequence[Tensor], images: Images, targets: Sequence[Target]
    ) -> Losses:
        maps = self._maps(features)  # once, whatever is asked of them
        sampled = self.sample(maps, proposals, images, targets)
        classes = None
        if self.class_share is not None and torch.is_grad_enabled():
            of_regions = torch.cat([s.labels for s in sampled])
            classes = sample_classes(of_regions, self.num_classes, self.class_share, [m.key for m in images.meta])
        raw = self._answer(maps, [s.regions for s in sampled], images, classes)
        return self._loss_from_raw(raw, sampled, classes)

    def predict(self, features: Sequence[Tensor], proposals: Sequence[Tensor], images: Images) -> list[Detections]:
        return self._decode(self(features, proposals, images), proposals, images)

    @torch.no_grad()
    def assign(self, proposals: Tensor, target: Target, meta: ImageMeta) -> tuple[Tensor, Assignment]:
        """The candidate regions of one image (its objects added where asked) and which object each answers for.

        What is out of range is no region, no object, and no background either.
        """
        ranges = (meta.valid_range, self.valid_ranges)
        if self.add_ground_truth:
            proposals = torch.cat([proposals, target.wanted.boxes])
        levels = self.pool.levels(proposals)
        assignment = assign_allowed(self.assigner, proposals, target, allowed_pairs(target.boxes, *ranges, levels))
        learnt = in_own_range(proposals, *ranges, levels)
        return proposals, assignment if learnt is None else assignment.without(~learnt)

    @torch.no_grad()
    def sample(
        self, maps: Sequence[Tensor], proposals: Sequence[Tensor], images: Images, targets: Sequence[Target]
    ) -> list[Sampled]:
        """The regions of each image that enter the loss, positives first; ``maps`` are the network's."""
        assigned = [self.assign(*of_image) for of_image in zip(proposals, targets, images.meta, strict=True)]
        losses = None
        if self.sampler.needs_losses:
            raw = self._answer(maps, [regions for regions, _ in assigned], images)
            losses = self._losses_of_all(raw, assigned, targets)
        draws = [generator(meta.key, "roi") for meta in images.meta]
        drawn = self.sampler.of_batch([assignment for _, assignment in assigned], draws, losses)
        return [
            self._sampled(*of_image, target, *chosen)
            for of_image, target, chosen in zip(assigned, targets, drawn, strict=True)
        ]

    def _sampled(
        self, regions: Tensor, assignment: Assignment, target: Target, positive: Tensor, negative: Tensor
    ) -> Sampled:
        index = torch.cat([positive, negative])
        labels = assignment.labels(target, self.num_classes)[index]
        return Sampled(regions[index], labels, target.boxes[assignment.matched[positive]])

    @full_precision
    def _losses_of_all(
        self, raw: RawRegions, assigned: Sequence[tuple[Tensor, Assignment]], targets: Sequence[Target]
    ) -> list[Tensor]:
        """(R_i,) for each image: what each region would add to the loss, those ignored as if they were background."""
        labels = torch.cat([a.labels(t, self.num_classes) for (_, a), t in zip(assigned, targets, strict=True)])
        matched = torch.cat([a.boxes(t) for (_, a), t in zip(assigned, targets, strict=True)])
        positive = (labels < self.num_classes).nonzero().squeeze(1)
        regions = torch.cat([r for r, _ in assigned])
        losses = self.cls_loss(raw.logits, labels)
        losses = losses.index_add(0, positive, self._box_losses(raw, regions, labels, positive, matched[positive]))
        return list(losses.split([len(r) for r, _ in assigned]))

    def _box_losses(self, raw: RawRegions, regions: Tensor, labels: Tensor, positive: Tensor, boxes: Tensor) -> Tensor:
        """(P,): the box loss of each of the ``positive`` (P,) among R regions, against ``boxes`` (P, 4) px."""
        box_index = labels[positive] if raw.deltas.shape[1] > 1 else 0
        return regression_losses(self.box_loss, self.coder, raw.deltas[positive, box_index], regions[positive], boxes)

    @full_precision
    def _loss_from_raw(self, raw: RawRegions, sampled: Sequence[Sampled], classes: Tensor | None = None) -> Losses:
        labels = torch.cat([s.labels for s in sampled])
        regions, boxes = torch.cat([s.regions for s in sampled]), torch.cat([s.boxes for s in sampled])
        positive = torch.nonzero_static(labels < self.num_classes, size=len(boxes)).squeeze(1)
        norm = mean_count(len(labels), raw.logits)  # all regions, so that a positive weighs the same in every image
        cls_norm = mean_count(len(positive), raw.logits) if self.cls_loss.normalizer == "positives" else norm
        loss, among = (self.cls_loss, labels) if classes is None else self.among(labels, classes)
        cls_loss = loss(raw.logits, among).sum() / cls_norm
        box_loss = self._box_losses(raw, regions, labels, positive, boxes).sum()
        with torch.no_grad():
            found = (loss.scores(raw.logits[positive]).argmax(1) == among[positive]).sum()
        stats = {
            "roi_num_pos": raw.logits.new_full((), len(positive) / len(sampled)),
            "roi_accuracy": Ratio(found, raw.logits.new_full((), len(positive))),
        }
        return Losses({"roi_cls": cls_loss, "roi_box": box_loss / norm}, stats)

    def among(self, labels: Tensor, classes: Tensor) -> tuple[ClassificationLoss, Tensor]:
        """The loss of ``classes`` (K',) alone, and ``labels`` (R,) as their numbers among these, K' for background."""
        number = torch.full((self.num_classes + 1,), len(classes), device=labels.device)
        number[classes] = torch.arange(len(classes), device=labels.device)
        among = number[labels]
        return self.cls_loss.of_classes(classes, standing_for(among, len(classes), self.num_classes)), among

    @torch.no_grad()
    @full_precision
    def _decode(self, raw: RawRegions, proposals: Sequence[Tensor], images: Images) -> list[Detections]:
        counts = [len(p) for p in proposals]
        scores, deltas = self.cls_loss.scores(raw.logits).split(counts), raw.deltas.split(counts)
        found = []
        for score, delta, regions, meta in zip(scores, deltas, proposals, images.meta, strict=True):
            boxes = self.coder.decode(delta, regions)
            valid = found_in_range(boxes.flatten(0, 1), meta.size, meta.valid_range)
            valid = None if valid is None else valid.view(boxes.shape[:2])
            found.append(self.selector.of_each_class(boxes, score, meta.size, valid))
        return found


def sample_classes(labels: Tensor, num_classes: int, share: float, keys: Sequence[int]) -> Tensor:
    """(K',) ascending: the classes that occur in ``labels`` (R,), filled up by others to ``share`` of all.

    Which others depends on the images' ``keys`` alone, not on their order.
    """
    present = labels.unique()
    chosen = torch.zeros(num_classes, dtype=torch.bool, device=labels.device)
    chosen[present[present < num_classes]] = True
    draw = torch.rand(num_classes, generator=generator(sum(keys), "classes")).to(labels.device)
    order = torch.where(chosen, -1.0, draw).argsort(stable=True)
    return order[: max(int(chosen.sum()), round(share * num_classes), 1)].sort().values


def standing_for(labels: Tensor, num_drawn: int, num_classes: int) -> Tensor:
    """(K',): for how many of K classes each of K' stands that :func:`sample_classes` has drawn.

    Those that occur are always drawn and stand for themselves; the others, for all that do not occur, in equal parts.

    Args:
        labels: (R,) in [0, K'], numbered as they are drawn; K' for background.
    """
    present = torch.zeros(num_drawn + 1, dtype=torch.bool, device=labels.device)
    present[labels] = True
    present = present[:-1]
    num_present = present.sum()
    return torch.where(present, 1.0, (num_classes - num_present) / (num_drawn - num_present).clamp(min=1))
