"""Resizing with an exact inverse: evaluation maps boxes back through the same affine."""

from __future__ import annotations

import cv2
import torch

from detkit.config import TRANSFORMS
from detkit.data.sample import Sample
from detkit.data.transforms.base import Transform
from detkit.structures import Affine
from detkit.utils.seed import generator


@TRANSFORMS
class ResizeShortestEdge(Transform):
    """Scale the shorter side to ``short`` px, or less where the longer one would exceed ``long``; the aspect is kept.

    The rule of Faster R-CNN's published recipes (800, 1333). Of several ``short`` one is drawn for each image.
    """

    def __init__(self, *, short: tuple[int, ...] = (800,), long: int = 1333) -> None:
        if not short or min(short) < 1 or long < max(short):
            raise ValueError(f"short {list(short)} must be positive and long {long} not below any of them")
        self.short = short
        self.long = long

    def __call__(self, sample: Sample, key: int) -> Sample:
        h, w = sample.size
        drawn = torch.randint(len(self.short), (), generator=generator(key)) if len(self.short) > 1 else 0
        scale = min(self.short[int(drawn)] / min(h, w), self.long / max(h, w))
        return resize(sample, _scaled(h, scale), _scaled(w, scale))


@TRANSFORMS
class ResizeFit(Transform):
    """Scale the longer side to exactly ``size`` px; the aspect is kept.

    The loader pads what is missing to a square at the right and the bottom, if it is told ``square: true``.
    """

    def __init__(self, *, size: int = 640) -> None:
        if size < 1:
            raise ValueError(f"size must be positive, not {size}")
        self.size = size

    def __call__(self, sample: Sample, key: int) -> Sample:
        h, w = sample.size
        scale = self.size / max(h, w)
        return resize(sample, _scaled(h, scale), _scaled(w, scale))


def resize(sample: Sample, h: int, w: int) -> Sample:
    """``sample`` with an image of ``h`` x ``w`` px."""
    old_h, old_w = sample.size
    if (h, w) == (old_h, old_w):
        return sample
    # Bilinear reads two pixels a side: below half the size it would skip some. Averaging over areas costs 8 times more.
    method = cv2.INTER_AREA if max(old_h / h, old_w / w) > 2 else cv2.INTER_LINEAR
    image = cv2.resize(sample.image, (w, h), interpolation=method)
    return sample.moved(image, Affine(scale_x=w / old_w, scale_y=h / old_h))


def _scaled(side: int, scale: float) -> int:
    return max(1, round(side * scale))
