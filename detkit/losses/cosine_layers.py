"""Layers whose logits are cosines: for regions, and for the cells of a map.

Both have K class weights without biases, and background beside them as a plain logit. The O logits of a region, or of
an anchor at a cell, are, in this order,

- K products: ``scale cos_k``, ``||x|| cos_k`` or ``||W_k|| ||x|| cos_k``;
- background ``w x + b``, neither normalised nor scaled;
- the lengths that the cosines were multiplied by, so that a loss can come back to them: none for "scale", ``||x||`` (1)
  for "feature", ``||W_k|| ||x||`` (K) for "product".
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.losses.layers import ClassLayer
from detkit.utils.precision import full_precision

#: What cosines are multiplied by: a constant, the feature's length, or that times each weight's.
Lengths = Literal["scale", "feature", "product"]

#: Shorter vectors have no direction: their cosines are 0 and get no gradient, which would be of 1 / length.
_LEAST_LENGTH = 1e-6


class CosineClassLayer(ClassLayer):
    """The logits (N, O) of regions, from features (N, C).

    Args:
        width: C.
        num_classes: K.
        lengths: which of the three.
        scale: of the cosines; used by "scale" alone.
        background: b before training.
    """

    takes_classes = True

    def __init__(
        self, width: int, num_classes: int, *, lengths: Lengths = "scale", scale: float = 1.0, background: float = 0.0
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_classes, width))
        self.background = nn.Linear(width, 1)
        self.lengths: Lengths = lengths
        self.scale = scale
        self._background = background
        self.initialize()

    def initialize(self) -> None:
        _initialize(self.weight, self.background, self._background)

    def forward(self, x: Tensor, classes: Tensor | None = None) -> Tensor:
        return full_precision(self._logits)(x, self.weight if classes is None else self.weight[classes])

    def _logits(self, x: Tensor, weight: Tensor) -> Tensor:
        length = self.scale if self.lengths == "scale" else x.norm(dim=1, keepdim=True)
        if self.lengths == "product":
            length = length * weight.norm(dim=1)
        parts = [length * cosines(x, weight), self.background(x)]
        return torch.cat([*parts, length] if isinstance(length, Tensor) else parts, dim=1)

    def extra_repr(self) -> str:
        return _words(self.weight, self.lengths, self.scale)


class CosineClassMap(nn.Module):
    """The logits (B, A * O, H, W), anchor by anchor, of the cells of a map (B, C, H, W).

    What has a direction is the 3 x 3 neighbourhood of a cell, 9 C numbers, and each anchor has class weights of its own
    for it. Beyond the map there is 0.

    Args:
        channels: C.
        num_anchors: A.
        num_classes: K.
        lengths, scale, background: as of :class:`CosineClassLayer`.
    """

    def __init__(
        self,
        channels: int,
        num_anchors: int,
        num_classes: int,
        *,
        lengths: Lengths = "scale",
        scale: float = 1.0,
        background: float = 0.0,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_anchors * num_classes, channels, 3, 3))
        self.background = nn.Conv2d(channels, num_anchors, 3, padding=1)
        self.num_anchors = num_anchors
        self.lengths: Lengths = lengths
        self.scale = scale
        self._background = background
        self.initialize()

    def initialize(self) -> None:
        """Draw the weights and set background's bias as they are before training."""
        _initialize(self.weight, self.background, self._background)

    def forward(self, x: Tensor) -> Tensor:
        return full_precision(self._logits)(x)

    def _logits(self, x: Tensor) -> Tensor:
        squares = F.avg_pool2d(x.square().sum(1, keepdim=True), 3, stride=1, padding=1, divisor_override=1)
        of_cell = _root(squares)  # (B, 1, H, W)
        known = of_cell > _LEAST_LENGTH
        weight = directions(self.weight.flatten(1)).view_as(self.weight)
        cosine = torch.where(known, F.conv2d(x, weight, padding=1) / torch.where(known, of_cell, 1.0), 0.0)
        cosine = cosine.unflatten(1, (self.num_anchors, -1))  # (B, A, K, H, W)
        length = self.scale
        if self.lengths != "scale":
            length = of_cell[:, None].expand(-1, self.num_anchors, -1, -1, -1)
        if self.lengths == "product":
            length = length * self.weight.flatten(1).norm(dim=1).view(1, self.num_anchors, -1, 1, 1)
        parts = [length * cosine, self.background(x)[:, :, None]]
        return torch.cat([*parts, length] if isinstance(length, Tensor) else parts, dim=2).flatten(1, 2)

    def extra_repr(self) -> str:
        return f"anchors={self.num_anchors}, " + _words(self.weight, self.lengths, self.scale)


def cosines(x: Tensor, weight: Tensor) -> Tensor:
    """(N, K): the cosine of each of ``x`` (N, C) with each of ``weight`` (K, C)."""
    return F.linear(directions(x), directions(weight))


def directions(x: Tensor) -> Tensor:
    """The rows of ``x`` (N, C) at length 1; a row that has no length to speak of becomes 0."""
    length = x.norm(dim=1, keepdim=True)
    known = length > _LEAST_LENGTH
    return torch.where(known, x / torch.where(known, length, 1.0), 0.0)


def _root(x: Tensor) -> Tensor:
    """The square root, whose gradient is 0 rather than infinite where ``x`` is 0."""
    return torch.where(x > 0, torch.where(x > 0, x, 1.0).sqrt(), 0.0)


def _initialize(weight: Tensor, background: nn.Linear | nn.Conv2d, bias: float) -> None:
    nn.init.normal_(weight, std=0.01)
    nn.init.normal_(background.weight, std=0.01)
    assert background.bias is not None
    nn.init.constant_(background.bias, bias)


def _words(weight: Tensor, lengths: str, scale: float) -> str:
    times = f"scale={scale:g}" if lengths == "scale" else f"lengths={lengths}"
    return f"in_features={weight.shape[1]}, class_weights={weight.shape[0]}, {times}"
