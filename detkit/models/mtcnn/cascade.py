"""The three stages of MTCNN at test time, one image at a time, each step as in the published implementation.

That is the authors' Matlab code as others ported it and published weights for; what the paper leaves open is taken from
there: whole-px windows, corners that count from 1, sides longer by 1 px in the later stages. Two departures: a crop
without a pixel, of a box beside the image, is left out with its box, and so is a detection beside the image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from detkit.matching.cascade import last_candidates, last_detections, let_through, unsuppressed
from detkit.models.mtcnn.crops import area_crops, integral_image, moved, pixel_ranges, placed, squared
from detkit.models.mtcnn.nets import Answers, ONet, PNet, RNet
from detkit.models.mtcnn.pyramid import normalized, pyramid_scales, scaled_image, windows
from detkit.structures import Detections

#: Crops that a network sees in one go: what bounds the memory of an image full of candidates.
_PARCEL = 512


@dataclass(frozen=True, slots=True)
class CascadeSettings:
    """How the stages hand on: see :class:`detkit.models.mtcnn.MTCNN`, whose arguments these are."""

    min_size: float = 20.0
    factor: float = 0.709
    thresholds: tuple[float, float, float] = (0.6, 0.7, 0.7)
    scale_nms_iou: float = 0.5
    nms_iou: float = 0.7
    last_nms_share: float = 0.7
    max_candidates: int | None = None
    max_detections: int = 100


def first_stage(net: PNet, sums: Tensor, how: CascadeSettings) -> Tensor:
    """Square boxes (P, 4) px, best first: what P-Net finds in each image of the pyramid.

    Args:
        sums: the image's :func:`~detkit.models.mtcnn.crops.integral_image`.
    """
    size = (sums.shape[0] - 1, sums.shape[1] - 1)
    found = [_at_scale(net, sums, s, how) for s in pyramid_scales(size, how.min_size, how.factor)]
    if not found:
        return sums.new_zeros((0, 4), dtype=torch.float32)
    boxes, scores, deltas = (torch.cat(parts) for parts in zip(*found, strict=True))
    kept = unsuppressed(boxes, scores, size, how.nms_iou, how.max_candidates, "P-Net")
    return squared(moved(boxes[kept], deltas[kept], net.extra))


def _at_scale(net: PNet, sums: Tensor, scale: float, how: CascadeSettings) -> tuple[Tensor, Tensor, Tensor]:
    """The windows (N, 4) px, scores (N,) and deltas (N, 4) that stay at one scale: enough, and NMS."""
    size = (sums.shape[0] - 1, sums.shape[1] - 1)
    boxes_of, scores, deltas = cells_at(net, sums, scale)
    index = let_through(boxes_of, scores, scores >= how.thresholds[0], size, "P-Net")
    boxes, scores = boxes_of(index), scores[index]
    kept = unsuppressed(boxes, scores, size, how.scale_nms_iou, None, "P-Net")
    return boxes[kept], scores[kept], deltas[index[kept]]


def cells_at(net: PNet, sums: Tensor, scale: float) -> tuple[Callable[[Tensor], Tensor], Tensor, Tensor]:
    """What P-Net says at one scale: the windows (M, 4) px of cells (M,), and scores (N,) and deltas (N, 4) of all."""
    answers = net(normalized(scaled_image(sums, scale)))
    score = answers.logits.float().softmax(1)[0, 1]
    columns = score.shape[1]

    def boxes_of(cells: Tensor) -> Tensor:
        return windows(torch.stack([cells // columns, cells % columns], dim=1), scale)

    return boxes_of, score.flatten(), answers.deltas[0].float().flatten(1).T


def second_stage(net: RNet, sums: Tensor, boxes: Tensor, how: CascadeSettings) -> Tensor:
    """Of ``boxes`` (P, 4) px those (Q, 4) that R-Net takes for objects, moved and square again, best first."""
    size = (sums.shape[0] - 1, sums.shape[1] - 1)
    boxes, answers = look(net, sums, boxes)
    scores = answers.logits.softmax(1)[:, 1]
    index = let_through(boxes.__getitem__, scores, scores > how.thresholds[1], size, "R-Net")
    kept = index[unsuppressed(boxes[index], scores[index], size, how.nms_iou, how.max_candidates, "R-Net")]
    return squared(moved(boxes[kept], answers.deltas[kept], net.extra))


def third_stage(net: ONet, sums: Tensor, boxes: Tensor, how: CascadeSettings) -> Detections:
    """The detections of ``boxes`` (Q, 4) px, best first and not clipped, with landmarks where ``net`` gives any."""
    size = (sums.shape[0] - 1, sums.shape[1] - 1)
    boxes, answers = look(net, sums, boxes)
    scores = answers.logits.softmax(1)[:, 1:]
    candidate, label = last_candidates(boxes, scores, how.thresholds[2], size, "O-Net").unbind(1)
    boxes, deltas, scores = boxes[candidate], answers.deltas[candidate], scores[candidate, label]
    landmarks = None if answers.landmarks is None else placed(answers.landmarks[candidate], boxes)
    found = Detections(moved(boxes, deltas, net.extra), scores, label, landmarks)
    return found.select(last_detections(found, size, how.last_nms_share, how.max_detections, "O-Net"))


def look(net: RNet | ONet, sums: Tensor, boxes: Tensor) -> tuple[Tensor, Answers]:
    """What ``net`` says of crops of ``boxes`` (N, 4) px, in float32, and those of the boxes (M, 4) that it saw."""
    ranges = pixel_ranges(boxes, (sums.shape[0] - 1, sums.shape[1] - 1))
    there = (ranges[:, 2:] > ranges[:, :2]).all(dim=1)
    boxes, ranges = boxes[there], ranges[there]
    parts = [net(normalized(area_crops(sums, some, net.window))) for some in ranges.split(_PARCEL)]
    logits, deltas = torch.cat([p.logits for p in parts]).float(), torch.cat([p.deltas for p in parts]).float()
    points = [p.landmarks for p in parts if p.landmarks is not None]
    return boxes, Answers(logits, deltas, torch.cat(points).float() if points else None)


def run_cascade(nets: tuple[PNet, RNet, ONet], pixels: Tensor, how: CascadeSettings) -> Detections:
    """All three stages on ``pixels`` (3, h, w) float, 0 to 255: see :func:`third_stage`."""
    sums = integral_image(pixels)
    boxes = first_stage(nets[0], sums, how)
    boxes = second_stage(nets[1], sums, boxes, how)
    return third_stage(nets[2], sums, boxes, how)
