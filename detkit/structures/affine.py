"""The axis-aligned map from the original image to the network input, with an exact inverse."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from detkit.utils.precision import widened


class Affine(NamedTuple):
    """``x' = scale_x * x + shift_x`` and the same for y, in pixels; a negative scale is a flip."""

    scale_x: float = 1.0
    scale_y: float = 1.0
    shift_x: float = 0.0
    shift_y: float = 0.0

    def then(self, other: Affine) -> Affine:
        """The map that applies ``self`` first and ``other`` second."""
        return Affine(
            self.scale_x * other.scale_x,
            self.scale_y * other.scale_y,
            self.shift_x * other.scale_x + other.shift_x,
            self.shift_y * other.scale_y + other.shift_y,
        )

    def apply(self, boxes: Tensor) -> Tensor:
        """Map ``boxes`` (N, 4) x1 y1 x2 y2 forward."""
        boxes = widened(boxes)
        scale, shift = self._columns(boxes)
        return _ordered(boxes * scale + shift)

    def undo(self, boxes: Tensor) -> Tensor:
        """Map ``boxes`` (N, 4) x1 y1 x2 y2 of the network input back to the original image."""
        boxes = widened(boxes)
        scale, shift = self._columns(boxes)
        return _ordered((boxes - shift) / scale)

    @property
    def scale(self) -> float:
        """By how much sizes sqrt(w h) grow."""
        return math.sqrt(abs(self.scale_x * self.scale_y))

    @property
    def mirrors(self) -> bool:
        """Whether left and right change places, as seen by somebody who takes the image as it is."""
        return self.scale_x * self.scale_y < 0

    def undo_points(self, points: Tensor) -> Tensor:
        """Map ``points`` (..., 2) x y of the network input back to the original image."""
        points = widened(points)
        scale, shift = self._columns(points)
        return (points - shift[:2]) / scale[:2]

    def _columns(self, like: Tensor) -> tuple[Tensor, Tensor]:
        scale = torch.tensor([self.scale_x, self.scale_y] * 2, dtype=like.dtype, device=like.device)
        shift = torch.tensor([self.shift_x, self.shift_y] * 2, dtype=like.dtype, device=like.device)
        return scale, shift


def _ordered(boxes: Tensor) -> Tensor:
    """Restore x1 <= x2 and y1 <= y2 after a flip."""
    first, second = boxes[:, :2], boxes[:, 2:]
    return torch.cat([torch.minimum(first, second), torch.maximum(first, second)], dim=1)
