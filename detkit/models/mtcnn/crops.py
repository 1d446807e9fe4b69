"""From boxes to the crops that the second and third network see, and from their answers to boxes."""

from __future__ import annotations

import torch
from torch import Tensor

from detkit.utils.transfer import constant


def squared(boxes: Tensor) -> Tensor:
    """``boxes`` (N, 4) px made square about their centres, by their longer side."""
    sides = boxes[:, 2:] - boxes[:, :2]
    longer = sides.max(dim=1, keepdim=True).values
    corner = boxes[:, :2] + sides * 0.5 - longer * 0.5
    return torch.cat([corner, corner + longer], dim=1)


def moved(boxes: Tensor, deltas: Tensor, extra: float) -> Tensor:
    """``boxes`` (N, 4) px with each corner moved by ``deltas`` (N, 4), in shares of the box's sides.

    Args:
        extra: px by which sides count as longer: 1 in the second and third stage as published, where boxes include
            their last pixel; 0 in the first.
    """
    return boxes + deltas * (boxes[:, 2:] - boxes[:, :2] + extra).repeat(1, 2)


def placed(landmarks: Tensor, boxes: Tensor) -> Tensor:
    """Points (N, L, 2) x y px for ``landmarks`` (N, 2 L), all x, then all y, in shares of ``boxes`` (N, 4) px."""
    sides = boxes[:, 2:] - boxes[:, :2] + 1
    points = landmarks.unflatten(1, (2, -1)).transpose(1, 2)
    return points * sides[:, None] + boxes[:, None, :2] - 1


def landmark_targets(points: Tensor, boxes: Tensor) -> Tensor:
    """The landmarks (N, 2 L), all x, then all y, that lie at ``points`` (N, L, 2) px: the inverse of :func:`placed`."""
    sides = boxes[:, 2:] - boxes[:, :2] + 1
    return ((points - boxes[:, None, :2] + 1) / sides[:, None]).transpose(1, 2).flatten(1)


def pixel_ranges(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The pixels (N, 4) int64 x1 y1 x2 y2, half-open, that crops of ``boxes`` (N, 4) px have in an image of ``size``.

    Corners are truncated and count from 1, both inclusive, as published: a crop begins a pixel before its box. They are
    clipped to the image, so that a crop at the border is no longer square. Of a box beside the image nothing is left:
    x2 <= x1 or y2 <= y1.
    """
    h, w = size
    corners = boxes.trunc().long()
    first = corners[:, :2].clamp(min=1) - 1
    last = torch.minimum(corners[:, 2:], constant((w, h), corners.device, corners.dtype))
    return torch.cat([first, last], dim=1)


def integral_image(pixels: Tensor) -> Tensor:
    """(h + 1, w + 1, 3) float64: the sum of all of ``pixels`` (3, h, w) above and left of each corner of a pixel."""
    sums = pixels.new_zeros((pixels.shape[1] + 1, pixels.shape[2] + 1, 3), dtype=torch.float64)
    sums[1:, 1:] = pixels.permute(1, 2, 0).double().cumsum(0).cumsum(1)
    return sums


def area_crops(sums: Tensor, ranges: Tensor, side: int) -> Tensor:
    """Crops (N, 3, ``side``, ``side``) float32: each pixel is the mean of the pixels that it covers, even in part.

    The same as ``interpolate(mode="area")`` of each crop, for all of them together, whatever their sizes.

    Args:
        sums: the integral image.
        ranges: (N, 4) from :func:`pixel_ranges`, none empty.
    """
    steps = torch.arange(side, device=sums.device)
    lengths = (ranges[:, 2:] - ranges[:, :2])[:, :, None]
    start = ranges[:, :2, None] + steps * lengths // side
    end = ranges[:, :2, None] + -(-(steps + 1) * lengths // side)
    (x1, y1), (x2, y2) = start.unbind(1), end.unbind(1)
    flat, width = sums.flatten(0, 1), sums.shape[1]

    def at(y: Tensor, x: Tensor) -> Tensor:
        place = y[:, :, None] * width + x[:, None, :]
        return flat.index_select(0, place.flatten()).view(*place.shape, 3)  # four times as fast as by brackets

    total = at(y2, x2) - at(y1, x2) - at(y2, x1) + at(y1, x1)
    count = (y2 - y1)[:, :, None] * (x2 - x1)[:, None, :]
    return (total / count[..., None]).float().permute(0, 3, 1, 2)
