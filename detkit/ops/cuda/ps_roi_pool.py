"""Launches ps_roi_pool.cu: the arguments of the op ``detkit::ps_roi_pool`` in the kernels' terms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from detkit.ops.cuda.compile import TYPES, deterministic, fixed_point, launch, settled
from detkit.ops.cuda.region_pooling import near
from detkit.ops.sampling import as_maps, empty_maps

SOURCE = "ps_roi_pool.cu"


def forward(features: Tensor, boxes: Tensor, image_index: Tensor, h: int, w: int, scale: float) -> Tensor:
    """The op ``detkit::ps_roi_pool`` on a GPU; see :func:`detkit.ops.ps_roi_pool` for shapes."""
    channels = features.shape[1] // (h * w)
    (features,) = near([features], 4 * len(boxes))  # a bin as large as a cell meets four; each channel is of one bin
    out = empty_maps(features, len(boxes), channels, h, w)
    sizes = (channels, *features.shape[2:], h, w)
    arguments = [
        features, *(np.int64(s) for s in features.stride()), *_places(boxes, image_index), out,
        *(np.int32(n) for n in sizes), np.float32(scale),
    ]  # fmt: skip
    grid = (len(boxes), (h * w + 7) // 8, 1)
    launch(SOURCE, "ps_pool_forward", grid, (32, 8, 1), arguments, TYPE=TYPES[features.dtype], FIXED=0)
    return out


def backward(grad: Tensor, shape: Sequence[int], boxes: Tensor, image_index: Tensor, scale: float) -> Tensor:
    """The gradient of the map, of ``shape`` (B, C, H, W)."""
    b, c, height, width = shape
    h, w = grad.shape[2:]
    unit, inverse = None, None
    if deterministic():
        largest = grad.abs().amax() if grad.numel() else grad.new_zeros(())
        unit, inverse = fixed_point(largest.float() * (len(boxes) * h * w))
    dtype = torch.float32 if unit is None else torch.int64
    sums = torch.zeros(b * height * width * c, dtype=dtype, device=grad.device)
    arguments = [
        grad, *(np.int64(s) for s in grad.stride()), *_places(boxes, image_index), sums, unit,
        *(np.int32(n) for n in (grad.shape[1], height, width, h, w)), np.float32(scale),
    ]  # fmt: skip
    launch(
        SOURCE, "ps_pool_backward", (len(boxes), (h * w + 7) // 8, 1), (32, 8, 1), arguments,
        TYPE=TYPES[grad.dtype], FIXED=int(unit is not None),
    )  # fmt: skip
    return as_maps(settled(sums, inverse, grad.dtype), b, c, height, width)


def _places(boxes: Tensor, image_index: Tensor) -> tuple[Tensor, Tensor]:
    """The boxes in the kernels' types."""
    return boxes.float().contiguous(), image_index.long().contiguous()
