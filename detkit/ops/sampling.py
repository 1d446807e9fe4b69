"""Bilinear interpolation as a sparse linear map: the one idea behind every sampling op of detkit outside CUDA.

An output row is a weighted sum of a few rows of a channels-last feature table. ``embedding_bag`` computes exactly that:
vectorised over channels, parallel over rows, and without atomics. An op only says which rows (:func:`taps`) and with
which weights; the three functions below are the map, its transpose, and its gradient to the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from detkit.utils.precision import widened

_SUM = 0  # embedding_bag's number for mode="sum"


class Taps(NamedTuple):
    """Where samples fall on one axis: cells and weights (2, ...), and which weights (2 or 1, ...) move with it.

    Moving a sample by one cell changes its two weights by -1 and +1 (:attr:`slope`), unless the edge holds it. The two
    come first, so that what is computed for all samples is computed along them: memory is read in order.
    """

    index: Tensor
    weight: Tensor
    moves: Tensor

    @property
    def slope(self) -> Tensor:
        """The derivative (2, ...) of the weights by the position."""
        moves = self.moves.to(self.weight.dtype)
        return torch.stack([-moves[0], moves[-1]])


def feature_table(features: Sequence[Tensor]) -> Tensor:
    """Rows (T, C) of all cells of ``features`` (each (B, C, H_l, W_l)), level after level, image after image.

    Free for a single channels-last map. Half-precision maps are widened.
    """
    channels = features[0].shape[1]
    rows = [f.permute(0, 2, 3, 1).reshape(-1, channels) for f in features]
    return widened(rows[0].contiguous() if len(rows) == 1 else torch.cat(rows))


def empty_maps(like: Tensor, b: int, c: int, h: int, w: int) -> Tensor:
    """Uninitialised maps (B, C, H, W), channels-last also where a size is 0 or 1, of the type of ``like``."""
    return like.new_empty_strided((b, c, h, w), (h * w * c, 1, w * c, c))


def as_maps(rows: Tensor, b: int, c: int, h: int, w: int) -> Tensor:
    """Contiguous rows (B * H * W, C) as maps (B, C, H, W) in the same memory.

    Not a view of it: autograd forbids a ReLU in place on a view that a registered op returns.
    """
    maps = rows.new_empty(0)
    return maps.set_(rows.untyped_storage(), rows.storage_offset(), (b, c, h, w), (h * w * c, 1, w * c, c))  # pyright: ignore


def border_taps(position: Tensor, extent: Tensor) -> Taps:
    """RoIAlign's edge: a sample up to one cell outside takes the border's value, one farther (or not finite) nothing.

    Args:
        position: (...) in cells; a cell's value stands at its whole number.
        extent: cells of the axis, broadcast with ``position``.
    """
    last = extent - 1
    inside = (position >= -1) & (position <= extent)
    held = torch.minimum(torch.where(inside, position, 0).clamp(min=0), last)
    low = held.floor()
    fraction = held - low
    low = low.long()
    index = torch.stack([low, torch.minimum(low + 1, last)])
    weight = torch.stack([1 - fraction, fraction]) * inside
    return Taps(index, weight, (inside & (held == position))[None])


def zero_taps(position: Tensor, extent: int) -> Taps:
    """A convolution's edge: the map is continued by zeros."""
    inside = (position > -1) & (position < extent)
    held = torch.where(inside, position, 0)
    low = held.floor()
    fraction = held - low
    exists = torch.stack([inside & (low >= 0), inside & (low < extent - 1)])
    weight = torch.stack([1 - fraction, fraction]) * exists
    low = low.long()
    return Taps(torch.stack([low.clamp(min=0), (low + 1).clamp(max=extent - 1)]), weight, exists)


def outer(rows: Tensor, columns: Tensor) -> Tensor:
    """Products (I * J, ...) of two axes' taps (I, ...) and (J, ...)."""
    return (rows[:, None] * columns).flatten(0, 1)


def outer_index(rows: Tensor, columns: Tensor) -> Tensor:
    """:func:`outer` for addresses, which add up."""
    return (rows[:, None] + columns).flatten(0, 1)


def weighted_rows(table: Tensor, indices: Tensor, weights: Tensor, starts: Tensor | None = None) -> Tensor:
    """``out[m] = sum_t weights[m, t] * table[indices[m, t]]``.

    Args:
        table: (T, C), float32 or float64.
        indices: (M, taps) int64 in [0, T); or (N,), with ``starts``, for rows of different lengths.
        weights: of the shape of ``indices`` and any floating type.
        starts: (M,) int64, the first tap of each row.

    Returns:
        (M, C) of the table's type.
    """
    num_rows = len(indices) if starts is None else len(starts)
    if indices.numel() == 0 or table.shape[0] == 0:  # embedding_bag refuses both
        return table.new_zeros(num_rows, table.shape[1])
    starts = _starts(indices) if starts is None else starts
    weights = weights.to(table.dtype).reshape(-1)
    return torch.embedding_bag(
        table, indices.reshape(-1), starts, mode=_SUM, per_sample_weights=weights, include_last_offset=False
    )[0]


def scattered_rows(
    grad: Tensor, indices: Tensor, weights: Tensor, num_rows: int, starts: Tensor | None = None
) -> Tensor:
    """The transpose of :func:`weighted_rows`: the gradient (T, C) of its table from ``grad`` (M, C).

    It is the same kind of map, once the taps that read one row stand together: a stable sort, so that the order of
    every sum is always the same.
    """
    if indices.numel() == 0 or num_rows == 0:
        return grad.new_zeros(num_rows, grad.shape[1])
    flat = indices.reshape(-1)
    # a radix sort's time goes with the bytes of its keys
    order = flat.to(_smallest_type(num_rows)).argsort(stable=True)
    count = torch.bincount(flat, minlength=num_rows)
    bag = order // indices.shape[1] if starts is None else _bags(indices, starts)[0][order]
    return weighted_rows(grad.contiguous(), bag, weights.reshape(-1)[order], count.cumsum(0) - count)


def weight_gradient(grad: Tensor, table: Tensor, indices: Tensor) -> Tensor:
    """The gradient (M, taps) of :func:`weighted_rows` to its weights: ``grad[m] . table[indices[m, t]]``."""
    if indices.numel() == 0 or table.shape[0] == 0:
        return grad.new_zeros(indices.shape)
    bag, _ = _bags(indices, None)
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        grad.contiguous(), table, indices.reshape(-1), _starts(indices), bag, _SUM, -1
    ).view(indices.shape)


def _smallest_type(count: int) -> torch.dtype:
    """The smallest of three integer types that holds 0 to ``count`` - 1."""
    types = (torch.int16, torch.int32, torch.int64)
    return next(t for t in types if count - 1 <= torch.iinfo(t).max)


def _starts(indices: Tensor) -> Tensor:
    return torch.arange(0, indices.numel(), indices.shape[1], device=indices.device)


def _bags(indices: Tensor, starts: Tensor | None) -> tuple[Tensor, Tensor]:
    """For each tap the row that it belongs to, and each row's number of taps."""
    if starts is None:
        rows, taps = indices.shape
        size = torch.full((rows,), taps, device=indices.device)
        return torch.arange(rows, device=indices.device)[:, None].expand(rows, taps).reshape(-1), size
    size = torch.cat([starts[1:], starts.new_tensor([len(indices)])]) - starts
    return torch.arange(len(starts), device=starts.device).repeat_interleave(size), size
