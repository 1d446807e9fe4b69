"""The image pyramid of MTCNN's first stage: the scales, images at them, and the window of each cell."""

from __future__ import annotations

import torch
import torch.nn.functional as F
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


def scaled_image(pixels: Tensor, scale: float) -> Tensor:
    """``pixels`` (1, 3, h, w) float at ``scale``, each pixel the mean of the area it covers."""
    return F.interpolate(pixels, size=scaled_size((pixels.shape[2], pixels.shape[3]), scale), mode="area")


def normalized(pixels: Tensor) -> Tensor:
    """0 .. 255 to about -1 .. 1, as the published networks want it."""
    return (pixels - 127.5) * 0.0078125


def windows(cells: Tensor, scale: float) -> Tensor:
    """Boxes (N, 4) px of the image that ``cells`` (N, 2) (row, column) look at, on whole px.

    x1 = floor((2 i + 1) / s), x2 = floor((2 i + 12) / s): the published corners are those of Matlab, counted from 1.
    """
    corner = cells.flip(1).to(torch.float32) * PNet.stride
    return torch.cat([((corner + 1) / scale).floor(), ((corner + PNet.window) / scale).floor()], dim=1)
