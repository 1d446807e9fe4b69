"""Launches deform_conv.cu: the arguments of the op ``detkit::deform_conv`` in the kernels' terms."""

from __future__ import annotations

import functools
from math import gcd

import numpy as np
import torch
from torch import Tensor

from detkit.ops.cuda.compile import TYPES, deterministic, fixed_point, launch, settled
from detkit.ops.geometry import ConvSizes
from detkit.ops.sampling import as_maps, empty_maps

SOURCE = "deform_conv.cu"
_ROWS = 64  # places (or, for the weights' gradient, channels) of a block: BM in tiles.cuh
_THREADS = (256, 1, 1)

#: Blocks that fill a large GPU (an H200 has 132 multiprocessors) about four times over: the weights' gradient has few
#: tiles of its own and is cut along the places until there are so many.
_BLOCKS = 512


def forward(
    x: Tensor, offset: Tensor, mask: Tensor | None, weight: Tensor, bias: Tensor | None, sizes: ConvSizes
) -> Tensor:
    """The op ``detkit::deform_conv`` on a GPU; see :func:`detkit.ops.deform_conv` for shapes."""
    x, out = _near(x, sizes), empty_maps(x, sizes.batch, sizes.out_channels, *sizes.output)
    kernel = weight.to(x.dtype).permute(0, 2, 3, 1).contiguous()  # free where the weights are channels-last
    columns = sizes.out_channels // sizes.groups
    tile = _tile(columns, x.dtype)
    arguments = [
        x, *_moves(offset, mask), kernel, None if bias is None else bias.to(x.dtype).contiguous(), out,
        *_sizes(x.stride(), sizes),
    ]  # fmt: skip
    grid = (_blocks(sizes), sizes.groups * -(-columns // tile), 1)
    _launch("deform_forward", grid, arguments, x, tile, packed=_packed(x, kernel, sizes=sizes))
    return out


def backward(
    grad: Tensor, x: Tensor, offset: Tensor, mask: Tensor | None, weight: Tensor, sizes: ConvSizes
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the map, the offsets, the mask (empty without one) and the weights."""
    x = _near(x, sizes)
    grad = grad.to(x.dtype).permute(0, 2, 3, 1).contiguous()  # free where it is channels-last
    moves = _moves(offset, mask)
    of_x, of_offset, of_mask = _backward_data(grad, x, moves, weight, sizes)
    by_mask = offset.new_empty(0) if mask is None or of_mask is None else of_mask.view(mask.shape).to(mask.dtype)
    of_weight = _backward_weight(grad, x, moves, sizes)
    return of_x, of_offset.view(offset.shape).to(offset.dtype), by_mask, torch.empty_like(weight).copy_(of_weight)


def _backward_data(
    grad: Tensor, x: Tensor, moves: list[Tensor | None], weight: Tensor, sizes: ConvSizes
) -> tuple[Tensor, Tensor, Tensor | None]:
    offset, mask = moves
    assert offset is not None
    columns = sizes.out_channels // sizes.groups
    kernel = weight.to(x.dtype).unflatten(0, (sizes.groups, columns)).permute(3, 4, 0, 2, 1).contiguous()
    unit, inverse = _unit(grad, mask, weight, sizes) if deterministic() else (None, None)
    dtype = torch.float32 if unit is None else torch.int64
    sums = torch.zeros(x.numel(), dtype=dtype, device=x.device)
    of_offset, of_mask = torch.empty_like(offset), None if mask is None else torch.empty_like(mask)
    arguments = [grad, x, offset, mask, kernel, sums, of_offset, of_mask, unit, *_sizes(x.stride(), sizes)]
    grid = (_blocks(sizes), sizes.num_taps * sizes.offset_groups, 1)
    packed = _packed(x, grad, kernel, sums, sizes=sizes)
    _launch("deform_backward_data", grid, arguments, x, 64, packed=packed, fixed=unit is not None)
    return as_maps(settled(sums, inverse, x.dtype), *x.shape), of_offset, of_mask


def _backward_weight(grad: Tensor, x: Tensor, moves: list[Tensor | None], sizes: ConvSizes) -> Tensor:
    """The gradient (C', C / groups, k_h, k_w), float32."""
    columns, segment = sizes.out_channels // sizes.groups, _segment(sizes)
    tile = _tile(columns, x.dtype)
    tiles = sizes.channels // segment * -(-segment // _ROWS), sizes.num_taps * -(-columns // tile)
    places = sizes.batch * sizes.output[0] * sizes.output[1]
    slices = max(1, min(_BLOCKS // (tiles[0] * tiles[1]), places // 256))
    each = -(-places // slices)
    shape = (slices, *sizes.kernel, sizes.groups, sizes.channels // sizes.groups, columns)
    parts = torch.zeros(shape, dtype=torch.float32, device=x.device)
    arguments = [grad, x, *moves, parts, np.int32(each), *_sizes(x.stride(), sizes)]
    grid = (*tiles, slices) if places else (0, 0, 0)
    _launch("deform_backward_weight", grid, arguments, x, tile, packed=_packed(x, grad, sizes=sizes))
    return parts.sum(0).permute(2, 4, 3, 0, 1).flatten(0, 1)


def _unit(grad: Tensor, mask: Tensor | None, weight: Tensor, sizes: ConvSizes) -> tuple[Tensor, Tensor]:
    """For fixed-point sums of the map's gradient: what a sample receives at most, times the number of samples."""
    if grad.numel() == 0:
        return fixed_point(grad.new_zeros(()))
    received = weight.float().abs().unflatten(0, (sizes.groups, -1)).sum(1).amax() * grad.abs().amax().float()
    if mask is not None:
        received = received * mask.abs().amax()
    places = sizes.batch * sizes.output[0] * sizes.output[1]
    return fixed_point(received * (2 * places * sizes.num_taps))  # twice: the products are rounded


def _launch(
    name: str,
    grid: tuple[int, int, int],
    arguments: list[Tensor | np.generic | None],
    x: Tensor,
    tile: int,
    *,
    packed: bool,
    fixed: bool = False,
) -> None:
    launch(
        SOURCE, name, grid, _THREADS, arguments, TYPE=TYPES[x.dtype], TENSOR=int(x.dtype != torch.float32), BN=tile,
        PACKED=int(packed), FIXED=int(fixed),
    )  # fmt: skip


def _tile(columns: int, dtype: torch.dtype) -> int:
    """Columns of a block: all of them where its shared memory and registers allow, so that nothing is sampled twice."""
    widest = 128 if dtype == torch.float32 else 256
    return next((n for n in (64, 128) if columns <= n), widest)


def _segment(sizes: ConvSizes) -> int:
    return gcd(sizes.channels // sizes.groups, sizes.channels // sizes.offset_groups)


def _blocks(sizes: ConvSizes) -> int:
    return -(-sizes.batch * sizes.output[0] * sizes.output[1] // _ROWS)


def _near(x: Tensor, sizes: ConvSizes) -> Tensor:
    """``x`` in channels-last order where that lets it be read 16 bytes at a time.

    It is read about 4 times for each tap of the kernel, and copied once.
    """
    lengths = (_segment(sizes), sizes.out_channels // sizes.groups)
    wanted = x.stride(1) != 1 and all(length % 8 == 0 for length in lengths)
    return x.contiguous(memory_format=torch.channels_last) if wanted else x


def _packed(x: Tensor, *others: Tensor, sizes: ConvSizes) -> bool:
    """Whether all can be read 16 bytes at a time: see deform_conv.cu."""
    lengths = (_segment(sizes), sizes.out_channels // sizes.groups, *(x.stride(i) for i in (0, 2, 3)))
    aligned = all(t.data_ptr() % 16 == 0 for t in (x, *others))
    return aligned and x.stride(1) == 1 and all(length % 8 == 0 for length in lengths)


def _moves(offset: Tensor, mask: Tensor | None) -> list[Tensor | None]:
    return [offset.float().contiguous(), None if mask is None else mask.float().contiguous()]


@functools.lru_cache(maxsize=1024)
def _sizes(strides: tuple[int, ...], sizes: ConvSizes) -> tuple[np.generic, ...]:
    """The kernels' CONV_PARAMETERS: the same in each step of most trainings, and slow to make."""
    counts = (
        sizes.batch * sizes.output[0] * sizes.output[1], sizes.height, sizes.width, *sizes.output, sizes.channels,
        sizes.out_channels, sizes.groups, sizes.offset_groups, _segment(sizes), *sizes.kernel, *sizes.stride,
        *sizes.padding, *sizes.dilation,
    )  # fmt: skip
    return (*(np.int64(s) for s in strides), *(np.int32(n) for n in counts))
