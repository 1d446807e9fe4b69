"""Resizing with an exact inverse: evaluation maps boxes back through the same affine."""

from __future__ import annotations

import cv2
import numpy as np
import torch

from detkit.config import TRANSFORMS
from detkit.data.sample import Sample
from detkit.data.transforms.base import Transform
from detkit.structures import Affine
from detkit.utils.seed import generator


@TRANSFORMS
class ResizeShortestEdge(Transform):
    """Scale the shorter side to ``short`` px, or less where the longer one would exceed ``long``; the aspect is kept.

    The rule of Faster R-CNN's published recipes (800, 1333). Of several ``short`` one is drawn for each image, or with
    ``per_batch`` for each batch; that serves training only.
    """

    def __init__(self, *, short: tuple[int, ...] = (800,), long: int = 1333, per_batch: bool = False) -> None:
        if not short or min(short) < 1 or long < max(short):
            raise ValueError(f"short {list(short)} must be positive and long {long} not below any of them")
        self.short = short
        self.long = long
        self.per_batch = per_batch
        self.training_only = len(short) > 1

    def __call__(self, sample: Sample, key: int) -> Sample:
        h, w = sample.size
        scale = min(_one_of(self.short, key) / min(h, w), self.long / max(h, w))
        return resize(sample, scaled(h, scale), scaled(w, scale))


@TRANSFORMS
class ResizeFit(Transform):
    """Scale the longer side to exactly ``size`` px; the aspect is kept.

    Of several sizes one is drawn for each image, or with ``per_batch`` for each batch (YOLO's multi-scale training);
    that serves training only. The loader pads what is missing to a square at the right and the bottom, if it is told
    ``square: true``.
    """

    def __init__(self, *, size: int | tuple[int, ...] = 640, per_batch: bool = False) -> None:
        self.sizes = (size,) if isinstance(size, int) else size
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError(f"size must be positive, not {size if isinstance(size, int) else list(size)}")
        self.per_batch = per_batch
        self.training_only = len(self.sizes) > 1

    def __call__(self, sample: Sample, key: int) -> Sample:
        return fit(sample, _one_of(self.sizes, key))


@TRANSFORMS
class Resize(Transform):
    """Stretch the image to exactly ``height`` x ``width`` px; the aspect is not kept.

    For heads that need one input size, such as YOLOv1's fully connected one.
    """

    def __init__(self, *, height: int = 448, width: int = 448) -> None:
        if height < 1 or width < 1:
            raise ValueError(f"height {height} and width {width} must be positive")
        self.height = height
        self.width = width

    def __call__(self, sample: Sample, key: int) -> Sample:
        return resize(sample, self.height, self.width)


def fit(sample: Sample, size: int) -> Sample:
    """``sample`` with a longer side of ``size`` px; the aspect is kept."""
    h, w = sample.size
    scale = size / max(h, w)
    return resize(sample, scaled(h, scale), scaled(w, scale))


def resize(sample: Sample, h: int, w: int) -> Sample:
    """``sample`` with an image of ``h`` x ``w`` px."""
    old_h, old_w = sample.size
    if (h, w) == (old_h, old_w):
        return sample
    return sample.moved(resize_image(sample.image, h, w), Affine(scale_x=w / old_w, scale_y=h / old_h))


def resize_image(image: np.ndarray, h: int, w: int) -> np.ndarray:
    """``image`` (H, W, 3) at ``h`` x ``w`` px."""
    old_h, old_w = image.shape[:2]
    if (h, w) == (old_h, old_w):
        return image
    # Bilinear reads two pixels a side: below half the size it would skip some. Averaging over areas costs 8 times more.
    method = cv2.INTER_AREA if max(old_h / h, old_w / w) > 2 else cv2.INTER_LINEAR
    return cv2.resize(image, (w, h), interpolation=method)


def scaled(side: int, scale: float) -> int:
    """``scale`` times ``side`` in whole px, at least one."""
    return max(1, round(side * scale))


def _one_of(sizes: tuple[int, ...], key: int) -> int:
    drawn = torch.randint(len(sizes), (), generator=generator(key)) if len(sizes) > 1 else 0
    return sizes[int(drawn)]
