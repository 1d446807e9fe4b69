"""Boxes as points of a space in which noise is Gaussian."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detkit.structures.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from detkit.utils.transfer import constant


class StateCoder:
    """Boxes px <-> states z = scale (2 u - 1), u = (cx / w, cy / h, bw / w, bh / h) of an image of w x h px.

    DiffusionDet (Chen et al., ICCV 2023, section 3.3) has the same, and a ``scale`` of 2: how much larger an object's
    state is than the noise. Sizes are of images, not of the padded batch: a state means the same in any batch.

    Args:
        scale: boxes inside the image have states in [-scale, scale]; decoding brings others there.
        min_size: px, the least side of a decoded box. At scale 2 one state of noise in twenty has a side of 0 or less,
            which no factor would make larger.
    """

    def __init__(self, *, scale: float = 2.0, min_size: float = 1.0) -> None:
        if scale <= 0 or min_size <= 0:
            raise ValueError(f"scale and min_size must be positive, not {scale} and {min_size}")
        self.scale, self.min_size = scale, min_size

    def encode(self, boxes: Tensor, unit: Tensor) -> Tensor:
        """States (B, N, 4) of ``boxes`` (B, N, 4) px in images of :func:`whole` ``unit`` (B, 1, 4)."""
        return self.scale * (2 * xyxy_to_cxcywh(boxes) / unit - 1)

    def decode(self, states: Tensor, unit: Tensor) -> Tensor:
        """Boxes (B, N, 4) px of ``states`` (B, N, 4): centres inside the image, sides of ``min_size`` to its own."""
        boxes = (states.clamp(-self.scale, self.scale) / self.scale + 1) / 2 * unit
        return cxcywh_to_xyxy(torch.cat([boxes[..., :2], boxes[..., 2:].clamp(min=self.min_size)], dim=-1))


def whole(like: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """(B, 1, 4): w, h, w, h px of each image, to be multiplied or divided by."""
    sides = tuple((w, h, w, h) for h, w in sizes)
    return constant(sides, like.device, like.dtype).view(len(sizes), 1, 4)
