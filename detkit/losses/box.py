"""Box regression losses: per box, without weights of their own; the head normalises.

``space`` says what a loss compares: encoded offsets ("delta") or decoded boxes in px ("box"). Whatever type they come
in, the arithmetic is in float32 at least.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

from detkit.config import LOSSES
from detkit.losses.checks import non_negative
from detkit.utils.precision import widened


class BoxLoss(ABC):
    """What a head needs to know of its box loss."""

    space: Literal["delta", "box"]

    @abstractmethod
    def __call__(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Weighted loss (N,) of ``predicted`` (N, 4) against ``target`` (N, 4), both in ``space``."""


@LOSSES
class L1(BoxLoss):
    """Sum of absolute differences over the four offsets.

    Args:
        weight: factor on the loss.
    """

    space = "delta"

    def __init__(self, *, weight: float = 1.0) -> None:
        self.weight = non_negative("weight", weight)

    def __call__(self, predicted: Tensor, target: Tensor) -> Tensor:
        return self.weight * (widened(predicted) - widened(target)).abs().sum(-1)


@LOSSES
class SmoothL1(BoxLoss):
    """Smooth L1 (Fast R-CNN, Girshick ICCV 2015, eq. 3), summed over the four offsets.

    ``0.5 d^2 / beta`` where ``|d| < beta``, else ``|d| - 0.5 beta``.

    Args:
        weight: factor on the loss.
        beta: where the square gives way to the line; torchvision uses 1/9.
    """

    space = "delta"

    def __init__(self, *, weight: float = 1.0, beta: float = 1.0 / 9) -> None:
        if not 0 < beta < math.inf:
            raise ValueError(f"beta must be positive, not {beta}; for beta 0 take L1")
        self.weight = non_negative("weight", weight)
        self.beta = beta

    def __call__(self, predicted: Tensor, target: Tensor) -> Tensor:
        d = (widened(predicted) - widened(target)).abs()
        return self.weight * torch.where(d < self.beta, 0.5 * d * d / self.beta, d - 0.5 * self.beta).sum(-1)


class _IoULoss(BoxLoss):
    """``1 - measure`` of two boxes."""

    space = "box"

    def __init__(self, *, weight: float = 1.0) -> None:
        self.weight = non_negative("weight", weight)

    def __call__(self, predicted: Tensor, target: Tensor) -> Tensor:
        return self.weight * (1 - self.measure(widened(predicted), widened(target)))

    @abstractmethod
    def measure(self, a: Tensor, b: Tensor) -> Tensor:
        """Similarity (N,), 1 for equal boxes."""


@LOSSES
class IoULoss(_IoULoss):
    """1 - IoU. Boxes that do not meet get no gradient: prefer :class:`GIoULoss` early in training."""

    def measure(self, a: Tensor, b: Tensor) -> Tensor:
        return _iou(a, b)[0]


@LOSSES
class GIoULoss(_IoULoss):
    """1 - GIoU (Rezatofighi et al. CVPR 2019, alg. 1): IoU minus the share of the hull that neither box fills."""

    def measure(self, a: Tensor, b: Tensor) -> Tensor:
        iou, union = _iou(a, b)
        hull = _hull(a, b)
        hull_area = hull[0] * hull[1]
        unfilled = (hull_area - union) / hull_area.clamp(min=_EPS)
        return iou - torch.where(hull_area > _EPS, unfilled, 0.0)  # of a hull without area nothing is left unfilled


@LOSSES
class DIoULoss(_IoULoss):
    """1 - DIoU (Zheng et al. AAAI 2020, eq. 7): IoU minus squared centre distance over squared hull diagonal."""

    def measure(self, a: Tensor, b: Tensor) -> Tensor:
        return _iou(a, b)[0] - _centre_distance(a, b)


@LOSSES
class CIoULoss(_IoULoss):
    """1 - CIoU (Zheng et al. AAAI 2020, eqs. 8-11): DIoU and an aspect term, whose factor has no gradient."""

    def measure(self, a: Tensor, b: Tensor) -> Tensor:
        iou = _iou(a, b)[0]
        v = 4 / math.pi**2 * (_angle(b) - _angle(a)) ** 2
        with torch.no_grad():
            alpha = v / (1 - iou + v).clamp(min=_EPS)
        return iou - _centre_distance(a, b) - alpha * v


_EPS = 1e-7  # keeps the gradient finite for boxes without area; far below one square pixel


def _iou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and union area (N,) of box pairs (N, 4)."""
    size = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0)
    inter = size[:, 0] * size[:, 1]
    area_a, area_b = ((x[:, 2] - x[:, 0]) * (x[:, 3] - x[:, 1]) for x in (a, b))
    union = area_a + area_b - inter
    return inter / union.clamp(min=_EPS), union


def _hull(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Width and height (N,) of the smallest box around both."""
    size = torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])
    return size[:, 0], size[:, 1]


def _centre_distance(a: Tensor, b: Tensor) -> Tensor:
    """Squared distance (N,) of the centres over the squared diagonal of the hull."""
    offset = (a[:, :2] + a[:, 2:] - b[:, :2] - b[:, 2:]) / 2
    w, h = _hull(a, b)
    return (offset**2).sum(-1) / (w**2 + h**2).clamp(min=_EPS)


def _angle(boxes: Tensor) -> Tensor:
    """arctan(w / h) (N,)."""
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    return torch.atan(w / h.clamp(min=_EPS))
