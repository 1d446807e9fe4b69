"""Deformable convolution v1 (Dai et al., ICCV 2017, eq. 2) and v2, modulated (Zhu et al., CVPR 2019, eq. 1).

Tap k of the kernel reads the map at ``p + p_k + offset_k``, bilinearly, and v2 scales what it reads by ``mask_k``. As a
sparse map the taps become rows of a table, and the rest is a matrix product; ``cuda/deform_conv.cu`` is the kernel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from detkit.ops.checks import check_kernel
from detkit.ops.cuda import deform_conv as kernels
from detkit.ops.cuda.compile import or_in_pytorch, usable
from detkit.ops.geometry import ConvSizes
from detkit.ops.register import registered
from detkit.ops.sampling import (
    Taps,
    as_maps,
    empty_maps,
    feature_table,
    outer,
    outer_index,
    scattered_rows,
    weight_gradient,
    weighted_rows,
    zero_taps,
)
from detkit.utils.precision import widened

#: Numbers in the sampled rows that are made at once. Their 16 MB in float32 are memory that the allocator hands out
#: again; beyond 32 MB glibc maps fresh pages for each call, and zeroing those takes longer than sampling into them.
_CHUNK = 1 << 22


def deform_conv(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
) -> Tensor:
    """Convolve ``x`` with a kernel whose taps are moved, and with ``mask`` also scaled, at every place.

    Under autocast the maps and weights are cast as a convolution's are, and the offsets are not: a bfloat16 has 8 bits
    for a place.

    Args:
        x: (B, C, H, W), any layout; beyond its edge it is zero.
        offset: (B, 2 G k_h k_w, H', W') in cells; y then x for each tap, taps row by row, for each of G equal groups of
            channels: torchvision's order. A tap whose place is not finite reads nothing.
        weight: (C', C / groups, k_h, k_w).
        bias: (C',) or None.
        mask: (B, G k_h k_w, H', W') or None for v1.
        stride, padding, dilation: as of a convolution, vertical and horizontal.

    Returns:
        (B, C', H', W') in channels-last memory order, of the type of ``x``.

    Raises:
        ValueError: shapes, types or devices do not fit together, or the kernel does not move as a convolution's can.
    """
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):  # not on "meta"
        dtype = torch.get_autocast_dtype(device)
        x, weight, bias = _cast(x, dtype), _cast(weight, dtype), None if bias is None else _cast(bias, dtype)
    check_kernel(x, offset, mask, weight, bias)
    sizes = ConvSizes.of(x.shape, weight.shape, offset.shape, stride, padding, dilation)
    sizes.check(offset, mask, bias)
    return torch.ops.detkit.deform_conv(x, offset, mask, weight, bias, list(stride), list(padding), list(dilation))


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """As autocast does it, which leaves float64 and whole numbers as they are."""
    return x.to(dtype) if x.is_floating_point() and x.dtype != torch.float64 else x


class Chunk(NamedTuple):
    """What is sampled at once: images, and lines of their output."""

    images: slice
    lines: slice

    def of(self, places: Tensor) -> Tensor:
        """The chunk of a value (B, ..., H', W') for each place."""
        return places[self.images, ..., self.lines, :]


def _places(size: int, kernel: int, axis: int, sizes: ConvSizes, like: Tensor) -> Tensor:
    """Where the unmoved taps (kernel, size) fall along one axis."""
    place = torch.arange(size, device=like.device, dtype=like.dtype) * sizes.stride[axis]
    tap = torch.arange(kernel, device=like.device, dtype=like.dtype)[:, None] * sizes.dilation[axis]
    return place - sizes.padding[axis] + tap


def _chunks(sizes: ConvSizes) -> Iterator[Chunk]:
    """Runs of images, or of the lines of one, whose sampled rows fit the budget; in the output's order."""
    h, w = sizes.output
    line = max(w * sizes.num_taps * sizes.channels, 1)
    lines = min(max(_CHUNK // line, 1), max(h, 1))
    images = max(_CHUNK // (line * max(h, 1)), 1)
    for first in range(0, max(sizes.batch, 1), images):
        for top in range(0, max(h, 1), lines):
            yield Chunk(slice(first, min(first + images, sizes.batch)), slice(top, min(top + lines, h)))


def _taps(sizes: ConvSizes, offset: Tensor, chunk: Chunk) -> tuple[Taps, Taps]:
    """Taps of both axes at (b, G, k, h, w) for the offsets (B, 2 G k, H', W') of all places."""
    moved = widened(chunk.of(offset)).unflatten(1, (sizes.offset_groups, *sizes.kernel, 2))
    y = _places(sizes.output[0], sizes.kernel[0], 0, sizes, moved)[:, chunk.lines]
    x = _places(sizes.output[1], sizes.kernel[1], 1, sizes, moved)
    y = (y[:, None, :, None] + moved[:, :, :, :, 0]).flatten(2, 3)
    x = (x[:, None, :] + moved[:, :, :, :, 1]).flatten(2, 3)
    return zero_taps(y, sizes.height), zero_taps(x, sizes.width)


def _cells(sizes: ConvSizes, chunk: Chunk) -> slice:
    """The chunk's images in the table (B * H * W * G, C / G)."""
    image = sizes.height * sizes.width * sizes.offset_groups
    return slice(chunk.images.start * image, chunk.images.stop * image)


def _addresses(sizes: ConvSizes, y: Taps, x: Taps) -> Tensor:
    """Indices (rows, 4) into the :func:`_cells` of the taps' images."""
    image = torch.arange(y.index.shape[1], device=y.index.device).view(-1, 1, 1, 1, 1)
    rows = (y.index + image * sizes.height) * sizes.width
    group = torch.arange(sizes.offset_groups, device=y.index.device).view(-1, 1, 1, 1)
    return _by_row(outer_index(rows, x.index) * sizes.offset_groups + group)


def _matrix(sizes: ConvSizes, weight: Tensor) -> Tensor:
    """The kernel (groups, C' / groups, k * C / groups); free where it is channels-last."""
    return weight.permute(0, 2, 3, 1).reshape(sizes.groups, sizes.out_channels // sizes.groups, -1)


def _columns(sizes: ConvSizes, rows: Tensor) -> Tensor:
    """Sampled rows (places * k * G, C / G) as (groups, places, k * C / groups)."""
    split = rows.view(-1, sizes.num_taps, sizes.groups, sizes.channels // sizes.groups)
    return split.permute(2, 0, 1, 3).flatten(2)


def _rows(sizes: ConvSizes, columns: Tensor) -> Tensor:
    """The inverse of :func:`_columns`."""
    split = columns.view(sizes.groups, -1, sizes.num_taps, sizes.channels // sizes.groups)
    return split.permute(1, 2, 0, 3).reshape(-1, sizes.channels // sizes.offset_groups)


def _tap_weights(y: Taps, x: Taps, mask: Tensor | None) -> Tensor:
    """(4, b, G, k, h, w); ``mask`` is without the 4."""
    weights = outer(y.weight, x.weight)
    return weights if mask is None else weights.mul_(mask)


def _by_row(values: Tensor) -> Tensor:
    """(rows, 4) from (4, b, G, k, h, w): rows are places, at each its taps, at each the groups."""
    return values.permute(1, 4, 5, 3, 2, 0).reshape(-1, 4)


def _mask_of(mask: Tensor | None, sizes: ConvSizes, chunk: Chunk) -> Tensor | None:
    """(b, G, k, h, w) from the op's (B, G k, H', W')."""
    if mask is None:
        return None
    return widened(chunk.of(mask)).unflatten(1, (sizes.offset_groups, sizes.num_taps))


@registered(
    "deform_conv",
    "(Tensor x, Tensor offset, Tensor? mask, Tensor weight, Tensor? bias, int[] stride, int[] padding, "
    "int[] dilation) -> Tensor",
)
def _forward(
    x: Tensor, offset: Tensor, mask: Tensor | None, weight: Tensor, bias: Tensor | None, *moves: Sequence[int]
) -> Tensor:
    sizes = ConvSizes.of(x.shape, weight.shape, offset.shape, *moves)
    if sizes.num_cells > 0 and usable(kernels.SOURCE, x, offset, mask, weight, bias):
        with or_in_pytorch(kernels.SOURCE, x):
            return kernels.forward(x, offset, mask, weight, bias, sizes)
    out = []
    matrix = widened(_matrix(sizes, weight)).transpose(1, 2)
    table = feature_table([x]).view(-1, sizes.channels // sizes.offset_groups)
    for chunk in _chunks(sizes):
        taps = _taps(sizes, offset, chunk)
        weights = _by_row(_tap_weights(*taps, _mask_of(mask, sizes, chunk)))
        rows = weighted_rows(table[_cells(sizes, chunk)], _addresses(sizes, *taps), weights)
        product = torch.bmm(_columns(sizes, rows), matrix).transpose(0, 1).flatten(1)
        out.append(product if bias is None else product.add_(widened(bias)))
    return as_maps(torch.cat(out).to(x.dtype), sizes.batch, sizes.out_channels, *sizes.output)


@_forward.register_fake
def _(
    x: Tensor, offset: Tensor, mask: Tensor | None, weight: Tensor, bias: Tensor | None, *moves: Sequence[int]
) -> Tensor:
    sizes = ConvSizes.of(x.shape, weight.shape, offset.shape, *moves)
    return empty_maps(x, sizes.batch, sizes.out_channels, *sizes.output)


@registered(
    "deform_conv_backward",
    "(Tensor grad, Tensor x, Tensor offset, Tensor? mask, Tensor weight, int[] stride, int[] padding, "
    "int[] dilation) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _backward(
    grad: Tensor, x: Tensor, offset: Tensor, mask: Tensor | None, weight: Tensor, *moves: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, offset, mask (empty without one) and weight, in its layout. Rows are sampled again, not kept."""
    sizes = ConvSizes.of(x.shape, weight.shape, offset.shape, *moves)
    if sizes.num_cells > 0 and usable(kernels.SOURCE, grad, x, offset, mask, weight):
        with or_in_pytorch(kernels.SOURCE, grad):
            return kernels.backward(grad, x, offset, mask, weight, sizes)
    matrix = widened(_matrix(sizes, weight)).contiguous()
    table = feature_table([x]).view(-1, sizes.channels // sizes.offset_groups)
    of_matrix, of_table = torch.zeros_like(matrix), torch.zeros_like(table)
    of_offset = table.new_empty(offset.shape)
    of_mask = table.new_empty(0 if mask is None else mask.shape)
    for chunk in _chunks(sizes):
        taps = _taps(sizes, offset, chunk)
        scale = _mask_of(mask, sizes, chunk)
        indices, weights = _addresses(sizes, *taps), _by_row(_tap_weights(*taps, scale))
        cells = table[_cells(sizes, chunk)]
        columns = _columns(sizes, weighted_rows(cells, indices, weights))
        upstream = widened(chunk.of(grad)).permute(0, 2, 3, 1).reshape(-1, *matrix.shape[:2]).transpose(0, 1)
        of_matrix.baddbmm_(upstream.transpose(1, 2), columns)
        of_rows = _rows(sizes, torch.bmm(upstream, matrix, out=columns))
        of_table[_cells(sizes, chunk)] += scattered_rows(of_rows, indices, weights, len(cells))
        by_offset, by_mask = _place_gradients(weight_gradient(of_rows, cells, indices), *taps, scale)
        chunk.of(of_offset).copy_(by_offset)
        if mask is not None:
            chunk.of(of_mask).copy_(by_mask)
    b, c, h, w = x.shape
    by_x = as_maps(of_table.view(-1, c).to(x.dtype), b, c, h, w)
    by_weight = torch.empty_like(weight).copy_(of_matrix.view(-1, *sizes.kernel, c // sizes.groups).permute(0, 3, 1, 2))
    return by_x, of_offset.to(offset.dtype), of_mask if mask is None else of_mask.to(mask.dtype), by_weight


def _place_gradients(of_weights: Tensor, y: Taps, x: Taps, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Gradients of the offset (b, 2 G k, h, w) and of the mask (b, G k, h, w) from that of the taps' weights."""
    b, groups, taps, h, w = y.weight.shape[1:]
    of_weights = of_weights.view(b, h, w, taps, groups, 4).permute(5, 0, 4, 3, 1, 2).contiguous()
    by_y = outer(y.slope, x.weight).mul_(of_weights).sum(0)
    by_x = outer(y.weight, x.slope).mul_(of_weights).sum(0)
    by_offset = torch.stack([by_y, by_x], dim=3)
    by_mask = outer(y.weight, x.weight).mul_(of_weights).sum(0)
    if mask is not None:
        by_offset = by_offset * mask.unsqueeze(3)
    return by_offset.flatten(1, 3), by_mask.flatten(1, 2)


@_backward.register_fake
def _(
    grad: Tensor, x: Tensor, offset: Tensor, mask: Tensor | None, weight: Tensor, *moves: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    b, c, h, w = x.shape
    return (
        empty_maps(x, b, c, h, w),
        offset.new_empty(offset.shape),
        offset.new_empty(0) if mask is None else mask.new_empty(mask.shape),
        torch.empty_like(weight),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, offset, mask, weight, bias, *ctx.moves = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(x, offset, mask, weight)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, offset, mask, weight = ctx.saved_tensors
    of_x, of_offset, of_mask, of_weight = torch.ops.detkit.deform_conv_backward(
        grad, x, offset, mask, weight, *ctx.moves
    )
    of_bias = None if ctx.bias_dtype is None else widened(grad).sum(dim=(0, 2, 3)).to(ctx.bias_dtype)
    return of_x, of_offset, None if mask is None else of_mask, of_weight, of_bias


_forward.register_autograd(_differentiate, setup_context=_setup_context, inputs=lambda *arguments: arguments[:5])


def deform_conv_reference(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
) -> Tensor:
    """:func:`deform_conv` as slow, obvious loops: the specification that every faster form is tested against."""
    batch, _, out_h, out_w = offset.shape
    out_channels, per_group, kernel_h, kernel_w = weight.shape
    num_taps = kernel_h * kernel_w
    offset_groups = offset.shape[1] // (2 * num_taps)
    groups = x.shape[1] // per_group
    channels = x.shape[1] // offset_groups
    out = x.new_zeros(batch, out_channels, out_h, out_w)
    for b in range(batch):
        for i in range(out_h):
            for j in range(out_w):
                for k in range(num_taps):
                    read = x.new_zeros(x.shape[1])
                    for g in range(offset_groups):
                        tap = g * num_taps + k
                        dy, dx = offset[b, 2 * tap : 2 * tap + 2, i, j].tolist()
                        place_y = i * stride[0] - padding[0] + k // kernel_w * dilation[0] + dy
                        place_x = j * stride[1] - padding[1] + k % kernel_w * dilation[1] + dx
                        run = slice(g * channels, (g + 1) * channels)
                        read[run] = _zero_padded(x[b, run], place_y, place_x)
                        if mask is not None:
                            read[run] *= mask[b, tap, i, j]
                    kernel = weight[:, :, k // kernel_w, k % kernel_w].view(groups, -1, per_group)
                    out[b, :, i, j] += (kernel @ read.view(groups, per_group, 1)).view(-1)
    return out if bias is None else out + bias[:, None, None]


def _zero_padded(feature: Tensor, y: float, x: float) -> Tensor:
    """The value (C,) of ``feature`` (C, H, W), continued by zeros, at a point given in cells."""
    h, w = feature.shape[1:]
    value = feature.new_zeros(feature.shape[0])
    for row in range(h):
        for column in range(w):
            weight = max(0.0, 1 - abs(y - row)) * max(0.0, 1 - abs(x - column))  # Dai et al., eq. 4
            if weight > 0:
                value = value + weight * feature[:, row, column]
    return value
