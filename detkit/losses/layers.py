"""The last layer of a head that classifies regions: made by the loss, since the two belong together."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.utils.precision import full_precision


class ClassLayer(nn.Module, ABC):
    """From features (N, C) to float32 logits (N, O), whatever the precision around it.

    ``takes_classes``: it can be asked for the logits of some classes alone, ``layer(x, classes)`` with (K',) ascending
    numbers; what is no class's, such as background, stays in its place behind them.
    """

    takes_classes: bool = False

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
        num_classes: K; the outputs behind them are no class's. None for O.
    """

    takes_classes = True

    def __init__(self, width: int, bias: Tensor, num_classes: int | None = None) -> None:
        super().__init__()
        self.num_classes = len(bias) if num_classes is None else num_classes
        linear = nn.Linear(width, len(bias))
        self.weight, self.bias = linear.weight, linear.bias
        self._bias = bias

    def initialize(self) -> None:
        nn.init.normal_(self.weight, std=0.01)
        with torch.no_grad():
            self.bias.copy_(self._bias)

    def forward(self, x: Tensor, classes: Tensor | None = None) -> Tensor:
        if classes is None:
            return full_precision(F.linear)(x, self.weight, self.bias)
        rows = torch.cat([classes, torch.arange(self.num_classes, len(self.bias), device=classes.device)])
        return full_precision(F.linear)(x, self.weight[rows], self.bias[rows])

    def extra_repr(self) -> str:
        return f"in_features={self.weight.shape[1]}, out_features={self.weight.shape[0]}"
