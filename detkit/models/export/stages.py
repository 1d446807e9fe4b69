"""Export forms of the heads in stages, and of those that hold another head: Faster R-CNN, R-FCN, TridentNet, SNIP."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detkit.matching.fixed import (
    ABSENT,
    Marked,
    best_rows,
    is_large,
    joined,
    only_of_size,
    select_marked,
    select_of_classes,
    top,
    unsuppressed,
)
from detkit.models.export.dense import decoded
from detkit.models.export.form import NoFormError, View, found_by, inside_marks, map_shape, scaled_up
from detkit.models.export.pools import grids_of
from detkit.models.heads.roi import RoIHead
from detkit.models.heads.rpn import RPN
from detkit.models.heads.scales import ScaleHead
from detkit.models.heads.trident import TridentHead
from detkit.models.heads.two_stage import TwoStageHead
from detkit.structures.boxes import clip


@found_by.register
def _(head: TwoStageHead, features: Sequence[Tensor], view: View) -> Marked:
    rpn, roi = head.rpn, head.roi
    if not isinstance(rpn, RPN) or not isinstance(roi, RoIHead):
        raise NoFormError(f"model.head: there is no export form of a {type(rpn).__name__} with a {type(roi).__name__}")
    proposals = proposals_of(rpn, [features[i] for i in head.rpn_levels], view)
    return regions_of(roi, [features[i] for i in head.roi_levels], proposals, view)


def proposals_of(rpn: RPN, features: Sequence[Tensor], view: View) -> Marked:
    """:meth:`RPN.propose` as ``num_proposals`` rows, empty ones with the label -1."""
    marks = [inside_marks(map_shape(f), s, view.size, f.device) for f, s in zip(features, rpn.strides, strict=True)]
    raw = rpn(features, None if rpn.in_padding else [mark[None, None] for mark in marks])
    anchors = rpn.anchors(raw.shapes, features[0].device)
    inside = rpn.anchors.inside(raw.shapes, view.size, features[0].device)
    levels = []
    for i, (logits, deltas, boxes, mask) in enumerate(zip(raw.logits, raw.deltas, anchors, inside, strict=True)):
        scores = rpn.cls_loss.scores(logits.float()).flatten(1)
        best, index = top(scores.masked_fill(~mask, ABSENT), rpn.num_before_nms[1])
        own = None if rpn.valid_ranges is None else rpn.valid_ranges[i]
        found = Marked(decoded(rpn.coder, deltas.float(), boxes, index), best, torch.full_like(index, i))
        levels.append(only_of_size(found, view.size, own))
    found = joined(levels)
    boxes = clip(found.boxes, view.size)
    taken = is_large(boxes, rpn.min_size) & (found.scores >= rpn.min_score)
    scores = torch.where(taken, found.scores, ABSENT)
    scores = unsuppressed(boxes, scores, found.labels, len(levels), rpn.nms_iou)
    return best_rows(Marked(boxes, scores, found.labels), rpn.num_proposals[1])


def regions_of(roi: RoIHead, features: Sequence[Tensor], proposals: Marked, view: View) -> Marked:
    """:meth:`RoIHead.predict` for ``proposals`` of which empty rows count for nothing."""
    maps = roi.network.maps(features[: roi.pool.num_levels])
    regions = proposals.boxes.flatten(0, 1)
    raw = roi.network(grids_of(roi.pool, maps, proposals.boxes, view.size))
    batch, num = proposals.scores.shape
    scores = roi.cls_loss.scores(raw.logits.float()).view(batch, num, -1)
    scores = torch.where((proposals.labels >= 0)[:, :, None], scores, ABSENT)
    boxes = roi.coder.decode(raw.deltas.float(), regions).view(batch, num, -1, 4)
    return select_of_classes(boxes, scores, view.size, roi.selector, view.valid_range)


@found_by.register
def _(head: TridentHead, features: Sequence[Tensor], view: View) -> Marked:
    num = view.num_branches
    if num == 1:
        return found_by(head.inner, features, view)
    if head.of_original and head.valid_ranges is not None and view.scale is None:
        raise NoFormError(
            "model.head.of_original: a file does not know how large its images were before they were resized: export "
            "with resize=true size=[H,W], or with model.head.of_original=false"
        )
    branches = []
    for i in range(num):
        own = View(view.size, head.range_of(i, view.scale) or view.valid_range)
        branches.append(found_by(head.inner, [f.unflatten(0, (num, -1))[i] for f in features], own))
    return _select_of_views(head, branches, view)


@found_by.register
def _(head: ScaleHead, features: Sequence[Tensor], view: View) -> Marked:
    if head.merge is not None:
        raise NoFormError(
            f"model.head.merge: {type(head.merge).__name__} has no export form; model.head.merge=null takes NMS"
        )
    found = []
    for feature, scale, own in zip(features, head.scales, head.valid_ranges, strict=True):
        there = None if own is None else own.scaled(scale)
        h, w = (scaled_up(side, scale) for side in view.size)
        one = found_by(head.inner, [feature], View((h, w), there))
        found.append(one._replace(boxes=one.boxes / scale))
    return _select_of_views(head, found, view)


def _select_of_views(head: TridentHead | ScaleHead, views: list[Marked], view: View) -> Marked:
    """The selector over the detections of all views; a view's empty rows stay out of it."""
    found = joined(views)
    scores = torch.where(found.labels >= 0, found.scores, ABSENT)
    num_classes = next(int(vars(m)["num_classes"]) for m in head.inner.modules() if "num_classes" in vars(m))
    return select_marked(
        Marked(found.boxes, scores, found.labels.clamp(min=0)), view.size, head.selector, num_classes
    )  # fmt: skip
