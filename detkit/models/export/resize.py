"""Images resized inside a program: both sizes are known, so that each axis is one matrix."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detkit.structures import Affine

#: Beyond so much smaller areas are averaged instead of two pixels a side being read, as when images are loaded.
AREA_FROM = 2.0


class Resized(nn.Module):
    """Images of ``before`` (h, w) px brought to ``after`` (h, w) px, within one grey level of how transforms do it.

    That is bilinear, of pixels' centres, and the mean of areas where an axis is made smaller than half.
    """

    def __init__(self, before: tuple[int, int], after: tuple[int, int]) -> None:
        super().__init__()
        self.before, self.after = before, after
        ratios = [old / new for old, new in zip(before, after, strict=True)]
        if max(ratios) > AREA_FROM and min(ratios) < 1:
            raise ValueError(f"{before} px to {after} px: one axis shrinks to less than half and the other one grows")
        matrix = area_shares if max(ratios) > AREA_FROM else bilinear_shares
        self.rows: Tensor
        self.columns: Tensor
        self.register_buffer("rows", matrix(before[0], after[0]), persistent=False)
        self.register_buffer("columns", matrix(before[1], after[1]), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Of pixels (B, 3, H, W), in whole grey levels, (B, 3, h, w) such, float32."""
        return (self.rows @ pixels.float() @ self.columns.T).round()

    @property
    def affine(self) -> Affine:
        """From the image before to the resized one."""
        (h, w), (there_h, there_w) = self.before, self.after
        return Affine(there_w / w, there_h / h)

    def back(self, boxes: Tensor) -> Tensor:
        """``boxes`` (..., 4) px of the resized image, in px of the image before."""
        return self.back_points(boxes.unflatten(-1, (2, 2))).flatten(-2)

    def back_points(self, points: Tensor) -> Tensor:
        """The same of points (..., 2) x y px."""
        scale = [old / new for old, new in zip(self.before, self.after, strict=True)]
        return points * points.new_tensor([scale[1], scale[0]])


def bilinear_shares(old: int, new: int) -> Tensor:
    """(new, old): what of each old pixel goes into each new one, by the distance of their centres."""
    at = ((torch.arange(new, dtype=torch.float64) + 0.5) * old / new - 0.5).clamp(0, old - 1)
    return (1 - (at[:, None] - torch.arange(old)).abs()).clamp(min=0).float()


def area_shares(old: int, new: int) -> Tensor:
    """(new, old): the share of each new pixel's area that each old one covers."""
    side = old / new
    start = torch.arange(new, dtype=torch.float64)[:, None] * side
    pixel = torch.arange(old, dtype=torch.float64)
    covered = torch.minimum(pixel + 1, start + side) - torch.maximum(pixel, start)
    return (covered.clamp(min=0) / side).float()
