"""Box coders: the change of variables between a reference box and the box to be found."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from detkit.config import CODERS
from detkit.structures.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from detkit.utils.precision import widened
from detkit.utils.transfer import constant


class Coder(ABC):
    """What a head needs to know of its coder: four numbers for a box, relative to a reference box."""

    @abstractmethod
    def encode(self, boxes: Tensor, references: Tensor) -> Tensor:
        """Deltas (N, 4) that take ``references`` (N, 4) px to ``boxes`` (N, 4) px."""

    @abstractmethod
    def decode(self, deltas: Tensor, references: Tensor) -> Tensor:
        """Boxes (N, ..., 4) px for ``deltas`` (N, ..., 4) relative to ``references`` (N, 4) px."""


@CODERS
class DeltaCoder(Coder):
    """Centre offsets relative to the reference's size, and log sizes (R-CNN, Girshick et al. CVPR 2014, appendix C).

    Args:
        weights: factors on dx, dy, dw, dh that bring them to unit variance; (10, 10, 5, 5) for a second stage.
    """

    #: A box grows at most to 1000 px from one stride of 16: larger log sizes would overflow ``exp`` early in training.
    MAX_LOG_SIZE = math.log(1000.0 / 16)

    def __init__(self, *, weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)) -> None:
        if min(weights) <= 0:
            raise ValueError(f"weights must be positive, not {list(weights)}")
        self.weights = weights

    def encode(self, boxes: Tensor, references: Tensor) -> Tensor:
        target, source = xyxy_to_cxcywh(boxes), xyxy_to_cxcywh(references)
        centre = (target[:, :2] - source[:, :2]) / source[:, 2:]
        size = torch.log(target[:, 2:] / source[:, 2:])
        return torch.cat([centre, size], dim=1) * constant(self.weights, centre.device, centre.dtype)

    def decode(self, deltas: Tensor, references: Tensor) -> Tensor:
        shape = (references.shape[0],) + (1,) * (deltas.ndim - 2) + (4,)
        source = xyxy_to_cxcywh(references).view(shape)
        deltas = widened(deltas)
        deltas = deltas / constant(self.weights, deltas.device, deltas.dtype)
        centre = source[..., :2] + deltas[..., :2] * source[..., 2:]
        size = source[..., 2:] * deltas[..., 2:].clamp(max=self.MAX_LOG_SIZE).exp()
        return cxcywh_to_xyxy(torch.cat([centre, size], dim=-1))
