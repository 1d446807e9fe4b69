"""The last layer of a head that classifies regions: made by the loss, since the two belong together."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.utils.precision import full_precision


class ClassLayer(nn.Module, ABC):
    """From features (N, C) to float32 logits (N, O), whatever the precision around it."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def initialize(self) -> None:
        """Draw the weights and set the biases as they are before training."""


class LinearClassLayer(ClassLayer):
    """A linear layer, its weights drawn with a deviation of 0.01.

    Args:
        width: C.
        bias: (O,), before training.
    """

    def __init__(self, width: int, bias: Tensor) -> None:
        super().__init__()
        linear = nn.Linear(width, len(bias))
        self.weight, self.bias = linear.weight, linear.bias
        self._bias = bias

    def initialize(self) -> None:
        nn.init.normal_(self.weight, std=0.01)
        with torch.no_grad():
            self.bias.copy_(self._bias)

    def forward(self, x: Tensor) -> Tensor:
        return full_precision(F.linear)(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.weight.shape[1]}, out_features={self.weight.shape[0]}"
