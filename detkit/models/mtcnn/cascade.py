"""The three stages of MTCNN at test time, each step as in the published implementation.

That is the authors' Matlab code as others ported it and published weights for; what the paper leaves open is taken from
there: whole-px windows, corners that count from 1, sides longer by 1 px in the later stages. Two departures: a crop
without a pixel, of a box beside the image, is left out with its box, and so is a detection beside the image.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from detkit.matching.cascade import indices, last_candidates, last_detections, let_through, unsuppressed
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


class Cells(NamedTuple):
    """What P-Net says of an image at one scale: ``boxes_of``, the windows (M, 4) px of cells (M,), and of all N cells
    ``scores`` (N,) and ``deltas`` (N, 4)."""

    boxes_of: Callable[[Tensor], Tensor]
    scores: Tensor
    deltas: Tensor


class Windows(NamedTuple):
    """N of P-Net's windows: ``boxes`` (N, 4) px, ``scores`` (N,) and ``deltas`` (N, 4)."""

    boxes: Tensor
    scores: Tensor
    deltas: Tensor

    def select(self, index: Tensor | slice) -> Windows:
        """Those that ``index`` names."""
        return Windows(self.boxes[index], self.scores[index], self.deltas[index])

    @staticmethod
    def join(parts: Sequence[Windows]) -> Windows:
        """All of ``parts``."""
        return Windows(*(torch.cat(column) for column in zip(*parts, strict=True)))


def first_stage(net: PNet, sums: Sequence[Tensor], how: CascadeSettings) -> list[Tensor]:
    """Square boxes (P, 4) px of each image, best first: what P-Net finds in the images of its pyramid.

    Args:
        sums: the images' :func:`~detkit.models.mtcnn.crops.integral_image`.
    """
    sizes = [_size(s) for s in sums]
    scales = [pyramid_scales(size, how.min_size, how.factor) for size in sizes]
    maps = [cells_at(net, s, scale) for s, of_image in zip(sums, scales, strict=True) for scale in of_image]
    parts = iter(_of_scales(maps, [size for size, of_image in zip(sizes, scales, strict=True) for _ in of_image], how))
    none = [_no_windows(sums[0].device)]  # of an image that is too small for any scale
    joined = [Windows.join(list(itertools.islice(parts, len(of_image))) or none) for of_image in scales]
    boxes, scores, deltas = zip(*joined, strict=True)
    kept = unsuppressed(boxes, scores, sizes, how.nms_iou, how.max_candidates, "P-Net")
    return [squared(moved(b[k], d[k], net.extra)) for b, d, k in zip(boxes, deltas, kept, strict=True)]


def _no_windows(device: torch.device) -> Windows:
    return Windows(*(torch.zeros(shape, device=device) for shape in ((0, 4), 0, (0, 4))))


def _of_scales(maps: Sequence[Cells], sizes: Sequence[tuple[int, int]], how: CascadeSettings) -> list[Windows]:
    """What stays of each of ``maps``, of images of ``sizes``: what scores enough, and NMS."""
    if not maps:
        return []
    boxes_of, scores, deltas = zip(*maps, strict=True)
    passes = [s >= how.thresholds[0] for s in scores]
    index = let_through(boxes_of, scores, passes, sizes, "P-Net")
    found = [Windows(of(i), s[i], d[i]) for of, s, d, i in zip(boxes_of, scores, deltas, index, strict=True)]
    boxes, scores = [f.boxes for f in found], [f.scores for f in found]
    kept = unsuppressed(boxes, scores, sizes, how.scale_nms_iou, None, "P-Net")
    return [f.select(k) for f, k in zip(found, kept, strict=True)]


def cells_at(net: PNet, sums: Tensor, scale: float) -> Cells:
    """What P-Net says of an image at one scale."""
    answers = net(normalized(scaled_image(sums, scale)))
    score = answers.logits.float().softmax(1)[0, 1]
    columns = score.shape[1]

    def boxes_of(cells: Tensor) -> Tensor:
        return windows(torch.stack([cells // columns, cells % columns], dim=1), scale)

    return Cells(boxes_of, score.flatten(), answers.deltas[0].float().flatten(1).T)


def second_stage(net: RNet, sums: Sequence[Tensor], boxes: Sequence[Tensor], how: CascadeSettings) -> list[Tensor]:
    """Of ``boxes`` (P, 4) px of each image those (Q, 4) that R-Net takes for objects, moved and square, best first."""
    sizes = [_size(s) for s in sums]
    boxes, answers = look(net, sums, boxes)
    scores = [a.logits.softmax(1)[:, 1] for a in answers]
    passes = [s > how.thresholds[1] for s in scores]
    index = let_through([b.__getitem__ for b in boxes], scores, passes, sizes, "R-Net")
    good, scores = [b[i] for b, i in zip(boxes, index, strict=True)], [s[i] for s, i in zip(scores, index, strict=True)]
    kept = unsuppressed(good, scores, sizes, how.nms_iou, how.max_candidates, "R-Net")
    return [
        squared(moved(b[k], a.deltas[i[k]], net.extra)) for b, a, i, k in zip(good, answers, index, kept, strict=True)
    ]


def third_stage(net: ONet, sums: Tensor, boxes: Tensor, how: CascadeSettings) -> Detections:
    """The detections of ``boxes`` (Q, 4) px, best first and not clipped, with landmarks where ``net`` gives any."""
    size = _size(sums)
    [boxes], [answers] = look(net, [sums], [boxes])
    scores = answers.logits.softmax(1)[:, 1:]
    candidate, label = last_candidates(boxes, scores, how.thresholds[2], size, "O-Net").unbind(1)
    boxes, deltas, scores = boxes[candidate], answers.deltas[candidate], scores[candidate, label]
    landmarks = None if answers.landmarks is None else placed(answers.landmarks[candidate], boxes)
    found = Detections(moved(boxes, deltas, net.extra), scores, label, landmarks)
    return found.select(last_detections(found, size, how.last_nms_share, how.max_detections, "O-Net"))


def look(net: RNet | ONet, sums: Sequence[Tensor], boxes: Sequence[Tensor]) -> tuple[list[Tensor], list[Answers]]:
    """Of each image the boxes (M, 4) of ``boxes`` (N, 4) px of which there is a crop, and what ``net`` says of these
    crops, in float32."""
    ranges = [pixel_ranges(b, _size(s)) for b, s in zip(boxes, sums, strict=True)]
    there = indices([(r[:, 2:] > r[:, :2]).all(dim=1) for r in ranges])
    answers = [_answers(net, s, r[t]) for s, r, t in zip(sums, ranges, there, strict=True)]
    return [b[t] for b, t in zip(boxes, there, strict=True)], answers


def _answers(net: RNet | ONet, sums: Tensor, ranges: Tensor) -> Answers:
    parts = [net(normalized(area_crops(sums, some, net.window))) for some in ranges.split(_PARCEL)]
    logits, deltas = torch.cat([p.logits for p in parts]).float(), torch.cat([p.deltas for p in parts]).float()
    points = [p.landmarks for p in parts if p.landmarks is not None]
    return Answers(logits, deltas, torch.cat(points).float() if points else None)


def _size(sums: Tensor) -> tuple[int, int]:
    """(h, w) px of the image of which ``sums`` are the integral image."""
    return sums.shape[0] - 1, sums.shape[1] - 1


def run_cascade(nets: tuple[PNet, RNet, ONet], pixels: Tensor, how: CascadeSettings) -> Detections:
    """All three stages on ``pixels`` (3, h, w) float, 0 to 255: see :func:`third_stage`."""
    sums = integral_image(pixels)
    boxes = first_stage(nets[0], [sums], how)
    [boxes] = second_stage(nets[1], [sums], boxes, how)
    return third_stage(nets[2], sums, boxes, how)
