"""Which windows of P-Net's pyramid answer for which object: what the audit of the cascade counts, without any pixel.

The windows are those that P-Net looks through at test, and one answers for an object where training would call a crop
at its place a positive of it: :func:`~detkit.models.mtcnn.samples.judge` decides both. In training itself the crops are
drawn about the objects, see :func:`~detkit.models.mtcnn.samples.draw_squares`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from detkit.models.interfaces import References, Wording
from detkit.models.mtcnn import samples
from detkit.models.mtcnn.cascade import CascadeSettings
from detkit.models.mtcnn.nets import PNet
from detkit.models.mtcnn.pyramid import pyramid_scales, scaled_size, windows
from detkit.structures import Target

WORDING = Wording(
    headline="What P-Net's windows can answer for",
    owner="P-Net",
    noun="window",
    level="window",
    meaning=(
        "A reference is a window of P-Net at test, and a level is a scale of its image pyramid, named by the px of the "
        "network input that 12 px are there. A window answers for the object that it overlaps most, with an IoU above "
        f"{samples.POSITIVE_IOU:g}: what a positive is in training too, where squares are drawn about the objects in "
        "place of windows. An object without a window is lost unless P-Net fires on one that it was not taught to fire "
        "on, and the later stages move that onto it."
    ),
)

#: Pairs of windows and objects that are compared in one go, at most: what bounds the memory of a crowded image.
_PARCEL = 1 << 22


def window_references(target: Target, size: tuple[int, int], how: CascadeSettings, as_squares: bool) -> References:
    """All windows in an image of ``size`` (h, w) px, scale after scale, row by row, and the object that each has.

    Args:
        as_squares: see :func:`~detkit.models.mtcnn.samples.judge`.
    """
    scales = pyramid_scales(size, how.min_size, how.factor)
    objects = samples.counted(target.wanted.boxes, as_squares)
    near = [_near(objects, size, scale) for scale in scales]
    boxes = torch.cat([objects.new_zeros(0, 4), *map(_all_windows, near, scales)])
    lengths = torch.tensor([m.numel() for m in near], dtype=torch.int64)
    levels = torch.repeat_interleave(torch.arange(len(scales)), lengths)
    matched = torch.full_like(levels, -1)
    rows = torch.cat([m.flatten() for m in near]).nonzero().squeeze(1) if near else levels
    for some in rows.split(max(1, _PARCEL // max(1, len(target)))):
        kinds, nearest = samples.judge(boxes[some], target, as_squares)
        positive = kinds == samples.POSITIVE
        matched[some[positive]] = target.kinds.wanted[nearest[positive]]
    return References(matched, boxes, levels, len(scales))


def _all_windows(cells: Tensor, scale: float) -> Tensor:
    """The windows (h * w, 4) px at ``scale`` of a map of ``cells`` (h, w)."""
    return windows(torch.ones_like(cells).nonzero(), scale)


def _near(objects: Tensor, size: tuple[int, int], scale: float) -> Tensor:
    """Which cells (h, w) bool of P-Net's map at ``scale`` have windows whose middle lies in one of ``objects``.

    The others answer for none: of two boxes with an IoU above a half, each holds the other's middle.
    """
    near = torch.zeros(PNet.map_size(scaled_size(size, scale)), dtype=torch.bool)
    # Without rounding the middle of cell i lies at (2 i + 6.5) / scale; rounding takes up to a px from it.
    middle = (1 + PNet.window) / 2
    first = ((objects[:, :2] * scale - middle) / PNet.stride).ceil().clamp(min=0)
    last = (((objects[:, 2:] + 1) * scale - middle) / PNet.stride).floor().clamp(min=-1)
    for x1, y1, x2, y2 in torch.cat([first, last + 1], dim=1).int().tolist():
        near[y1:y2, x1:x2] = True
    return near


def why_no_window(box: Sequence[float], size: tuple[int, int], how: CascadeSettings, as_squares: bool) -> str:
    """Why the object ``box`` (x1 y1 x2 y2 px), alone in an image of ``size`` (h, w), has no window."""
    w, h = box[2] - box[0], box[3] - box[1]
    if as_squares:
        w = h = max(w, h)
    side = math.sqrt(w * h)
    scales = pyramid_scales(size, how.min_size, how.factor)
    if not scales:
        return f"its image is smaller than a window of model.min_size, {how.min_size:g} px"
    if _best_overlap(side, w, h) <= samples.POSITIVE_IOU:
        return "too long for any square (model.match_squares)"
    least, largest = (_side(scale) for scale in (scales[0], scales[-1]))
    if side < least and _best_overlap(least, w, h) <= samples.POSITIVE_IOU:
        return f"smaller than the smallest windows (model.min_size, {how.min_size:g} px)"
    if side > largest and _best_overlap(largest, w, h) <= samples.POSITIVE_IOU:
        return "larger than the largest windows that its image has room for"
    return "between two windows of the pyramid (model.factor)"


def _side(scale: float) -> float:
    """Of a window, px of the image, before it is put on whole px."""
    return (PNet.window - 1) / scale


def _best_overlap(side: float, w: float, h: float) -> float:
    """IoU of a square of ``side`` and a box ``w`` x ``h``, of one middle; no square has more than that of sqrt(w h)."""
    inter = min(side, w) * min(side, h)
    return inter / max(side * side + w * h - inter, 1e-9)


def other_settings(boxes: Tensor, how: CascadeSettings, as_squares: bool) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Arguments of MTCNN that give objects ``boxes`` (N, 4) px other windows, and what they change in words."""
    same: list[tuple[Mapping[str, Any], str]] = [({}, "")]
    squares: list[tuple[Mapping[str, Any], str]] = [({"match_squares": True}, "overlaps with the objects' squares")]
    for squared, words in same if as_squares else same + squares:
        if squared:
            yield squared, words
        for changed, what in _other_pyramids(boxes, how):
            yield {**squared, **changed}, ", ".join(filter(None, (words, what)))


def _other_pyramids(boxes: Tensor, how: CascadeSettings) -> Iterator[tuple[Mapping[str, Any], str]]:
    sides = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).sqrt()
    wanted = sides.quantile(torch.tensor([0.05, 0.1, 0.25, 0.5])).tolist()
    for least in sorted({round(side, 1) for side in wanted if 1 <= side < how.min_size}):
        longer = (how.min_size / least) ** 2
        yield {"min_size": least}, f"windows from {least:g} px on, whose pyramid takes about {longer:.2g} times as long"
    finer = round(math.sqrt(how.factor), 3)
    longer = (1 - how.factor**2) / (1 - finer**2)
    yield {"factor": finer}, f"twice as many scales, which take about {longer:.2g} times as long"
