"""Non-maximum suppression within groups (classes, levels of a pyramid), exact for any number of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import nms

from detkit.matching.overlaps import Sweep, survivors

#: Boxes that are compared with each other in one go. NMS costs the square of their number: groups go in parcels of
#: about so many (measured on one core: 11,283 boxes of 80 classes in 11 ms, of 5,000 in 8; one by one in 14 and 285). A
#: GPU compares far more at once, in n^2 / 8 bytes (310 MB here), and waits for the host at every parcel: the proposals
#: of eight large images are one.
_PARCEL = {"cpu": 400}
_PARCEL_ELSEWHERE = 50_000
#: On a CPU, boxes of a group from which on a sweep is tried, and by how much it has to spare pairs: one of its
#: comparisons takes twice the time (measured on one core: 24,220 proposals of four images in 25 ms for 115)
_SWEEP_FROM = 500
_SWEEP_SPARES = 4


def nms_by_group(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """NMS among the boxes of each group; the indices (R,) of those that stay, best first, ties in their order.

    Groups are moved apart and then compared together. In float32, as torchvision's ``batched_nms`` does it, that rounds
    coordinates away (208 of 11,283 detections of 5,000 classes come out wrong); float64 keeps them.

    Args:
        boxes: (N, 4) px.
        scores: (N,).
        groups: (N,) int64, not negative.
        iou_threshold: of two boxes that overlap more, the better one stays.
    """
    if len(boxes) == 0:
        return groups.new_zeros(0)
    corners = boxes.double()
    side = corners.max() - corners.min() + 1
    swept = _swept(corners, scores, groups, side, iou_threshold) if boxes.device.type in _PARCEL else None
    if swept is not None:
        return swept
    corners, ranks = corners + (groups * side)[:, None], scores.double()
    parcel = _PARCEL.get(boxes.device.type, _PARCEL_ELSEWHERE)
    if len(boxes) <= parcel:
        return nms(corners, ranks, iou_threshold)
    order = groups.argsort(stable=True)
    parts = [order[part] for part in _parcels(groups[order], parcel)]
    kept = torch.cat([part[nms(corners[part], ranks[part], iou_threshold)] for part in parts]).sort().values
    return kept[scores[kept].argsort(descending=True, stable=True)]


def _swept(corners: Tensor, scores: Tensor, groups: Tensor, side: Tensor, iou_threshold: float) -> Tensor | None:
    """The same, to the last index, by the few pairs that can overlap so much; None where that spares too little.

    Args:
        corners: (N, 4) float64 px.
        side: () px by which groups are moved apart.
    """
    counts = groups.bincount() if len(groups) > _SWEEP_FROM else groups[:0]
    if not (len(counts) and int(counts.max()) > _SWEEP_FROM and 0 <= iou_threshold < 1 and float(side) < 1e15):
        return None
    sweep = Sweep(corners.detach().numpy(), (groups * side).detach().numpy(), iou_threshold)
    if sweep.num_compared * _SWEEP_SPARES > float((counts.double() ** 2).sum()) / 2:
        return None
    order = scores.detach().argsort(descending=True, stable=True)
    ranks = np.empty(len(order), dtype=np.int64)
    ranks[order.numpy()] = np.arange(len(order))
    one, other = (ranks[index] for index in sweep.pairs())
    stays = survivors(np.minimum(one, other), np.maximum(one, other), len(order))
    return order[torch.from_numpy(stays)]


def nms_over_smaller(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float, extra: float = 0.0) -> Tensor:
    """Greedy suppression by the intersection over the smaller area, which also removes a box inside another.

    Args:
        boxes: (N, 4) px.
        scores: (N,).
        groups: (N,) int64; only boxes of one group suppress each other.
        threshold: of two boxes of which the intersection is a greater share of the smaller, the better one stays.
        extra: px by which sides count as longer; 1 where boxes include their last pixel.

    Returns:
        the indices (R,) of those that stay, best first, ties in their order.
    """
    left = scores.argsort(descending=True, stable=True)
    boxes = boxes.double()
    areas = (boxes[:, 2:] - boxes[:, :2] + extra).prod(dim=1)
    kept = []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        corner = torch.maximum(boxes[best, :2], boxes[left, :2])
        sides = (torch.minimum(boxes[best, 2:], boxes[left, 2:]) - corner + extra).clamp(min=0)
        share = sides.prod(dim=1) / torch.minimum(areas[best], areas[left])
        left = left[~(share > threshold) | (groups[left] != groups[best])]
    return torch.stack(kept) if kept else left


def _parcels(groups: Tensor, size: int) -> Iterator[slice]:
    """Parts of sorted ``groups`` (N,) of at most ``size``, which only a group that is larger itself exceeds."""
    counts = torch.unique_consecutive(groups, return_counts=True)[1]
    start = end = 0
    for count in counts.tolist():
        if end > start and end + count - start > size:
            yield slice(start, end)
            start = end
        end += count
    yield slice(start, end)
