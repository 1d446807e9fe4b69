"""The sampling ops in plain PyTorch, as one writes them with ``grid_sample``: peers in ``tools/benchmark.py ops``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

#: bins of a side, samples of a bin and axis, and gamma of the deformable form: the benchmark's
BINS, SAMPLES, GAMMA = 7, 2, 0.1


def roi_align(
    maps: Sequence[Tensor],
    boxes: Tensor,
    index: Tensor,
    levels: Tensor,
    scales: Sequence[float],
    offsets: Tensor | None = None,
) -> Tensor:
    """Multi-level RoIAlign, image by image and level by level; with ``offsets`` (R, 2, 7, 7) deformable RoI pooling.

    Returns:
        (R, C, 7, 7) of the maps' type; computed in float32, for ``grid_sample`` needs places of its map's type.
    """
    out = maps[0].new_zeros(len(boxes), maps[0].shape[1], BINS, BINS)
    for level, (x, scale) in enumerate(zip(maps, scales, strict=True)):
        for image in range(len(x)):
            pick = ((levels == level) & (index == image)).nonzero().squeeze(1)
            place = _samples(boxes[pick] * scale, None if offsets is None else offsets[pick])
            read = _read(x[image : image + 1], place.flatten(0, 1)[None])[0].unflatten(1, (len(pick), BINS * SAMPLES))
            out = out.index_put((pick,), F.avg_pool2d(read.transpose(0, 1), SAMPLES).to(x.dtype))
    return out


def ps_roi_align(x: Tensor, boxes: Tensor, scale: float) -> Tensor:
    """Position-sensitive RoIAlign: each bin samples a map of its own. Box r belongs to image ``r % B``."""
    batch, channels = len(x), x.shape[1] // BINS**2
    maps = x.unflatten(1, (BINS**2, channels)).flatten(0, 1)  # (B * bins, C, H, W)
    place = _samples(boxes * scale, None).unflatten(0, (-1, batch))  # (R / B, B, 14, 14, 2)
    place = place.unflatten(2, (BINS, SAMPLES)).unflatten(4, (BINS, SAMPLES)).permute(1, 2, 4, 0, 3, 5, 6)
    read = _read(maps, place.reshape(len(maps), -1, SAMPLES**2, 2)).mean(-1)  # (B * bins, C, R / B)
    grid = read.view(batch, BINS, BINS, channels, -1).permute(4, 0, 3, 1, 2)
    return grid.reshape(-1, channels, BINS, BINS).to(x.dtype)


def deform_conv(x: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None) -> Tensor:
    """Deformable convolution 3 x 3 with padding 1: ``grid_sample`` for each tap, and one matrix product."""
    batch, _, h, w = x.shape
    y = torch.arange(h, device=x.device)[:, None]
    across = torch.arange(w, device=x.device)
    columns = []
    for k in range(9):
        place = torch.stack([across + (k % 3 - 1) + offset[:, 2 * k + 1], y + (k // 3 - 1) + offset[:, 2 * k]], dim=-1)
        read = F.grid_sample(x.float(), _normalised(place, h, w), padding_mode="zeros", align_corners=False)
        columns.append(read if mask is None else read * mask[:, k : k + 1])
    kernel = weight.permute(0, 2, 3, 1).flatten(1).float()
    return (kernel @ torch.cat(columns, dim=1).flatten(2)).view(batch, -1, h, w).to(x.dtype)


def _samples(boxes: Tensor, offsets: Tensor | None) -> Tensor:
    """Places (R, 14, 14, 2), x then y in cells, that boxes in cells are sampled at."""
    corner, size = boxes[:, :2] - 0.5, boxes[:, 2:] - boxes[:, :2]
    step = (torch.arange(BINS * SAMPLES, device=boxes.device) + 0.5) / (BINS * SAMPLES)
    x, y = (corner[:, i, None] + size[:, i, None] * step for i in (0, 1))
    place = torch.stack(torch.broadcast_tensors(x[:, None], y[..., None]), dim=-1)
    if offsets is None:
        return place
    moves = offsets.repeat_interleave(SAMPLES, 2).repeat_interleave(SAMPLES, 3).permute(0, 2, 3, 1)
    return place + GAMMA * moves * size[:, None, None]


def _read(x: Tensor, place: Tensor) -> Tensor:
    """RoIAlign's samples of maps (B, C, H, W) at (B, h, w, 2): the border's value up to one cell outside, then zero."""
    h, w = x.shape[2:]
    read = F.grid_sample(x.float(), _normalised(place, h, w), padding_mode="border", align_corners=False)
    inside = (place >= -1) & (place <= place.new_tensor([w, h]))
    return read * inside.all(-1)[:, None]


def _normalised(place: Tensor, h: int, w: int) -> Tensor:
    """``grid_sample``'s coordinates of places in cells."""
    return (2 * place.float() + 1) / torch.tensor([w, h], device=place.device) - 1
