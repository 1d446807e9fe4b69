"""RoIAlign (He et al., Mask R-CNN, ICCV 2017, section 3): each output bin is the mean of bilinear samples inside it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detkit.ops.sampling import feature_table, weighted_rows


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
        sampling_ratio: samples per bin and axis; 0 takes one per feature cell, ``ceil(box / grid)``.
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
    image_sizes: Sequence[tuple[int, int]] | None = None,
) -> Tensor:
    """:func:`roi_align` where each box reads the map ``features[levels[r]]``, in one pass over all levels.

    Args:
        features: L maps (B, C, H_l, W_l) of one type and C.
        levels: (R,) int64 in [0, L).
        scales: feature cells per pixel of each level.
        image_sizes: (h, w) px of each image before padding. A map then ends where its image ends, and what stands in
            the padding cannot reach a box at the border; None reads the maps as a whole, as torchvision does.
    """
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes must be (R, 4), not {tuple(boxes.shape)}")
    if image_index.shape != (len(boxes),) or levels.shape != (len(boxes),):
        raise ValueError(f"{len(boxes)} boxes but {len(image_index)} image indices and {len(levels)} levels")
    if len(features) != len(scales):
        raise ValueError(f"{len(features)} feature maps but {len(scales)} scales")
    table = feature_table(features)
    regions = _Regions(features, boxes.detach(), image_index, levels, scales, aligned, image_sizes)
    if sampling_ratio > 0:
        pooled = _pool(table, regions, output_size, (sampling_ratio, sampling_ratio))
    else:
        pooled = _pool_adaptive(table, regions, output_size)
    h, w = output_size
    return pooled.reshape(len(boxes), h, w, table.shape[1]).permute(0, 3, 1, 2).to(features[0].dtype)


class _Regions:
    """R boxes in cells of their own level, with what addresses that level's rows in the feature table."""

    def __init__(
        self,
        features: Sequence[Tensor],
        boxes: Tensor,
        image_index: Tensor,
        levels: Tensor,
        scales: Sequence[float],
        aligned: bool,
        image_sizes: Sequence[tuple[int, int]] | None,
    ) -> None:
        dtype = torch.float64 if boxes.dtype == torch.float64 else torch.float32
        device = boxes.device
        shapes = torch.tensor([f.shape[2:] for f in features], device=device)
        rows = torch.tensor([f.shape[0] * f.shape[2] * f.shape[3] for f in features], device=device)
        first_row = rows.cumsum(0) - rows
        self.finite = boxes.isfinite().all(dim=1)
        scale = torch.tensor(scales, dtype=dtype, device=device)[levels]
        cells = torch.where(self.finite[:, None], boxes.to(dtype), 0) * scale[:, None] - (0.5 if aligned else 0.0)
        extent = shapes[levels]
        self.row, self.base = extent[:, 1], first_row[levels] + image_index * extent[:, 0] * extent[:, 1]
        if image_sizes is not None:
            cells_of_image = (
                torch.tensor(image_sizes, dtype=dtype, device=device)[image_index] * scale[:, None]
            ).ceil()
            extent = torch.minimum(extent, cells_of_image.long())
        self.height, self.width = extent.unbind(1)
        self.x, self.y = cells[:, 0], cells[:, 1]
        smallest = 0.0 if aligned else 1.0
        self.w = (cells[:, 2] - cells[:, 0]).clamp(min=smallest)
        self.h = (cells[:, 3] - cells[:, 1]).clamp(min=smallest)

    def select(self, index: Tensor) -> _Regions:
        part = object.__new__(_Regions)
        for name, value in vars(self).items():
            setattr(part, name, value[index])
        return part


def _pool(table: Tensor, regions: _Regions, output_size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Rows (R * h * w, C): the mean of ``grid`` bilinear samples in every bin."""
    (h, w), (gh, gw) = output_size, grid
    r = len(regions.x)
    y_index, y_weight = _taps(regions.y, regions.h, h, gh, regions.height)
    x_index, x_weight = _taps(regions.x, regions.w, w, gw, regions.width)
    y_weight = y_weight * regions.finite[:, None, None] / (gh * gw)
    y_index = regions.base[:, None, None] + y_index * regions.row[:, None, None]
    # (R, h, 1, 2gh, 1) with (R, 1, w, 1, 2gw): the taps of a bin are the outer product of its rows and columns
    indices = y_index.view(r, h, 1, 2 * gh, 1) + x_index.view(r, 1, w, 1, 2 * gw)
    weights = y_weight.view(r, h, 1, 2 * gh, 1) * x_weight.view(r, 1, w, 1, 2 * gw)
    shape = (r * h * w, 4 * gh * gw)
    return weighted_rows(table, indices.reshape(shape), weights.reshape(shape))


def _taps(start: Tensor, length: Tensor, bins: int, samples: int, extent: Tensor) -> tuple[Tensor, Tensor]:
    """Cells and weights (R, bins * samples, 2) along one axis; samples over a cell outside weigh nothing."""
    offsets = (torch.arange(bins * samples, device=start.device, dtype=start.dtype) + 0.5) / samples
    position = start[:, None] + length[:, None] / bins * offsets
    last = extent[:, None] - 1
    inside = (position >= -1) & (position <= extent[:, None])
    position = torch.minimum(position.clamp(min=0), last)
    low = position.floor()
    fraction = position - low
    low = low.long()
    index = torch.stack([low, torch.minimum(low + 1, last)], dim=-1)
    weight = torch.stack([1 - fraction, fraction], dim=-1) * inside[..., None]
    return index, weight


def _pool_adaptive(table: Tensor, regions: _Regions, output_size: tuple[int, int]) -> Tensor:
    """Rows (R * h * w, C) with a sample for each cell of a bin; boxes that need the same grid go together."""
    h, w = output_size
    # A box larger than its map is sampled at the map's own resolution: more would only be zeros, and cost memory.
    gh = torch.minimum((regions.h / h).ceil(), regions.height).long()
    gw = torch.minimum((regions.w / w).ceil(), regions.width).long()
    out = table.new_zeros(len(regions.x), h * w * table.shape[1]) + table.sum() * 0  # connected, whatever is pooled
    if len(regions.x) == 0:
        return out
    grids, member = torch.unique(torch.stack([gh, gw], dim=1), dim=0, return_inverse=True)
    for i, (rows, columns) in enumerate(grids.tolist()):
        if rows == 0 or columns == 0:
            continue
        index = (member == i).nonzero().squeeze(1)
        part = _pool(table, regions.select(index), output_size, (rows, columns))
        out = out.index_copy(0, index, part.reshape(len(index), -1))
    return out


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
                        out[r, :, i, j] += _bilinear(features[b], y, x) / (grid_h * grid_w)
    return out


def _bilinear(feature: Tensor, y: float, x: float) -> Tensor:
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
