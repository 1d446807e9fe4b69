"""Export forms of the heads that speak at every cell: RetinaNet, CenterNet, YOLOv1."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from detkit.matching import Coder
from detkit.matching.fixed import Marked, joined, only_of_size, peaks, rows, select_marked, top_pairs
from detkit.models.export.form import View, found_by, inside_marks, map_shape
from detkit.models.heads.centernet import CenterNetHead, RawCentres
from detkit.models.heads.dense import DenseHead
from detkit.models.heads.retinanet import RetinaHead
from detkit.models.heads.yolov1 import YOLOv1Head
from detkit.structures.boxes import cxcywh_to_xyxy


def _inside(head: DenseHead, features: Sequence[Tensor], view: View) -> tuple[list[Tensor], list[Tensor]]:
    """The maps that ``head`` reads, 0 in the padding, and where that is: (1, 1, H_l, W_l) each."""
    own = [features[level] for level in head.levels]
    if head.in_padding:
        return own, [torch.ones_like(f[:1, :1], dtype=torch.bool) for f in own]
    masks = [
        inside_marks(map_shape(f), stride, view.size, f.device)[None, None]
        for f, stride in zip(own, head.strides, strict=True)
    ]
    return [f.masked_fill(~mask, 0) for f, mask in zip(own, masks, strict=True)], masks


@found_by.register
def _(head: RetinaHead, features: Sequence[Tensor], view: View) -> Marked:
    maps, masks = _inside(head, features, view)
    raw = head(maps, masks)
    shapes = [map_shape(f) for f in maps]
    anchors = head.anchors(shapes, maps[0].device)
    inside = head.anchors.inside(shapes, view.size, maps[0].device)
    levels = []
    for i, (logits, deltas, boxes, mask) in enumerate(zip(raw.logits, raw.deltas, anchors, inside, strict=True)):
        scores = head.cls_loss.scores(logits.float()).masked_fill(~mask[:, None], 0.0)
        found = top_pairs(
            scores, functools.partial(decoded, head.coder, deltas.float(), boxes),
            score_threshold=head.selector.score_threshold, num=head.num_before_nms,
        )  # fmt: skip
        own = None if head.valid_ranges is None else head.valid_ranges[i]
        levels.append(only_of_size(found, view.size, own, view.valid_range))
    return select_marked(joined(levels), view.size, head.selector, head.num_classes)


def decoded(coder: Coder, deltas: Tensor, anchors: Tensor, index: Tensor) -> Tensor:
    """Boxes (B, Q, 4) px by the ``deltas`` (B, N, 4) of those of ``anchors`` (N, 4) that ``index`` (B, Q) names."""
    chosen = coder.decode(rows(deltas, index).flatten(0, 1), anchors[index.flatten()])
    return chosen.view(index.shape[0], index.shape[1], 4)


@found_by.register
def _(head: CenterNetHead, features: Sequence[Tensor], view: View) -> Marked:
    maps, masks = _inside(head, features, view)
    raw: RawCentres = head(maps, masks)
    width, stride = raw.heat.shape[3], head.strides[0]
    high = peaks(raw.heat.float().sigmoid() * masks[0])
    offsets, sizes = (part.float().flatten(2).transpose(1, 2) for part in (raw.offsets, raw.sizes))

    def boxes_of(cell: Tensor) -> Tensor:
        corner = _corners(cell, width)
        centre, half = corner + rows(offsets, cell), rows(sizes, cell) / 2
        return torch.cat([centre - half, centre + half], dim=2) * stride

    found = top_pairs(
        high.flatten(2).transpose(1, 2), boxes_of,
        score_threshold=head.selector.score_threshold, num=head.selector.max_detections,
    )  # fmt: skip
    found = only_of_size(found, view.size, view.valid_range)
    return select_marked(found, view.size, head.selector, head.num_classes)


@found_by.register
def _(head: YOLOv1Head, features: Sequence[Tensor], view: View) -> Marked:
    maps, masks = _inside(head, features, view)
    raw = head(maps, masks)
    shape, num_boxes = map_shape(maps[0]), head.num_boxes
    predictors = raw.boxes.float().flatten(1, 2)  # (N, S_h * S_w, B, 5)
    shares = predictors[..., 4:].clamp(0, 1) * raw.classes.float().flatten(1, 2).clamp(0, 1)[:, :, None]
    scores = (shares * masks[0].flatten()[None, :, None, None]).flatten(1, 2)
    one = maps[0].new_ones(())
    sides = torch.stack([one * view.size[1], one * view.size[0]])

    def boxes_of(index: Tensor) -> Tensor:
        cell = index // num_boxes
        chosen = rows(predictors.flatten(1, 2), index)
        xy = (chosen[..., :2] + _corners(cell, shape[1])) * head.strides[0]
        return cxcywh_to_xyxy(torch.cat([xy, chosen[..., 2:4].square() * sides], dim=2))

    found = top_pairs(
        scores, boxes_of, score_threshold=head.selector.score_threshold, num=head.num_before_nms
    )  # fmt: skip
    found = only_of_size(found, view.size, view.valid_range)
    return select_marked(found, view.size, head.selector, head.num_classes)


def _corners(cell: Tensor, width: int) -> Tensor:
    """(B, Q, 2) x, y of cells (B, Q) of a map; without a remainder, which ONNX's exporter wants of plain numbers."""
    row = cell // width
    return torch.stack([cell - row * width, row], dim=2)
