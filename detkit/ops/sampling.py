"""Bilinear interpolation as a sparse linear map: the one idea behind every sampling op of detkit on a CPU.

An output row is a weighted sum of a few rows of a channels-last feature table. ``embedding_bag`` computes exactly that:
vectorised over channels, parallel over rows, differentiable in the table and the weights, and without atomics.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def feature_table(features: Sequence[Tensor]) -> Tensor:
    """Rows (T, C) of all cells of ``features`` (each (B, C, H_l, W_l)), level after level, image after image.

    Free for a single channels-last map. Half-precision maps are widened: sums of bfloat16 taps would double the error.
    """
    channels = features[0].shape[1]
    rows = [f.permute(0, 2, 3, 1).reshape(-1, channels) for f in features]
    table = rows[0] if len(rows) == 1 else torch.cat(rows)
    return table.float() if table.dtype in (torch.float16, torch.bfloat16) else table


def weighted_rows(table: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    """``out[m] = sum_t weights[m, t] * table[indices[m, t]]``.

    Args:
        table: (T, C).
        indices: (M, taps) int64 in [0, T).
        weights: (M, taps), of any floating type.

    Returns:
        (M, C) of the table's type.
    """
    if indices.shape[0] == 0 or table.shape[0] == 0:  # embedding_bag refuses both; stay connected to the graph
        return table.sum() * 0 + table.new_zeros(indices.shape[0], table.shape[1])
    return F.embedding_bag(indices, table, per_sample_weights=weights.to(table.dtype), mode="sum")
