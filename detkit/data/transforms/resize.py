"""Resizing with an exact inverse: evaluation maps boxes back through the same affine."""

from __future__ import annotations

import torch

from detkit.config import TRANSFORMS
from detkit.data.transforms.base import PlannedTransform
from detkit.data.transforms.plan import Plan, fitted, scaled
from detkit.utils.seed import generator


@TRANSFORMS
class ResizeShortestEdge(PlannedTransform):
    """Scale the shorter side to ``short`` px, or less where the longer one would exceed ``long``; the aspect is kept.

    The rule of Faster R-CNN's published recipes: 800 and 1333 (in the paper, Ren et al., NeurIPS 2015, 600).

    Args:
        short: px of the shorter side; of several one is drawn for each image, which serves training only.
        long: px that the longer side may have at most.
        per_batch: draw once for all images of a batch.

    Raises:
        ValueError: a size is not positive, or ``long`` is below one of ``short``.
    """

    def __init__(self, *, short: tuple[int, ...] = (800,), long: int = 1333, per_batch: bool = False) -> None:
        if not short or min(short) < 1 or long < max(short):
            raise ValueError(f"short {list(short)} must be positive and long {long} not below any of them")
        self.short = short
        self.long = long
        self.per_batch = per_batch
        self.training_only = len(short) > 1
        self.is_fixed = len(short) == 1

    def plan(self, size: tuple[int, int], key: int) -> Plan:
        h, w = size
        scale = min(_one_of(self.short, key) / min(h, w), self.long / max(h, w))
        return Plan.resized(size, (scaled(h, scale), scaled(w, scale)))


@TRANSFORMS
class ResizeFit(PlannedTransform):
    """Scale the longer side to exactly ``size`` px; the aspect is kept.

    The loader pads what is missing to a square at the right and the bottom, if it is told ``square: true``.

    Args:
        size: px of the longer side; of several one is drawn for each image, which serves training only.
        per_batch: draw once for all images of a batch: YOLO's multi-scale training (Redmon and Farhadi, 2017).

    Raises:
        ValueError: a size is not positive.
    """

    def __init__(self, *, size: int | tuple[int, ...] = 640, per_batch: bool = False) -> None:
        self.sizes = (size,) if isinstance(size, int) else size
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError(f"size must be positive, not {size if isinstance(size, int) else list(size)}")
        self.per_batch = per_batch
        self.training_only = len(self.sizes) > 1
        self.is_fixed = len(self.sizes) == 1

    def plan(self, size: tuple[int, int], key: int) -> Plan:
        return fitted(size, _one_of(self.sizes, key))


@TRANSFORMS
class Resize(PlannedTransform):
    """Stretch the image to exactly ``height`` x ``width`` px; the aspect is not kept.

    For heads that need one input size, such as YOLOv1's fully connected one.

    Args:
        height: px.
        width: px.

    Raises:
        ValueError: one is not positive.
    """

    is_fixed = True

    def __init__(self, *, height: int = 448, width: int = 448) -> None:
        if height < 1 or width < 1:
            raise ValueError(f"height {height} and width {width} must be positive")
        self.height = height
        self.width = width

    def plan(self, size: tuple[int, int], key: int) -> Plan:
        return Plan.resized(size, (self.height, self.width))


def _one_of(sizes: tuple[int, ...], key: int) -> int:
    drawn = torch.randint(len(sizes), (), generator=generator(key)) if len(sizes) > 1 else 0
    return sizes[int(drawn)]
