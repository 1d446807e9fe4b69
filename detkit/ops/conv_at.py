"""A convolution at a few places of its maps: what a loss needs that looks at a few hundred of a million cells."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.ops.sampling import feature_table
from detkit.utils.transfer import constant


def can_conv_at(conv: nn.Module) -> bool:
    """Whether :func:`conv_at` does what ``conv`` does: a plain convolution that keeps the size of its map."""
    return (
        type(conv) is nn.Conv2d
        and conv.stride == (1, 1)
        and conv.groups == 1
        and conv.padding_mode == "zeros"
        and all(isinstance(p, int) and 2 * p == d * (k - 1) for p, d, k in _axes(conv))
    )


def conv_at(features: Sequence[Tensor], conv: nn.Conv2d, image: Tensor, level: Tensor, cell: Tensor) -> Tensor:
    """What ``conv`` makes of S cells (S, C_out): exactly, but for rounding, ``conv(features[level])[image, :, y, x]``.

    Only the cells under the kernel are read, and only they have a gradient: no dense map of outputs is kept for it.

    Args:
        features: L maps (B, C_in, H_l, W_l), in any memory order.
        conv: see :func:`can_conv_at`.
        image, level, cell: (S,) int64 each: which image, which map, and y * W_l + x.

    Raises:
        ValueError: ``conv`` changes the size of its map, is grouped, or is of another kind.
    """
    if not can_conv_at(conv):
        raise ValueError(f"conv_at needs a plain convolution that keeps the size of its map, not {conv}")
    rows, inside = _neighbourhoods([f.shape for f in features], conv, image, level, cell)
    seen = F.embedding(rows, feature_table(features)).masked_fill(~inside[:, :, None], 0)
    # the table is float32 where the maps are of a half type
    return F.linear(seen.to(conv.weight.dtype).flatten(1), conv.weight.permute(0, 2, 3, 1).flatten(1), conv.bias)


def _neighbourhoods(
    shapes: Sequence[Sequence[int]], conv: nn.Conv2d, image: Tensor, level: Tensor, cell: Tensor
) -> tuple[Tensor, Tensor]:
    """Rows (S, k * k) of the feature table under the kernel at each cell, and which of them exist."""
    device = cell.device
    batch = shapes[0][0]
    extents = constant(tuple(tuple(s[2:]) for s in shapes), device)
    cells = extents.prod(1)
    first_row = (cells.cumsum(0) - cells)[level] * batch + image * cells[level]
    h, w = extents[level].unbind(1)
    dy, dx = (torch.arange(k, device=device) * d - p for p, d, k in _axes(conv))
    y = (cell // w)[:, None] + dy.repeat_interleave(len(dx))
    x = (cell % w)[:, None] + dx.repeat(len(dy))
    inside = (y >= 0) & (y < h[:, None]) & (x >= 0) & (x < w[:, None])
    return torch.where(inside, first_row[:, None] + y * w[:, None] + x, 0), inside


def _axes(conv: nn.Conv2d) -> list[tuple[int, int, int]]:
    """Padding, dilation and kernel size of both axes."""
    return list(zip(conv.padding, conv.dilation, conv.kernel_size, strict=False))  # pyright: ignore[reportReturnType]
