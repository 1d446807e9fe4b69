"""SNIP on an image pyramid (Singh and Davis, CVPR 2018, section 5): each scale is an image with objects of its sizes.

At a scale objects, anchors and regions of other sizes count for nothing (:mod:`detkit.matching.ranges` has the rule),
in all stages of the head, and what is found of other sizes goes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from detkit.config import HEADS
from detkit.matching import Anchors, Assignment, Merge, Selector, merge_views
from detkit.matching.trace import brought_back
from detkit.models.heads.common import assigning, select_of_views
from detkit.models.interfaces import AssigningHead, Head
from detkit.ops.geometry import UNROUNDED
from detkit.structures import Affine, Detections, FeatureSpec, Images, Losses, Ratio, SizeRange, Target, size_ranges
from detkit.structures.boxes import clip
from detkit.utils.seed import derive_key


@HEADS
class ScaleHead(Head, AssigningHead):
    """Any head, shared by the levels of an image pyramid, each of which it takes for an image of its own.

    The finest level is in px of the network input; a level of twice its stride is an image of half the size, in whose
    px the inner head has its anchors, pooling and boxes: all scales look alike to it. Losses are the mean over scales.

    Args:
        inner: the head that all scales share. It is given one map.
        selector: NMS over the detections of all scales.
        valid_ranges: for each scale, the largest image first, [from, to], the sizes of its objects, sqrt(w h) in px of
            the network input, null for no upper bound. null lets each scale learn and find all.
        merge: what becomes of the detections of all scales instead of the selector's NMS, such as SoftNMS in the paper.
    """

    def __init__(
        self,
        *,
        in_spec: FeatureSpec,
        inner: Head,
        selector: Selector,
        valid_ranges: tuple[tuple[float, float | None], ...] | None = None,
        merge: Merge | None = None,
    ) -> None:
        super().__init__()
        if len(set(in_spec.channels)) != 1:
            raise ValueError(
                f"scales share a head, and must have equal channels, not {list(in_spec.channels)}: choose "
                "model/neck=image_pyramid_16"
            )
        if merge is not None and merge.counts_views:
            raise ValueError(f"{type(merge).__name__} counts how many scales found a box, and each has its own sizes")
        if valid_ranges is not None and len(valid_ranges) != len(in_spec.strides):
            raise ValueError(
                f"there are valid_ranges for {len(valid_ranges)} scales, and the neck has {len(in_spec.strides)} maps: "
                "choose model/neck=image_pyramid_16, which has three scales, or other ranges"
            )
        self.inner, self.selector, self.merge = inner, selector, merge
        self.scales = tuple(in_spec.strides[0] / stride for stride in in_spec.strides)
        self.levels = tuple(range(len(self.scales)))
        own = next((v for m in inner.modules() for v in vars(m).values() if isinstance(v, Anchors)), None)
        #: those of all scales, for the audit
        self.anchors = None if own is None else ScaledAnchors(own, self.scales)
        self.valid_ranges = size_ranges(valid_ranges, len(self.scales), "scales") or (None,) * len(self.scales)

    @staticmethod
    def part_specs(in_spec: FeatureSpec, options: Mapping[str, Any]) -> dict[str, FeatureSpec]:
        """One map of the finest stride."""
        return {"inner": in_spec.select([0])}

    def loss(self, features: Sequence[Tensor], images: Images, targets: Sequence[Target]) -> Losses:
        views = zip(features, self.scales, self.seen(images), strict=True)
        return _mean([self.inner.loss([f], seen, [_scaled(t, scale) for t in targets]) for f, scale, seen in views])

    def predict(self, features: Sequence[Tensor], images: Images) -> list[Detections]:
        views = []
        for level, scale, seen in zip(features, self.scales, self.seen(images), strict=True):
            with brought_back(Affine(scale_x=scale, scale_y=scale), images.sizes[0]):  # a trace is of one image
                found = self.inner.predict([level], seen)
            views.append([Detections(f.boxes / scale, f.scores, f.labels) for f in found])
        return [self._merged([v[i] for v in views], size) for i, size in enumerate(images.sizes)]

    def seen(self, images: Images) -> list[Images]:
        """``images`` at each scale. Their pixels are blank: no head looks at them."""
        return [_at_scale(images, i, *view) for i, view in enumerate(zip(self.scales, self.valid_ranges, strict=True))]

    def assign(self, shapes: Sequence[tuple[int, int]], images: Images, targets: Sequence[Target]) -> list[Assignment]:
        """The references of scale after scale."""
        head = assigning(self.inner)
        views = zip(shapes, self.scales, self.seen(images), strict=True)
        found = [head.assign([shape], seen, [_scaled(t, scale) for t in targets]) for shape, scale, seen in views]
        return [Assignment(torch.cat([f[i].matched for f in found])) for i in range(len(images))]

    def _merged(self, views: Sequence[Detections], size: tuple[int, int]) -> Detections:
        if self.merge is None:
            return select_of_views(self.selector, views, size)
        inside = [Detections(clip(v.boxes, size), v.scores, v.labels) for v in views]
        threshold, limit = self.selector.score_threshold, self.selector.max_detections
        return merge_views(self.merge, inside, score_threshold=threshold, limit=limit)


class ScaledAnchors(Anchors):
    """The anchors that a head has in the px of each of several scales, in px of the network input."""

    def __init__(self, own: Anchors, scales: Sequence[float]) -> None:
        self.own, self.scales = own, tuple(scales)
        self.strides, self.num_per_cell = tuple(own.strides[0] / s for s in scales), own.num_per_cell

    def __call__(self, shapes: Sequence[tuple[int, int]], device: torch.device) -> list[Tensor]:
        return [self.own([shape], device)[0] / scale for shape, scale in zip(shapes, self.scales, strict=True)]

    def inside(self, shapes: Sequence[tuple[int, int]], size: tuple[int, int], device: torch.device) -> list[Tensor]:
        sizes = [_size_at(size, scale) for scale in self.scales]
        return [self.own.inside([shape], there, device)[0] for shape, there in zip(shapes, sizes, strict=True)]


def side_at(side: int, scale: float) -> int:
    """``side`` px at ``scale``, rounded up; what the rounding of ``scale`` adds is no px: 9 px at 0.8 / 1.2 are 6."""
    return math.ceil(side * scale * UNROUNDED)


def _size_at(size: tuple[int, int], scale: float) -> tuple[int, int]:
    return side_at(size[0], scale), side_at(size[1], scale)


def _at_scale(images: Images, number: int, scale: float, sizes: SizeRange | None) -> Images:
    h, w = _size_at(images.padded_size, scale)
    there = None if sizes is None else sizes.scaled(scale)
    metas = tuple(
        replace(
            meta,
            size=_size_at(meta.size, scale),
            key=derive_key(meta.key, 0, number),
            valid_range=there,
        )
        for meta in images.meta
    )
    return Images(images.pixels.new_zeros(1, 1, 1, 1).expand(len(images), 3, h, w), metas)


def _scaled(target: Target, scale: float) -> Target:
    return target.with_boxes(target.boxes * scale)


def _mean(parts: Sequence[Losses]) -> Losses:
    terms = {name: torch.stack([p.terms[name] for p in parts]).mean(dim=0) for name in parts[0].terms}
    return Losses(terms, {name: _mean_stat([p.stats[name] for p in parts]) for name in parts[0].stats})


def _mean_stat(values: Sequence[Tensor | Ratio]) -> Tensor | Ratio:
    scalars = [value for value in values if isinstance(value, Tensor)]
    if scalars:
        return torch.stack(scalars).mean(dim=0)
    return Ratio(*(torch.stack(numbers).sum(dim=0) for numbers in zip(*values, strict=True)))
