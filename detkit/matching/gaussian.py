"""Gaussian peaks on heatmaps, as CornerNet (Law and Deng, ECCV 2018, section 3.2) and CenterNet draw their targets."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

RadiusRule = Literal["official", "iou"]

#: Objects that are drawn at once: bounds the memory to this many whole maps.
_CHUNK = 128


def gaussian_radius(sizes: Tensor, min_overlap: float = 0.7, rule: RadiusRule = "official") -> Tensor:
    """How far (cells) a box may be displaced from its object and still overlap it by ``min_overlap``.

    For a box of h x w and a displacement r of its corners there are three cases, each a quadratic in r:

    1. both corners move the same way: ``(h-r)(w-r) / (2hw - (h-r)(w-r)) = o``
    2. both move inwards: ``(h-2r)(w-2r) / hw = o``
    3. both move outwards: ``hw / ((h+2r)(w+2r)) = o``

    Args:
        sizes: (N, 2) h and w in cells.
        min_overlap: o, the IoU.
        rule: "iou" takes the smallest root that solves a case. "official" is what CornerNet's and CenterNet's published
            code computes, ``(-b + sqrt(b^2 - 4ac)) / 2`` whatever a is and however the root lies: a larger radius, and
            the one behind the published numbers.

    Returns:
        (N,) float radii, not rounded.
    """
    h, w = sizes.unbind(1)
    total, area, o = h + w, h * w, min_overlap
    root_1 = (total**2 - 4 * area * (1 - o) / (1 + o)).clamp(min=0).sqrt()
    root_2 = (4 * total**2 - 16 * (1 - o) * area).clamp(min=0).sqrt()
    root_3 = (4 * (o * total) ** 2 + 16 * o * (1 - o) * area).sqrt()
    if rule == "official":
        radii = ((total + root_1) / 2, (2 * total + root_2) / 2, (-2 * o * total + root_3) / 2)
    else:
        radii = ((total - root_1) / 2, (2 * total - root_2) / 8, (-2 * o * total + root_3) / (8 * o))
    return torch.stack(radii).amin(0)


def draw_gaussians(cells: Tensor, radii: Tensor, channels: Tensor, num_channels: int, shape: tuple[int, int]) -> Tensor:
    """Heatmaps with a peak of 1 at each object, all objects of a batch at once, on their device.

    ``exp(-(dx^2 + dy^2) / (2 sigma^2))`` within ``radius`` cells of the peak along both axes, 0 beyond, with
    ``sigma = (2 radius + 1) / 6``; where two peaks of a channel meet, the larger value stays (Zhou et al. 2019,
    section 3).

    Args:
        cells: (N, 2) int64 x, y of the peaks.
        radii: (N,) int64 in cells.
        channels: (N,) int64 in [0, ``num_channels``).
        shape: (H, W).

    Returns:
        (num_channels, H, W) float32.
    """
    height, width = shape
    heat = torch.zeros(num_channels, height * width, device=cells.device)
    for start in range(0, len(cells), _CHUNK):
        part = slice(start, start + _CHUNK)
        x = _profile(cells[part, 0], radii[part], width)
        y = _profile(cells[part, 1], radii[part], height)
        peaks = (y[:, :, None] * x[:, None, :]).flatten(1)
        heat.scatter_reduce_(0, channels[part, None].expand_as(peaks), peaks, "amax")
    return heat.view(num_channels, height, width)


def _profile(centres: Tensor, radii: Tensor, length: int) -> Tensor:
    """(N, length) one-dimensional Gaussians around ``centres``, cut at ``radii``."""
    distance = torch.arange(length, device=centres.device) - centres[:, None]
    sigma = (2 * radii + 1)[:, None] / 6
    return torch.exp(-(distance**2) / (2 * sigma**2)) * (distance.abs() <= radii[:, None])
