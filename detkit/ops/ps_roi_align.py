"""Position-sensitive pooling (Dai et al., R-FCN, NeurIPS 2016, eq. 1): each bin of a box reads channels of its own.

Bin (i, j) of output channel c, of C, reads channel ``(i * w + j) * C + c``, as in the paper's figure 1, by RoIAlign's
bilinear samples or by the paper's mean over whole cells. torchvision has the bins within each channel instead: its maps
are ``maps.unflatten(1, (h * w, C)).transpose(1, 2).flatten(1, 2)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from detkit.ops.checks import check_bins, check_maps, check_regions
from detkit.ops.cuda import ps_roi_pool as kernels
from detkit.ops.cuda.compile import or_in_pytorch, usable
from detkit.ops.region_pooling import pool_regions
from detkit.ops.register import registered
from detkit.ops.roi_align import roi_align_reference
from detkit.ops.sampling import as_maps, empty_maps, feature_table, scattered_rows, weighted_rows
from detkit.utils.precision import widened


def ps_roi_align(
    features: Tensor,
    boxes: Tensor,
    image_index: Tensor,
    *,
    output_size: tuple[int, int],
    scale: float,
    sampling_ratio: int = 2,
) -> Tensor:
    """Position-sensitive pooling with RoIAlign's samples and half-cell correction.

    Args:
        features: (B, h * w * C, H, W), any layout.
        boxes: (R, 4) x1 y1 x2 y2 px of the network input. A box with a non-finite coordinate gives zeros.
        image_index: (R,) int64 in [0, B).
        output_size: (h, w) of the grid of bins.
        scale: feature cells per pixel, 1 / stride.
        sampling_ratio: samples per bin and axis; 0 takes one per feature cell, ``ceil(box / grid)``, but no more than
            the map has: of a bin larger than its map they lie farther apart (torchvision's do not, at any cost).

    Returns:
        (R, C, h, w) in channels-last memory order, of the features' type. There is no gradient to the boxes.
    """
    return pool_regions(
        [features], boxes, image_index, torch.zeros_like(image_index),
        output_size=output_size, scales=(scale,), sampling_ratio=sampling_ratio, aligned=True, position_sensitive=True,
    )  # fmt: skip


def ps_roi_align_reference(
    features: Tensor,
    boxes: Tensor,
    image_index: Tensor,
    *,
    output_size: tuple[int, int],
    scale: float,
    sampling_ratio: int = 2,
) -> Tensor:
    """:func:`ps_roi_align` by its definition: RoIAlign of all channels, of which each bin keeps its own."""
    h, w = output_size
    options = {"output_size": output_size, "scale": scale, "sampling_ratio": sampling_ratio, "aligned": True}
    pooled = roi_align_reference(features, boxes, image_index, **options)
    out = pooled.new_zeros(len(boxes), features.shape[1] // (h * w), h, w)
    for i in range(h):
        for j in range(w):
            out[:, :, i, j] = pooled.unflatten(1, (h * w, -1))[:, i * w + j, :, i, j]
    return out


def ps_roi_pool(
    features: Tensor, boxes: Tensor, image_index: Tensor, *, output_size: tuple[int, int], scale: float
) -> Tensor:
    """Position-sensitive pooling by the mean over whole cells, the paper's own; see :func:`ps_roi_align`.

    A box is rounded to cells; bin i covers those from ``floor(i * h / bins)`` to ``ceil((i + 1) * h / bins)``, and is 0
    where none of them lies in the map. torchvision's ``ps_roi_pool`` leaves out the map's last row and column in its
    forward pass, and only there: its backward pass and this function agree.
    """
    h, w = output_size
    check_maps([features])
    check_bins(output_size)
    check_regions(boxes, image_index, None, features.device)
    if features.shape[1] % (h * w):
        raise ValueError(f"{features.shape[1]} channels do not divide into {h} x {w} bins")
    return torch.ops.detkit.ps_roi_pool(features, boxes.detach(), image_index, [h, w], scale)


@registered(
    "ps_roi_pool",
    "(Tensor features, Tensor boxes, Tensor image_index, int[] output_size, float scale) -> Tensor",
)
def _forward(features: Tensor, boxes: Tensor, image_index: Tensor, output_size: list[int], scale: float) -> Tensor:
    h, w = output_size
    if usable(kernels.SOURCE, features, boxes, image_index):
        with or_in_pytorch(kernels.SOURCE, features):
            return kernels.forward(features, boxes, image_index, h, w, scale)
    indices, weights, starts = _cells(features.shape, boxes, image_index, h, w, scale)
    table = feature_table([features]).view(-1, features.shape[1] // (h * w))
    rows = weighted_rows(table, indices, weights, starts)
    return as_maps(rows.to(features.dtype), len(boxes), table.shape[1], h, w)


@_forward.register_fake
def _(features: Tensor, boxes: Tensor, image_index: Tensor, output_size: list[int], scale: float) -> Tensor:
    h, w = output_size
    return empty_maps(features, boxes.shape[0], features.shape[1] // (h * w), h, w)


@registered(
    "ps_roi_pool_backward",
    "(Tensor grad, int[] shape, Tensor boxes, Tensor image_index, float scale) -> Tensor",
)
def _backward(grad: Tensor, shape: list[int], boxes: Tensor, image_index: Tensor, scale: float) -> Tensor:
    height, width = grad.shape[2:]
    b, c, h, w = shape
    if usable(kernels.SOURCE, grad, boxes, image_index):
        with or_in_pytorch(kernels.SOURCE, grad):
            return kernels.backward(grad, shape, boxes, image_index, scale)
    indices, weights, starts = _cells(shape, boxes, image_index, height, width, scale)
    rows = grad.permute(0, 2, 3, 1).reshape(-1, grad.shape[1])
    into_table = scattered_rows(widened(rows), indices, weights, b * h * w * height * width, starts)
    return as_maps(into_table.to(grad.dtype).contiguous(), b, c, h, w)


@_backward.register_fake
def _(grad: Tensor, shape: list[int], boxes: Tensor, image_index: Tensor, scale: float) -> Tensor:
    b, c, h, w = shape
    return empty_maps(grad, b, c, h, w)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, boxes, image_index, _, ctx.scale = inputs
    ctx.shape = list(features.shape)
    ctx.save_for_backward(boxes, image_index)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return (torch.ops.detkit.ps_roi_pool_backward(grad, ctx.shape, *ctx.saved_tensors, ctx.scale),)


_forward.register_autograd(_differentiate, setup_context=_setup_context, inputs=lambda features, *_: (features,))


def _cells(
    shape: Sequence[int], boxes: Tensor, image_index: Tensor, h: int, w: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Indices and weights (N,) of all cells of all bins, bin after bin, and where each bin (R * h * w,) starts."""
    _, _, height, width = shape
    boxes = widened(boxes)
    finite = boxes.isfinite().all(dim=1)
    # whole cells far outside are as good as just outside, and stay within int64
    corner = torch.where(finite[:, None], boxes * scale, 0).clamp(-1e6, 1e6)
    corner = torch.sign(corner) * torch.floor(corner.abs() + 0.5)  # halves away from zero, as C's round
    y0, y1 = _spans(corner[:, 1], corner[:, 3], h, height)
    x0, x1 = _spans(corner[:, 0], corner[:, 2], w, width)
    rows = ((y1 - y0) * finite[:, None])[:, :, None].expand(-1, h, w)
    columns = (x1 - x0)[:, None, :].expand(-1, h, w)
    count = (rows * columns).reshape(-1)
    starts = count.cumsum(0) - count
    bag = torch.arange(len(count), device=boxes.device).repeat_interleave(count)
    place = torch.arange(len(bag), device=boxes.device) - starts[bag]
    line = columns.reshape(-1)[bag]
    region, bin_ = bag // (h * w), bag % (h * w)
    y = y0[region, bin_ // w] + place // line
    x = x0[region, bin_ % w] + place % line
    cell = (image_index[region] * height + y) * width + x
    weights = boxes.new_ones(len(bag)) / count[bag]
    return cell * (h * w) + bin_, weights, starts


def _spans(start: Tensor, end: Tensor, bins: int, extent: int) -> tuple[Tensor, Tensor]:
    """First and last + 1 cell (R, bins) of each bin along one axis, within the map; an axis has at least one cell."""
    size = (end - start).clamp(min=1)[:, None] / bins
    edge = torch.arange(bins, device=start.device, dtype=start.dtype)
    first = (edge * size).floor() + start[:, None]
    last = ((edge + 1) * size).ceil() + start[:, None]
    first, last = (v.clamp(0, extent).long() for v in (first, last))
    return first, torch.maximum(first, last)


def ps_roi_pool_reference(
    features: Tensor, boxes: Tensor, image_index: Tensor, *, output_size: tuple[int, int], scale: float
) -> Tensor:
    """:func:`ps_roi_pool` as slow, obvious loops."""
    h, w = output_size
    height, width = features.shape[2:]
    own = features.unflatten(1, (h * w, -1))
    out = features.new_zeros(len(boxes), own.shape[2], h, w)
    for r, (box, b) in enumerate(zip(boxes.tolist(), image_index.tolist(), strict=True)):
        x1, y1, x2, y2 = (int(abs(v * scale) + 0.5) * (1 if v > 0 else -1) for v in box)
        bin_h, bin_w = max(y2 - y1, 1) / h, max(x2 - x1, 1) / w
        for i in range(h):
            for j in range(w):
                rows = range(max(y1 + int(i * bin_h), 0), min(y1 - int(-(i + 1) * bin_h // 1), height))
                columns = range(max(x1 + int(j * bin_w), 0), min(x1 - int(-(j + 1) * bin_w // 1), width))
                if rows and columns:
                    cells = own[b, i * w + j, :, rows.start : rows.stop, columns.start : columns.stop]
                    out[r, :, i, j] = cells.mean(dim=(1, 2))
    return out
