"""Export forms of the region pools. A map is cut where its image ends, which is what ``image_sizes`` means in eager."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detkit.models.export.form import NoFormError, scaled_up
from detkit.models.heads.pools import Placed, PyramidPool
from detkit.models.interfaces import RegionPool
from detkit.structures.boxes import area


def grids_of(pool: RegionPool, maps: Sequence[Tensor], boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """What ``pool`` reads for ``boxes`` (B, R, 4) px of images of ``size`` (h, w): (B * R, C', resolution, resolution).

    Raises:
        NoFormError: the pool has no export form.
    """
    if not isinstance(pool, PyramidPool):
        raise NoFormError(f"model.head: the pool {type(pool).__name__} has no export form")
    image = torch.arange(boxes.shape[0], device=boxes.device)[:, None].expand(-1, boxes.shape[1]).reshape(-1)
    flat = boxes.flatten(0, 1)
    maps = maps[: pool.num_levels]
    if not getattr(pool, "in_padding", False):
        maps = [_within(m, stride, size) for m, stride in zip(maps, pool.strides, strict=True)]
    return pool.read(
        maps,
        Placed(flat, image, levels_of(pool, flat)),
        output_size=(pool.resolution, pool.resolution),
        scales=[1 / stride for stride in pool.strides],
        sampling_ratio=pool.sampling_ratio,
        image_sizes=None,
    )


def _within(feature: Tensor, stride: float, size: tuple[int, int]) -> Tensor:
    """The cells of a map (B, C, h, w) that begin inside images of ``size``."""
    h, w = (scaled_up(side, 1 / stride) for side in size)
    # No slice: whether one is contiguous depends on the size, and torch.export would hold to what the example's was.
    rows, columns = (torch.arange(side, device=feature.device) for side in (h, w))
    return feature.index_select(2, rows).index_select(3, columns)


def levels_of(pool: PyramidPool, boxes: Tensor) -> Tensor:
    """:meth:`PyramidPool.levels` without a search: how many strides are finer than what equation 1 wants."""
    side = area(boxes).clamp(min=0).sqrt()
    octave = torch.floor(torch.log2(side / pool.canonical_size + 1e-8) + 1e-6)
    stride = pool.canonical_stride * torch.exp2(octave)
    finer = [(stride > one).long() for one in pool.strides[:-1]]
    return torch.stack(finer).sum(dim=0) if finer else torch.zeros_like(stride, dtype=torch.int64)
