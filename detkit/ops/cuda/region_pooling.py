"""Launches region_pooling.cu: the arguments of the op ``detkit::region_pooling`` in the kernels' terms."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from detkit.ops.cuda.compile import TYPES, deterministic, fixed_point, launch, settled
from detkit.ops.geometry import Pooling
from detkit.ops.sampling import as_maps, empty_maps

SOURCE = "region_pooling.cu"

#: maps that a kernel takes
MAX_LEVELS = 8


def forward(
    features: Sequence[Tensor], boxes: Tensor, images: Tensor, levels: Tensor, offsets: Tensor | None, pooling: Pooling
) -> Tensor:
    """The op ``detkit::region_pooling`` on a GPU; see :func:`detkit.ops.region_pooling.pool_regions` for shapes."""
    sets, groups = pooling.channel_sets, 1 if offsets is None else offsets.shape[1] // 2
    channels = features[0].shape[1] // sets
    h, w = pooling.output_size
    out = empty_maps(features[0], len(boxes), channels, h, w)
    features = near(features, _reads(len(boxes), pooling))
    shapes = [f.shape for f in features]
    arguments = [
        *_levels(features, [None] * len(features), shapes, pooling), *_places(boxes, images, levels, offsets, pooling),
        out, *_sizes(channels, groups, pooling),
    ]  # fmt: skip
    vec = _vector(features, channels // groups)
    launch(
        SOURCE, "region_forward", _grid(boxes, pooling), (32, 8, 1), arguments,
        TYPE=TYPES[out.dtype], VEC=vec, FIXED=0, LEVELS=len(features),
    )  # fmt: skip
    return out


def backward(
    grad: Tensor,
    features: Sequence[Tensor],
    shapes: Sequence[tuple[int, int, int, int]],
    boxes: Tensor,
    images: Tensor,
    levels: Tensor,
    offsets: Tensor | None,
    pooling: Pooling,
) -> list[Tensor]:
    """Gradients of the maps, and last that of the offsets where there are any."""
    sets, groups = pooling.channel_sets, 1 if offsets is None else offsets.shape[1] // 2
    channels = shapes[0][1] // sets
    unit, inverse = None, None
    if deterministic():
        largest = grad.abs().amax() if grad.numel() else grad.new_zeros(())
        unit, inverse = fixed_point(largest.float() * (len(boxes) * grad.shape[2] * grad.shape[3]))
    dtype = torch.float32 if unit is None else torch.int64
    sums = [as_maps(torch.zeros(b * h * w * c, dtype=dtype, device=grad.device), b, c, h, w) for b, c, h, w in shapes]
    offset_grad = None if offsets is None else torch.empty_like(offsets, dtype=torch.float32).contiguous()
    features = near(features, _reads(len(boxes), pooling))
    maps = [None] * len(sums) if offsets is None else features
    vec = _vector(features, channels // groups, element=grad)
    arguments = [
        *_levels(maps, sums, shapes, pooling), *_places(boxes, images, levels, offsets, pooling), grad,
        *(np.int64(s) for s in grad.stride()), offset_grad, unit, *_sizes(channels, groups, pooling),
    ]  # fmt: skip
    launch(
        SOURCE, "region_backward", _grid(boxes, pooling), (32, 8, 1), arguments,
        TYPE=TYPES[grad.dtype], VEC=vec, FIXED=int(unit is not None), LEVELS=len(sums),
    )  # fmt: skip
    grads = [_like(settled(s, inverse, grad.dtype), s) for s in sums]
    if offsets is not None and offset_grad is not None:
        grads.append(offset_grad.to(offsets.dtype))
    return grads


def near(maps: Sequence[Tensor], reads: float) -> Sequence[Tensor]:
    """The maps in channels-last order, in which the lanes of a warp read side by side, where more is read than copied.

    Args:
        reads: cells that are read of each channel, of all maps together.
    """
    cells = sum(m.shape[0] * m.shape[2] * m.shape[3] for m in maps)
    if reads < cells:
        return maps
    return [m if m.stride(1) == 1 else m.contiguous(memory_format=torch.channels_last) for m in maps]


def _reads(num_boxes: int, pooling: Pooling) -> float:
    """Cells that are read of each channel, one sample a bin where boxes choose their number."""
    h, w = pooling.output_size
    return 4 * max(pooling.sampling_ratio, 1) ** 2 * num_boxes * h * w / pooling.channel_sets


def _like(x: Tensor, channels_last: Tensor) -> Tensor:
    return x if x.stride() == channels_last.stride() else empty_maps(x, *channels_last.shape).copy_(x)


def _grid(boxes: Tensor, pooling: Pooling) -> tuple[int, int, int]:
    bins = pooling.output_size[0] * pooling.output_size[1]
    return (len(boxes), (bins + 7) // 8, 1)


def _levels(
    maps: Sequence[Tensor | None], sums: Sequence[Tensor | None], shapes: Sequence[Sequence[int]], pooling: Pooling
) -> list[Tensor | np.generic | None]:
    """The kernels' LEVEL_PARAMETERS of each level."""
    arguments: list[Tensor | np.generic | None] = []
    for one, into, shape, scale in zip(maps, sums, shapes, pooling.scales, strict=True):
        strides = (0, 0, 0, 0) if one is None else one.stride()
        arguments += [one, into, *_level(strides, shape[2], shape[3], scale)]
    return arguments


@functools.lru_cache(maxsize=1024)
def _level(strides: tuple[int, ...], height: int, width: int, scale: float) -> tuple[np.generic, ...]:
    return (*(np.int64(s) for s in strides), np.int32(height), np.int32(width), np.float32(scale))


def _places(
    boxes: Tensor, images: Tensor, levels: Tensor, offsets: Tensor | None, pooling: Pooling
) -> list[Tensor | None]:
    sizes = None if pooling.image_sizes is None else pooling.image_sizes.contiguous()
    moves = None if offsets is None else offsets.float().contiguous()
    return [boxes.float().contiguous(), images.long().contiguous(), levels.long().contiguous(), moves, sizes]


def _sizes(channels: int, groups: int, pooling: Pooling) -> tuple[np.generic, ...]:
    h, w = pooling.output_size
    counts = (channels, groups, pooling.channel_sets, h, w, pooling.sampling_ratio, int(pooling.aligned))
    return _numbers(counts, pooling.gamma)


@functools.lru_cache(maxsize=1024)
def _numbers(counts: tuple[int, ...], gamma: float) -> tuple[np.generic, ...]:
    return (*(np.int32(n) for n in counts), np.float32(gamma))


def _vector(maps: Sequence[Tensor], depth: int, element: Tensor | None = None) -> int:
    """Channels that a lane takes at once: 16 bytes of them where all maps are channels-last and aligned, else one."""
    wide = 16 // (element if element is not None else maps[0]).element_size()
    packed = all(
        m.stride(1) == 1 and m.data_ptr() % 16 == 0 and all(m.stride(i) % wide == 0 for i in (0, 2, 3)) for m in maps
    )
    return wide if packed and depth % wide == 0 else 1
