"""Box arithmetic as pure functions.

Boxes are ``(N, 4)`` tensors x1 y1 x2 y2 in absolute pixels, half-open: width is ``x2 - x1``, with no "+1". All
arithmetic is in float32 at least, whatever type the boxes come in, and so are the results.
"""

from __future__ import annotations

import torch
from torch import Tensor

from detkit.utils.precision import widened


def area(boxes: Tensor) -> Tensor:
    """Areas (N,) in px^2 of ``boxes`` (N, 4)."""
    boxes = widened(boxes)
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """``boxes`` (..., 4) cut at the border of an image of ``size`` (h, w)."""
    h, w = size
    x1, y1, x2, y2 = widened(boxes).unbind(-1)
    return torch.stack([x1.clamp(0, w), y1.clamp(0, h), x2.clamp(0, w), y2.clamp(0, h)], dim=-1)


def clip_each(boxes: Tensor, sizes: Tensor) -> Tensor:
    """``boxes`` (B, N, 4) cut at the borders of B images of ``sizes`` (B, 2) h, w."""
    return torch.minimum(widened(boxes).clamp(min=0), sizes.flip(1).repeat(1, 2)[:, None])


def is_larger(boxes: Tensor, min_size: float) -> Tensor:
    """Mask (N,) of the boxes whose width and height are both at least ``min_size`` px."""
    boxes = widened(boxes)
    return (boxes[:, 2] - boxes[:, 0] >= min_size) & (boxes[:, 3] - boxes[:, 1] >= min_size)


def xywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Corner and size (..., 4) to two corners."""
    boxes = widened(boxes)
    return torch.cat([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], dim=-1)


def xyxy_to_xywh(boxes: Tensor) -> Tensor:
    """Two corners (..., 4) to corner and size."""
    boxes = widened(boxes)
    return torch.cat([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], dim=-1)


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Centre and size (..., 4) to two corners."""
    boxes = widened(boxes)
    half = boxes[..., 2:] / 2
    return torch.cat([boxes[..., :2] - half, boxes[..., :2] + half], dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Two corners (..., 4) to centre and size."""
    boxes = widened(boxes)
    return torch.cat([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], dim=-1)


def pairwise_intersection(a: Tensor, b: Tensor) -> Tensor:
    """Intersection areas (N, M) of ``a`` (N, 4) and ``b`` (M, 4), by two temporaries, not torchvision's six."""
    a, b = widened(a), widened(b)
    w = torch.minimum(a[:, None, 2], b[None, :, 2])
    w -= torch.maximum(a[:, None, 0], b[None, :, 0])
    h = torch.minimum(a[:, None, 3], b[None, :, 3])
    h -= torch.maximum(a[:, None, 1], b[None, :, 1])
    return w.clamp_(min=0).mul_(h.clamp_(min=0))


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union (N, M) of ``a`` (N, 4) and ``b`` (M, 4); 0 where both boxes are empty."""
    inter = pairwise_intersection(a, b)
    union = area(a)[:, None] + area(b)[None, :] - inter
    return inter.div_(union.clamp_(min=torch.finfo(union.dtype).tiny))


def paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union (...) of ``a`` (..., 4) and ``b`` (..., 4), box by box; 0 where both boxes are empty."""
    a, b = widened(a), widened(b)
    size = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    inter = size.prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - inter
    return inter / union.clamp(min=torch.finfo(union.dtype).tiny)


def pairwise_cover(a: Tensor, b: Tensor) -> Tensor:
    """Share (N, M) of each box of ``a`` (N, 4) that lies inside each box of ``b`` (M, 4): COCO's measure for crowds."""
    inter = pairwise_intersection(a, b)
    own = area(a)
    return inter.div_(own.clamp(min=torch.finfo(own.dtype).tiny)[:, None])
