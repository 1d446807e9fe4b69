"""Export form of MTCNN: its pyramid has a fixed number of steps for one size of images, its stages one of boxes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detkit.matching.cascade import LEAST_SIDE
from detkit.matching.fixed import ABSENT, LEAST, Marked, best_rows, is_large, over_smaller_marks, top, unsuppressed
from detkit.models.export.form import NoFormError, View, found_by
from detkit.models.mtcnn.cascade import CascadeSettings, cells_at
from detkit.models.mtcnn.crops import area_crops, integral_image, moved, pixel_ranges, placed, squared
from detkit.models.mtcnn.detector import MTCNN
from detkit.models.mtcnn.nets import Answers, ONet, PNet, RNet
from detkit.models.mtcnn.pyramid import normalized, pyramid_scales
from detkit.structures.boxes import clip

#: The pixels of a crop that is not looked at.
_ANYWHERE = (0, 0, 1, 1)


@found_by.register
def _(net: MTCNN, features: Sequence[Tensor], view: View) -> Marked:
    """The map is the image itself, 0 to 255."""
    if not all(isinstance(side, int) for side in view.size):
        raise NoFormError("model: MTCNN's image pyramid has as many steps as images are large: give size=[H,W]")
    if net.cascade.max_candidates is None:
        raise NoFormError(
            "model.max_candidates: null lets any number of boxes go on, an exported file a fixed one: give "
            "model.max_candidates=N, such as 200; R-Net and O-Net look at so many, whatever the image"
        )
    found = [_of_image(net, pixels, view.size) for pixels in features[0]]
    boxes, scores, labels = zip(*(one[:3] for one in found), strict=True)
    points = [one.landmarks for one in found if one.landmarks is not None]
    return Marked(torch.cat(boxes), torch.cat(scores), torch.cat(labels), torch.cat(points) if points else None)


def _of_image(net: MTCNN, pixels: Tensor, size: tuple[int, int]) -> Marked:
    """:func:`~detkit.models.mtcnn.cascade.run_cascade` of ``pixels`` (3, h, w), as a batch of one."""
    sums = integral_image(pixels)
    boxes, there = _first_stage(net.pnet, sums, net.cascade)
    boxes, there = _second_stage(net.rnet, sums, boxes, there, net.cascade)
    return _third_stage(net.onet, sums, boxes, there, size, net.cascade)


def _first_stage(net: PNet, sums: Tensor, how: CascadeSettings) -> tuple[Tensor, Tensor]:
    """Square boxes (N, 4) px, and which of these ``max_candidates`` there are (N,)."""
    size = (sums.shape[0] - 1, sums.shape[1] - 1)
    found = [_at_scale(net, sums, s, how) for s in pyramid_scales(size, how.min_size, how.factor)]
    if not found:  # a smaller image than any object
        nothing = sums.new_zeros((1, 4), dtype=torch.float32)
        found = [(nothing, sums.new_full((1,), ABSENT, dtype=torch.float32), nothing)]
    boxes, scores, deltas = (torch.cat(parts) for parts in zip(*found, strict=True))
    scores, index = _best(_unsuppressed(boxes, scores, how.nms_iou), how)
    return squared(moved(boxes[index], deltas[index], net.extra)), scores > LEAST


def _at_scale(net: PNet, sums: Tensor, scale: float, how: CascadeSettings) -> tuple[Tensor, Tensor, Tensor]:
    """The windows (N, 4) px of all cells, their scores (N,), ABSENT where another is better, and deltas (N, 4)."""
    boxes_of, scores, deltas = cells_at(net, sums, scale)
    boxes = boxes_of(torch.arange(scores.shape[0], device=scores.device))
    scores = torch.where(scores >= how.thresholds[0], scores, ABSENT)
    return boxes, _unsuppressed(boxes, scores, how.scale_nms_iou), deltas


def _second_stage(net: RNet, sums: Tensor, boxes: Tensor, there: Tensor, how: CascadeSettings) -> tuple[Tensor, Tensor]:
    answers, there = _look(net, sums, boxes, there)
    scores = answers.logits.float().softmax(1)[:, 1]
    scores = torch.where(there & (scores > how.thresholds[1]), scores, ABSENT)
    scores, index = _best(_unsuppressed(boxes, scores, how.nms_iou), how)
    return squared(moved(boxes[index], answers.deltas.float()[index], net.extra)), scores > LEAST


def _third_stage(
    net: ONet, sums: Tensor, boxes: Tensor, there: Tensor, size: tuple[int, int], how: CascadeSettings
) -> Marked:
    answers, there = _look(net, sums, boxes, there)
    scores = answers.logits.float().softmax(1)[:, 1:].T  # (K, N)
    scores = torch.where(there & (scores > how.thresholds[2]), scores, ABSENT)
    points = None if answers.landmarks is None else placed(answers.landmarks.float(), boxes)
    boxes = moved(boxes, answers.deltas.float(), net.extra)
    kept = over_smaller_marks(boxes, scores, how.last_nms_share, extra=1.0)
    boxes = clip(boxes, size)
    scores = torch.where(kept & is_large(boxes, LEAST_SIDE), scores, ABSENT)
    classes, num = scores.shape
    labels = torch.arange(classes, device=scores.device)[:, None].expand(classes, num)
    points = None if points is None else points.repeat(classes, 1, 1)[None]
    found = Marked(boxes.repeat(classes, 1)[None], scores.flatten()[None], labels.flatten()[None], points)
    return best_rows(found, how.max_detections)


def _look(net: RNet | ONet, sums: Tensor, boxes: Tensor, there: Tensor) -> tuple[Answers, Tensor]:
    """What ``net`` says of crops of ``boxes`` (N, 4) px, and of which it means something: they hold a pixel."""
    ranges = pixel_ranges(boxes, (sums.shape[0] - 1, sums.shape[1] - 1))
    there = there & (ranges[:, 2:] > ranges[:, :2]).all(dim=1)
    ranges = torch.where(there[:, None], ranges, torch.tensor(_ANYWHERE, device=ranges.device))
    return net(normalized(area_crops(sums, ranges, net.window))), there


def _best(scores: Tensor, how: CascadeSettings) -> tuple[Tensor, Tensor]:
    """The best ``max_candidates`` of ``scores`` (N,), and their places."""
    assert how.max_candidates is not None
    scores, index = top(scores[None], how.max_candidates)
    return scores[0], index[0]


def _unsuppressed(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """``scores`` (N,), ABSENT for those that NMS removes."""
    groups = torch.zeros_like(scores, dtype=torch.int64)
    return unsuppressed(boxes[None], scores[None], groups[None], 1, iou_threshold)[0]
