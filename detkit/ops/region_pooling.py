"""Pooling of boxes from feature maps: the op behind RoIAlign, its position-sensitive form and deformable RoI pooling.

Each of a box's h x w bins is the mean of a grid of bilinear samples (He et al., ICCV 2017, section 3). Two variations:

- *position-sensitive* (Dai et al., R-FCN, NeurIPS 2016, eq. 1): bin (i, j) reads channels of its own, number
  ``(i * w + j) * C + c`` for output channel c of C: what a bin reads lies together in a channels-last map;
- *deformable* (Dai et al., ICCV 2017, eqs. 5-7): bin (i, j) is moved by ``gamma * offset * (box width, box height)``.

This file holds the op, registered with torch.library, and its form as a sparse map; ``cuda/region_pooling.cu`` is the
kernel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from detkit.ops.checks import check_bins, check_device, check_maps, check_regions, check_sizes
from detkit.ops.cuda import region_pooling as kernels
from detkit.ops.cuda.compile import or_in_pytorch, usable
from detkit.ops.geometry import UNROUNDED, Pooling
from detkit.ops.register import registered
from detkit.ops.sampling import (
    Taps,
    as_maps,
    border_taps,
    empty_maps,
    feature_table,
    outer,
    outer_index,
    scattered_rows,
    weight_gradient,
    weighted_rows,
)
from detkit.utils.transfer import constant

_OPTIONS = (
    "Tensor? image_sizes, int[] output_size, float[] scales, int sampling_ratio, bool aligned, "
    "bool position_sensitive, float gamma"
)


def pool_regions(
    features: Sequence[Tensor],
    boxes: Tensor,
    image_index: Tensor,
    levels: Tensor,
    *,
    output_size: tuple[int, int],
    scales: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
    image_sizes: Tensor | Sequence[tuple[int, int]] | None = None,
    offsets: Tensor | None = None,
    position_sensitive: bool = False,
    gamma: float = 0.0,
) -> Tensor:
    """Check what is given and run the op. See :func:`detkit.ops.roi_align` for the arguments that all forms share.

    Args:
        offsets: None, or (R, 2 G, h, w): dx and dy of each bin in units of the box, for each of G groups of channels.

    Raises:
        ValueError: the maps differ in more than height, width and memory order, or shapes, types or devices of the
            other tensors do not fit.
    """
    check_maps(features)
    check_bins(output_size)
    check_regions(boxes, image_index, levels, features[0].device)
    if image_sizes is not None and not isinstance(image_sizes, Tensor):
        image_sizes = constant(tuple((h, w) for h, w in image_sizes), features[0].device, torch.int64)
    if image_sizes is not None:
        check_sizes(image_sizes, features[0])
    if len(features) != len(scales):
        raise ValueError(f"{len(features)} feature maps but {len(scales)} scales")
    bins = output_size[0] * output_size[1]
    channels = features[0].shape[1]
    if position_sensitive and channels % bins:
        raise ValueError(f"{channels} channels do not divide into {output_size[0]} x {output_size[1]} bins")
    if offsets is not None:
        check_device("offsets", offsets, features[0].device)
        groups = offsets.shape[1] // 2 if offsets.ndim == 4 else 0
        if offsets.shape != (boxes.shape[0], 2 * groups, *output_size) or groups == 0:
            raise ValueError(
                f"offsets must be ({len(boxes)}, 2 G, {output_size[0]}, {output_size[1]}), not {tuple(offsets.shape)}"
            )
        out_channels = channels // bins if position_sensitive else channels
        if out_channels % groups:
            raise ValueError(f"{out_channels} channels do not divide into the {groups} groups of the offsets")
    return torch.ops.detkit.region_pooling(
        list(features), boxes.detach(), image_index, levels, offsets,
        image_sizes, list(output_size), list(scales), sampling_ratio, aligned, position_sensitive, gamma,
    )  # fmt: skip


@registered(
    "region_pooling",
    f"(Tensor[] features, Tensor boxes, Tensor image_index, Tensor levels, Tensor? offsets, {_OPTIONS}) -> Tensor",
)
def _forward(
    features: Sequence[Tensor],
    boxes: Tensor,
    image_index: Tensor,
    levels: Tensor,
    offsets: Tensor | None,
    *options: Any,
) -> Tensor:
    pooling = Pooling(*options)
    if len(features) <= kernels.MAX_LEVELS and usable(kernels.SOURCE, *features, boxes, image_index, levels, offsets):
        with or_in_pytorch(kernels.SOURCE, features[0]):
            return kernels.forward(features, boxes, image_index, levels, offsets, pooling)
    geometry = Geometry(_unflatten(_flattened(features)), boxes, image_index, levels, offsets, pooling)
    table = geometry.table(features)
    parts = [(part.member, weighted_rows(table, *part.map(grid)[:2])) for part, grid in geometry.parts()]
    if len(parts) == 1 and parts[0][0] is None:
        rows = parts[0][1]
    else:
        rows = table.new_zeros(geometry.num_rows, geometry.depth)
        for member, values in parts:
            assert member is not None
            rows.view(len(boxes), -1)[member] = values.view(len(member), -1)
    return geometry.grid_of(rows.to(features[0].dtype))


@_forward.register_fake
def _(
    features: Sequence[Tensor],
    boxes: Tensor,
    image_index: Tensor,
    levels: Tensor,
    offsets: Tensor | None,
    *options: Any,
) -> Tensor:
    pooling = Pooling(*options)
    h, w = pooling.output_size
    channels = features[0].shape[1] // pooling.channel_sets
    return empty_maps(features[0], boxes.shape[0], channels, h, w)


@registered(
    "region_pooling_backward",
    "(Tensor grad, Tensor[] features, int[] shapes, Tensor boxes, Tensor image_index, Tensor levels, "
    f"Tensor? offsets, {_OPTIONS}) -> Tensor[]",
)
def _backward(
    grad: Tensor,
    features: Sequence[Tensor],
    shapes: Sequence[int],
    boxes: Tensor,
    image_index: Tensor,
    levels: Tensor,
    offsets: Tensor | None,
    *options: Any,
) -> list[Tensor]:
    """Gradients of the maps, and last that of the offsets where there are any: ``features`` are needed only for it."""
    pooling = Pooling(*options)
    if len(pooling.scales) <= kernels.MAX_LEVELS and usable(kernels.SOURCE, grad, boxes, image_index, levels, offsets):
        with or_in_pytorch(kernels.SOURCE, grad):
            return kernels.backward(grad, features, _unflatten(shapes), boxes, image_index, levels, offsets, pooling)
    geometry = Geometry(_unflatten(shapes), boxes, image_index, levels, offsets, pooling)
    rows = geometry.rows_of(grad.double() if grad.dtype == torch.float64 else grad.float())
    into_table = None
    into_offsets = None if offsets is None else rows.new_zeros(offsets.shape)
    table = None if offsets is None else geometry.table(features)
    for part, grid in geometry.parts():
        indices, weights, y, x = part.map(grid)
        upstream = rows if part.member is None else rows.view(len(boxes), -1)[part.member].view(-1, rows.shape[1])
        scattered = scattered_rows(upstream, indices, weights, geometry.num_table_rows)
        into_table = scattered if into_table is None else into_table.add_(scattered)
        if table is not None and into_offsets is not None:
            of_offsets = part.offset_gradient(weight_gradient(upstream, table, indices), y, x, grid)
            into_offsets[slice(None) if part.member is None else part.member] = of_offsets
    if into_table is None:
        into_table = rows.new_zeros(geometry.num_table_rows, geometry.depth)
    grads = geometry.maps_of(into_table, grad.dtype)
    if offsets is not None and into_offsets is not None:
        grads.append(into_offsets.to(offsets.dtype))
    return grads


@_backward.register_fake
def _(
    grad: Tensor,
    features: Sequence[Tensor],
    shapes: Sequence[int],
    boxes: Tensor,
    image_index: Tensor,
    levels: Tensor,
    offsets: Tensor | None,
    *options: Any,
) -> list[Tensor]:
    grads = [empty_maps(grad, *shape) for shape in _unflatten(shapes)]
    return grads if offsets is None else [*grads, torch.empty_like(offsets, memory_format=torch.contiguous_format)]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, boxes, image_index, levels, offsets, image_sizes, *options = inputs
    ctx.shapes = _flattened(features)
    ctx.options, ctx.has_offsets = options, offsets is not None
    kept = [offsets, *features] if ctx.has_offsets else []
    ctx.save_for_backward(boxes, image_index, levels, image_sizes, *kept)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    boxes, image_index, levels, image_sizes, *kept = ctx.saved_tensors
    offsets, features = (kept[0], kept[1:]) if ctx.has_offsets else (None, [])
    grads = torch.ops.detkit.region_pooling_backward(
        grad, features, ctx.shapes, boxes, image_index, levels, offsets, image_sizes, *ctx.options
    )
    return (*grads, *([] if ctx.has_offsets else [None]))


def _inputs(features: Sequence[Tensor], boxes: Tensor, images: Tensor, levels: Tensor, offsets: Tensor | None, *_: Any):
    return (*features, offsets)


_forward.register_autograd(_differentiate, setup_context=_setup_context, inputs=_inputs)


def _flattened(features: Sequence[Tensor]) -> list[int]:
    return [side for f in features for side in f.shape]


def _unflatten(shapes: Sequence[int]) -> list[tuple[int, int, int, int]]:
    return [(shapes[i], shapes[i + 1], shapes[i + 2], shapes[i + 3]) for i in range(0, len(shapes), 4)]


class Geometry:
    """R boxes in cells of their own level, and what addresses that level's rows in the feature table.

    With G groups of offsets and position-sensitive channels, a cell has a row for each group and bin.
    """

    #: attributes that hold a value for each box
    _PER_BOX = ("finite", "x", "y", "w", "h", "height", "width", "row", "base")

    def __init__(
        self,
        shapes: Sequence[tuple[int, int, int, int]],
        boxes: Tensor,
        image_index: Tensor,
        levels: Tensor,
        offsets: Tensor | None,
        pooling: Pooling,
    ) -> None:
        dtype = torch.float64 if boxes.dtype == torch.float64 else torch.float32
        device = boxes.device
        self.pooling, self.shapes = pooling, shapes
        self.groups = 1 if offsets is None else offsets.shape[1] // 2
        self.offsets = None if offsets is None else offsets.to(dtype).unflatten(1, (self.groups, 2))
        self.member: Tensor | None = None
        extents = torch.tensor([s[2:] for s in shapes], device=device)
        cells = torch.tensor([s[0] * s[2] * s[3] for s in shapes], device=device)
        first_cell = cells.cumsum(0) - cells
        self.finite = boxes.isfinite().all(dim=1)
        scale = torch.tensor(pooling.scales, dtype=dtype, device=device)[levels]
        shift = 0.5 if pooling.aligned else 0.0
        corners = torch.where(self.finite[:, None], boxes.to(dtype), 0) * scale[:, None] - shift
        extent = extents[levels]
        self.row, self.base = extent[:, 1], first_cell[levels] + image_index * extent[:, 0] * extent[:, 1]
        if pooling.image_sizes is not None:
            sizes = pooling.image_sizes[image_index].to(dtype)
            extent = torch.minimum(extent, _cells_of(sizes, scale[:, None]))
        self.height, self.width = extent.unbind(1)
        self.x, self.y = corners[:, 0], corners[:, 1]
        smallest = 0.0 if pooling.aligned else 1.0
        self.w = (corners[:, 2] - corners[:, 0]).clamp(min=smallest)
        self.h = (corners[:, 3] - corners[:, 1]).clamp(min=smallest)

    @property
    def num_table_rows(self) -> int:
        """Of all levels' cells, one for each group of channels that has samples of its own."""
        return sum(b * h * w for b, _, h, w in self.shapes) * self.groups * self.pooling.channel_sets

    @property
    def depth(self) -> int:
        """Columns of the table: channels that share their samples."""
        return self.shapes[0][1] // (self.groups * self.pooling.channel_sets)

    @property
    def num_rows(self) -> int:
        """Of the result: one for each region, bin and group."""
        h, w = self.pooling.output_size
        return len(self.x) * self.groups * h * w

    def table(self, features: Sequence[Tensor]) -> Tensor:
        """Rows (cells * P * G, D) of all maps, whose channels are ordered (P, G, D)."""
        return feature_table(features).view(-1, self.depth)

    def maps_of(self, table: Tensor, dtype: torch.dtype) -> list[Tensor]:
        """The maps (B, C, H, W) whose :meth:`table` this is, in memory of their own, channels-last."""
        sets = self.pooling.channel_sets
        maps = []
        cells = [b * h * w * self.groups * sets for b, _, h, w in self.shapes]
        for part, (b, c, h, w) in zip(table.split(cells), self.shapes, strict=True):
            part = part.view(b, h, w, c).to(dtype)
            shared = part.untyped_storage().data_ptr() == table.untyped_storage().data_ptr()
            maps.append(as_maps(part.clone() if shared and len(cells) > 1 else part.contiguous(), b, c, h, w))
        return maps

    def grid_of(self, rows: Tensor) -> Tensor:
        """The output (R, G * D, h, w), channels-last, from rows (R * G * h * w, D)."""
        r, (h, w) = len(self.x), self.pooling.output_size
        grid = rows.view(r, self.groups, h, w, self.depth).permute(0, 2, 3, 1, 4)
        return as_maps(grid.contiguous(), r, self.groups * self.depth, h, w)

    def rows_of(self, grid: Tensor) -> Tensor:
        """The inverse of :meth:`grid_of`."""
        r, (h, w) = len(self.x), self.pooling.output_size
        rows = grid.permute(0, 2, 3, 1).reshape(r, h, w, self.groups, self.depth)
        return rows.permute(0, 3, 1, 2, 4).reshape(-1, self.depth)

    def parts(self) -> Iterator[tuple[Geometry, tuple[int, int]]]:
        """The boxes with the grid of samples in each of their bins; boxes that need the same grid go together."""
        if self.pooling.sampling_ratio > 0:
            yield self, (self.pooling.sampling_ratio, self.pooling.sampling_ratio)
            return
        h, w = self.pooling.output_size
        # A bin larger than its map has no more samples than the map has cells: a box may be of any size, memory not.
        rows = torch.minimum((self.h / h).ceil(), self.height).long()
        columns = torch.minimum((self.w / w).ceil(), self.width).long()
        grids, member = torch.unique(torch.stack([rows, columns], dim=1), dim=0, return_inverse=True)
        for i, (gh, gw) in enumerate(grids.tolist()):
            if gh > 0 and gw > 0:
                yield self._select((member == i).nonzero().squeeze(1)), (gh, gw)

    def _select(self, member: Tensor) -> Geometry:
        part = object.__new__(Geometry)
        vars(part).update(vars(self))
        for name in self._PER_BOX:
            setattr(part, name, getattr(self, name)[member])
        part.offsets = None if self.offsets is None else self.offsets[member]
        part.member = member
        return part

    def map(self, grid: tuple[int, int]) -> tuple[Tensor, Tensor, Taps, Taps]:
        """Indices and weights (R * G * h * w, taps) of the sparse map, and the taps of both axes that make them."""
        (h, w), (gh, gw) = self.pooling.output_size, grid
        y = _positions(self.y, self.h, h, gh)[:, :, None, :, None]
        x = _positions(self.x, self.w, w, gw)[:, :, None, None, :]
        if self.offsets is not None:
            shift = self.pooling.gamma * self.offsets
            x = x + shift[:, :, 0] * _per_box(self.w)
            y = y + shift[:, :, 1] * _per_box(self.h)
        y, x = border_taps(y, _per_box(self.height)), border_taps(x, _per_box(self.width))
        rows = y.index.flatten(0, 1) * _per_box(self.row) + _per_box(self.base)
        indices = outer_index(rows, x.index.flatten(0, 1))  # (taps, R, G or 1, h, w)
        sets = self.pooling.channel_sets
        if self.groups * sets > 1:
            group = torch.arange(self.groups, device=indices.device).view(-1, 1, 1)
            bins = torch.arange(sets, device=indices.device).view((h, w) if sets > 1 else (1, 1))
            indices = (indices * sets + bins) * self.groups + group
        weights = outer(y.weight.flatten(0, 1) * _per_box(self.finite) / (gh * gw), x.weight.flatten(0, 1))
        return indices.flatten(1).t().contiguous(), weights.flatten(1).t().contiguous(), y, x

    def offset_gradient(self, of_weights: Tensor, y: Taps, x: Taps, grid: tuple[int, int]) -> Tensor:
        """The gradient (R, 2 G, h, w) of the offsets from that of the weights."""
        (h, w), (gh, gw) = self.pooling.output_size, grid
        of_weights = of_weights.t().reshape(of_weights.shape[1], len(self.x), self.groups, h, w)
        scale = self.pooling.gamma / (gh * gw) * _per_box(self.finite)
        by_x = outer(y.weight.flatten(0, 1), x.slope.flatten(0, 1)).mul_(of_weights).sum(0) * scale
        by_y = outer(y.slope.flatten(0, 1), x.weight.flatten(0, 1)).mul_(of_weights).sum(0) * scale
        return torch.stack([by_x * _per_box(self.w), by_y * _per_box(self.h)], dim=2).flatten(1, 2)


def _cells_of(sides: Tensor, scale: Tensor) -> Tensor:
    """Whole cells, int64, under ``sides`` px; one more would be padding."""
    return (sides * scale * UNROUNDED).ceil().long()


def _per_box(value: Tensor) -> Tensor:
    """Values (R,) to go with any (..., R, G, h, w)."""
    return value[:, None, None, None]


def _positions(start: Tensor, length: Tensor, bins: int, samples: int) -> Tensor:
    """Where the samples (samples, R, bins) of each bin fall along one axis, in cells."""
    offsets = (torch.arange(bins * samples, device=start.device, dtype=start.dtype) + 0.5) / samples
    offsets = offsets.view(bins, samples).t()[:, None]
    return start[:, None] + length[:, None] / bins * offsets
