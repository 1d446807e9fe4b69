"""Deformable convolution and pooling in plain gathers: for runtimes that have no op for them, and slower.

The op's own arguments, its own results; of torch alone, so that what is written here can be exported.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from detkit.ops.geometry import Pooling
from detkit.ops.sampling import Taps, border_taps, zero_taps


def deform_conv_gathered(
    x: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """``detkit::deform_conv``, tap by tap: see :func:`detkit.ops.deform_conv`."""
    batch, channels, height, width = x.shape
    out, per_group, kernel_h, kernel_w = weight.shape
    taps, parts = kernel_h * kernel_w, offset.shape[1] // (2 * kernel_h * kernel_w)
    h, w = offset.shape[2], offset.shape[3]
    table = x.unflatten(1, (parts, -1)).permute(0, 1, 3, 4, 2).reshape(-1, channels // parts)
    first = torch.arange(batch * parts, device=x.device).view(-1, parts, 1, 1) * (height * width)
    moves = offset.view(batch, parts, taps, 2, h, w)
    read = []
    for k in range(taps):
        rows = torch.arange(h, device=x.device) * stride[0] - padding[0] + (k // kernel_w) * dilation[0]
        columns = torch.arange(w, device=x.device) * stride[1] - padding[1] + (k % kernel_w) * dilation[1]
        y = zero_taps(rows[:, None] + moves[:, :, k, 0], height)
        column = zero_taps(columns[None] + moves[:, :, k, 1], width)
        values = _interpolated(table, first, width, y, column)  # (B, G, H', W', C / G)
        if mask is not None:
            values = values * mask.view(batch, parts, taps, h, w)[:, :, k, :, :, None]
        read.append(values.permute(0, 2, 3, 1, 4).flatten(3))
    places = torch.stack(read, dim=3).view(batch, h, w, taps, channels // per_group, per_group)
    kernel = weight.view(channels // per_group, -1, per_group, taps)
    result = torch.einsum("bhwkgc,gock->bgohw", places, kernel).reshape(batch, out, h, w)
    return result if bias is None else result + bias[:, None, None]


def region_pooling_gathered(
    features: Sequence[Tensor],
    boxes: Tensor,
    image_index: Tensor,
    levels: Tensor,
    offsets: Tensor | None,
    *options: Any,
) -> Tensor:
    """``detkit::region_pooling`` with moved bins, sample by sample; NotImplemented where no bin moves.

    Raises:
        ValueError: the number of samples depends on the boxes (``sampling_ratio`` 0), or maps end before their edge.
    """
    if offsets is None:
        return NotImplemented
    pooling = Pooling(*options)
    if pooling.sampling_ratio < 1 or pooling.image_sizes is not None:
        raise ValueError(
            "moved bins can be gathered with a fixed sampling_ratio alone: set it to 2, and no image_sizes"
        )
    (h, w), samples, sets = pooling.output_size, pooling.sampling_ratio, pooling.channel_sets
    groups = offsets.shape[1] // 2
    depth = features[0].shape[1] // (sets * groups)
    table = torch.cat([f.permute(0, 2, 3, 1).reshape(-1, depth) for f in features])
    height, width, first, scale = (_per_box(v) for v in _of_levels(features, image_index, levels, pooling.scales))
    x1, y1, x2, y2 = (_per_box(v) * scale - (0.5 if pooling.aligned else 0.0) for v in boxes.unbind(1))
    smallest = 0.0 if pooling.aligned else 1.0
    box_w, box_h = (x2 - x1).clamp(min=smallest), (y2 - y1).clamp(min=smallest)
    shift = pooling.gamma * offsets.unflatten(1, (groups, 2))
    group = torch.arange(groups, device=boxes.device).view(-1, 1, 1)
    bins = torch.arange(sets, device=boxes.device).view((h, w) if sets > 1 else (1, 1))
    total = torch.zeros(1, device=boxes.device)
    for i in range(samples * samples):
        rows = torch.arange(h, device=boxes.device)[:, None] + (i // samples + 0.5) / samples
        columns = torch.arange(w, device=boxes.device)[None] + (i % samples + 0.5) / samples
        y = border_taps(y1 + box_h * (rows / h + shift[:, :, 1]), height)
        x = border_taps(x1 + box_w * (columns / w + shift[:, :, 0]), width)
        total = total + _interpolated(table, first, width, y, x, lambda cell: (cell * sets + bins) * groups + group)
    return (total / samples**2).permute(0, 1, 4, 2, 3).flatten(1, 2)


def _interpolated(table: Tensor, first: Any, width: Any, y: Taps, x: Taps, row_of: Any = lambda cell: cell) -> Tensor:
    """(..., D): the weighted sum of the four rows of ``table`` (T, D) around each sample (...)."""
    total = None
    for i in range(2):
        for j in range(2):
            row = row_of(first + y.index[i] * width + x.index[j])
            part = table[row] * (y.weight[i] * x.weight[j])[..., None]
            total = part if total is None else total + part
    assert total is not None
    return total


def _of_levels(
    features: Sequence[Tensor], image_index: Tensor, levels: Tensor, scales: Sequence[float]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For each box the height and width of its map, the number of the map's first cell in the table, and its scale."""
    height, width = torch.zeros_like(levels), torch.zeros_like(levels)
    first, scale = torch.zeros_like(levels), torch.zeros_like(levels, dtype=torch.float32)
    cells = 0
    for level, (feature, cells_per_px) in enumerate(zip(features, scales, strict=True)):
        mine = (levels == level).long()
        batch, _, h, w = feature.shape
        height, width = height + mine * h, width + mine * w
        first = first + mine * (image_index * (h * w) + cells)
        scale = scale + mine * cells_per_px
        cells = cells + batch * h * w
    return height, width, first, scale


def _per_box(value: Tensor) -> Tensor:
    return value[:, None, None, None]
