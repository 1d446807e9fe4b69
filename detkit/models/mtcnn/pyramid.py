"""The image pyramid of MTCNN's first stage: the scales, images at them, and the window of each cell."""

from __future__ import annotations

import torch
from torch import Tensor

from detkit.models.mtcnn.nets import PNet


def pyramid_scales(size: tuple[int, int], min_size: float, factor: float) -> list[float]:
    """From 12 / ``min_size`` downwards by ``factor``, while the shorter side of ``size`` (h, w) has 12 px there."""
    scale = PNet.window / min_size
    shorter = min(size) * scale
    scales = []
    while shorter >= PNet.window:
        scales.append(scale)
        scale, shorter = scale * factor, shorter * factor
    return scales


def scaled_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """int(h s + 1) x int(w s + 1) px: one more than the share, as published."""
    return int(size[0] * scale + 1), int(size[1] * scale + 1)


def scaled_image(sums: Tensor, scale: float) -> Tensor:
    """The image (1, 3, h, w) float32 at ``scale``, each pixel the mean of those that it covers, even in part.

    The same as ``interpolate(mode="area")``, which reads all of a large image for each of its scales.

    Args:
        sums: its :func:`~detkit.models.mtcnn.crops.integral_image`.
    """
    size = (sums.shape[0] - 1, sums.shape[1] - 1)
    (y1, y2), (x1, x2) = (
        _covered(old, new, sums.device) for old, new in zip(size, scaled_size(size, scale), strict=True)
    )
    bands = sums.index_select(0, y2) - sums.index_select(0, y1)
    counts = (y2 - y1)[:, None] * (x2 - x1)
    means = (bands.index_select(1, x2) - bands.index_select(1, x1)) / counts[..., None]
    # Channels last, and the batch's stride as it should be: torch then pools ten times as fast as by planes.
    return means.float()[None].permute(0, 3, 1, 2)


def _covered(old: int, new: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of ``old`` pixels in a row the first (``new``,), and the one after the last, that each of ``new`` covers."""
    steps = torch.arange(new, device=device)
    return steps * old // new, -(-(steps + 1) * old // new)


def normalized(pixels: Tensor) -> Tensor:
    """0 .. 255 to about -1 .. 1, as the published networks want it."""
    return (pixels - 127.5) * 0.0078125


def windows(cells: Tensor, scale: float) -> Tensor:
    """Boxes (N, 4) px of the image that ``cells`` (N, 2) (row, column) look at, on whole px.

    x1 = floor((2 i + 1) / s), x2 = floor((2 i + 12) / s): the published corners are those of Matlab, counted from 1.
    """
    corner = cells.flip(1).to(torch.float32) * PNet.stride
    return torch.cat([((corner + 1) / scale).floor(), ((corner + PNet.window) / scale).floor()], dim=1)


def seen_through(boxes: Tensor) -> Tensor:
    """The boxes (N, 4) px of what P-Net sees where its windows are ``boxes`` (N, 4) px, whatever the scale.

    A pixel of the scaled image more than the window, left and above: cell i sees px 2 i to 2 i + 12 of it, and its
    window is 2 i + 1 to 2 i + 12 (:func:`windows`).
    """
    sides = boxes[:, 2:] - boxes[:, :2]
    return torch.cat([boxes[:, :2] - sides / (PNet.window - 1), boxes[:, 2:]], dim=1)
