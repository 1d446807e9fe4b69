"""RoIAlign (He et al., Mask R-CNN, ICCV 2017, section 3): each output bin is the mean of bilinear samples inside it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detkit.ops.region_pooling import pool_regions


def roi_align(
    features: Tensor,
    boxes: Tensor,
    image_index: Tensor,
    *,
    output_size: tuple[int, int],
    scale: float,
    sampling_ratio: int = 2,
    aligned: bool = True,
) -> Tensor:
    """Pool each box to a grid of ``output_size`` from one feature map.

    Args:
        features: (B, C, H, W), any layout.
        boxes: (R, 4) x1 y1 x2 y2 px of the network input. A box with a non-finite coordinate gives zeros.
        image_index: (R,) int64 in [0, B), the image that each box belongs to.
        output_size: (h, w) of the grid of bins.
        scale: feature cells per pixel, 1 / stride.
        sampling_ratio: samples per bin and axis; 0 takes one per feature cell, ``ceil(box / grid)``, but no more than
            the map has: of a bin larger than its map they lie farther apart (torchvision's do not, at any cost).
        aligned: shift by half a cell, so that pixel and cell centres agree. False is torchvision's original behaviour,
            which also widens boxes below one cell.

    Returns:
        (R, C, h, w) in channels-last memory order, of the features' type. There is no gradient to the boxes.
    """
    levels = torch.zeros_like(image_index)
    return multi_level_roi_align(
        [features], boxes, image_index, levels,
        output_size=output_size, scales=(scale,), sampling_ratio=sampling_ratio, aligned=aligned,
    )  # fmt: skip


def multi_level_roi_align(
    features: Sequence[Tensor],
    boxes: Tensor,
    image_index: Tensor,
    levels: Tensor,
    *,
    output_size: tuple[int, int],
    scales: Sequence[float],
    sampling_ratio: int = 2,
    aligned: bool = True,
    image_sizes: Tensor | Sequence[tuple[int, int]] | None = None,
) -> Tensor:
    """:func:`roi_align` where each box reads the map ``features[levels[r]]``, in one pass over all levels.

    Args:
        features: L maps (B, C, H_l, W_l) of one type and C.
        levels: (R,) int64 in [0, L).
        scales: feature cells per pixel of each level.
        image_sizes: (h, w) px of each image before padding, or (B, 2) int64 of them, which a compiled graph takes
            without being compiled anew for each batch. A map then ends where its image ends, and what stands in
            the padding cannot reach a box at the border; None reads the maps as a whole, as torchvision does.
    """
    return pool_regions(
        features, boxes, image_index, levels,
        output_size=output_size, scales=scales, sampling_ratio=sampling_ratio, aligned=aligned, image_sizes=image_sizes,
    )  # fmt: skip


def roi_align_reference(
    features: Tensor,
    boxes: Tensor,
    image_index: Tensor,
    *,
    output_size: tuple[int, int],
    scale: float,
    sampling_ratio: int = 2,
    aligned: bool = True,
) -> Tensor:
    """:func:`roi_align` as slow, obvious loops: the specification that every faster form is tested against."""
    out_h, out_w = output_size
    out = features.new_zeros(len(boxes), features.shape[1], out_h, out_w)
    for r, (box, b) in enumerate(zip(boxes.tolist(), image_index.tolist(), strict=True)):
        x1, y1, x2, y2 = (v * scale - (0.5 if aligned else 0.0) for v in box)
        smallest = 0.0 if aligned else 1.0
        bin_h, bin_w = max(y2 - y1, smallest) / out_h, max(x2 - x1, smallest) / out_w
        grid_h = sampling_ratio or int(-(-bin_h // 1))
        grid_w = sampling_ratio or int(-(-bin_w // 1))
        for i in range(out_h):
            for j in range(out_w):
                for iy in range(grid_h):
                    for ix in range(grid_w):
                        y = y1 + (i + (iy + 0.5) / grid_h) * bin_h
                        x = x1 + (j + (ix + 0.5) / grid_w) * bin_w
                        out[r, :, i, j] += bilinear(features[b], y, x) / (grid_h * grid_w)
    return out


def bilinear(feature: Tensor, y: float, x: float) -> Tensor:
    """The value (C,) of ``feature`` (C, H, W) at a point given in cells; 0 beyond one cell outside the map."""
    h, w = feature.shape[1:]
    if y < -1 or y > h or x < -1 or x > w:
        return feature.new_zeros(feature.shape[0])
    y, x = min(max(y, 0.0), h - 1.0), min(max(x, 0.0), w - 1.0)
    y0, x0 = int(y), int(x)
    y1, x1 = min(y0 + 1, h - 1), min(x0 + 1, w - 1)
    fy, fx = y - y0, x - x0
    top = feature[:, y0, x0] * (1 - fx) + feature[:, y0, x1] * fx
    bottom = feature[:, y1, x0] * (1 - fx) + feature[:, y1, x1] * fx
    return top * (1 - fy) + bottom * fy
