"""Deformable RoI pooling (Dai et al., ICCV 2017, section 2.2, eqs. 5-7), also modulated (Zhu et al., CVPR 2019, eq. 2).

Bin (i, j) of a box is read at a place moved by ``gamma * (dx, dy)`` times the box's width and height. The bins are
RoIAlign's, with its half-cell correction, so that zero offsets are RoIAlign (the paper's code of 2017 rounded the box's
corners first; RoIAlign came later). Modulation scales what a bin has read, so that it is a product after the pooling.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from detkit.ops.region_pooling import pool_regions
from detkit.ops.roi_align import bilinear

#: Dai et al., section 2.2: "gamma is a pre-defined scalar ... empirically set to 0.1".
GAMMA = 0.1


def deform_roi_pool(
    features: Sequence[Tensor],
    boxes: Tensor,
    image_index: Tensor,
    levels: Tensor,
    offsets: Tensor,
    *,
    output_size: tuple[int, int],
    scales: Sequence[float],
    sampling_ratio: int = 2,
    gamma: float = GAMMA,
    position_sensitive: bool = False,
    image_sizes: Tensor | Sequence[tuple[int, int]] | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Pool each box from the map of its level, with each bin moved by its offset.

    Args:
        features: L maps (B, C, H_l, W_l); (B, h * w * C, H_l, W_l) where ``position_sensitive``.
        boxes: (R, 4) x1 y1 x2 y2 px of the network input. A box with a non-finite coordinate gives zeros.
        image_index: (R,) int64 in [0, B).
        levels: (R,) int64 in [0, L).
        offsets: (R, 2 G, h, w), dx then dy of each bin in units of the box's width and height, before ``gamma``. G > 1
            gives each of G equal runs of output channels offsets of its own (the paper's, for each class).
        output_size: (h, w) of the grid of bins.
        scales: feature cells per pixel of each level.
        sampling_ratio: samples per bin and axis; 0 takes one per feature cell, as ``roi_align`` does.
        gamma: see the paper, eq. 7.
        position_sensitive: bin (i, j) reads channels of its own (deformable PS RoI pooling): see ``ps_roi_align``.
        image_sizes: as for ``multi_level_roi_align``.
        mask: (R, G, h, w), by which each bin is scaled (v2), or None.

    Returns:
        (R, C, h, w) in channels-last memory order, differentiable in features, offsets and mask.

    Raises:
        ValueError: the shapes do not fit together.
    """
    groups = offsets.shape[1] // 2 if offsets.ndim == 4 else 0  # of another number of axes: refused below
    if mask is not None and groups and mask.shape != (boxes.shape[0], groups, *output_size):
        raise ValueError(
            f"mask must be ({len(boxes)}, {groups}, {output_size[0]}, {output_size[1]}), not {tuple(mask.shape)}"
        )
    pooled = pool_regions(
        features, boxes, image_index, levels,
        output_size=output_size, scales=scales, sampling_ratio=sampling_ratio, aligned=True, image_sizes=image_sizes,
        offsets=offsets, position_sensitive=position_sensitive, gamma=gamma,
    )  # fmt: skip
    if mask is None:
        return pooled
    return (pooled.unflatten(1, (groups, pooled.shape[1] // groups)) * mask[:, :, None].to(pooled.dtype)).flatten(1, 2)


def deform_roi_pool_reference(
    features: Sequence[Tensor],
    boxes: Tensor,
    image_index: Tensor,
    levels: Tensor,
    offsets: Tensor,
    *,
    output_size: tuple[int, int],
    scales: Sequence[float],
    sampling_ratio: int = 2,
    gamma: float = GAMMA,
    position_sensitive: bool = False,
    mask: Tensor | None = None,
) -> Tensor:
    """:func:`deform_roi_pool` as slow, obvious loops over boxes, channels, bins and samples."""
    h, w = output_size
    num_channels = features[0].shape[1] // (h * w if position_sensitive else 1)
    per_group = num_channels // (offsets.shape[1] // 2)
    out = features[0].new_zeros(len(boxes), num_channels, h, w)
    for r, (box, b, level) in enumerate(zip(boxes.tolist(), image_index.tolist(), levels.tolist(), strict=True)):
        x1, y1, x2, y2 = (v * scales[level] - 0.5 for v in box)
        bin_h, bin_w = max(y2 - y1, 0) / h, max(x2 - x1, 0) / w
        grid_h, grid_w = (sampling_ratio or int(-(-side // 1)) for side in (bin_h, bin_w))
        for c in range(num_channels):
            for i in range(h):
                for j in range(w):
                    dx, dy = offsets[r, 2 * (c // per_group) : 2 * (c // per_group) + 2, i, j].tolist()
                    left, top = x1 + j * bin_w + gamma * dx * bin_w * w, y1 + i * bin_h + gamma * dy * bin_h * h
                    channel = features[level][b, (i * w + j) * num_channels + c if position_sensitive else c]
                    for iy in range(grid_h):
                        for ix in range(grid_w):
                            y, x = top + (iy + 0.5) / grid_h * bin_h, left + (ix + 0.5) / grid_w * bin_w
                            out[r, c, i, j] += bilinear(channel[None], y, x)[0] / (grid_h * grid_w)
                    if mask is not None:
                        out[r, c, i, j] *= mask[r, c // per_group, i, j]
    return out
