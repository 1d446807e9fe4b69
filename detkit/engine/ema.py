"""A moving average of the weights, which is often better than the last weights themselves."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class WeightAverage:
    """Exponential moving average of a detector's weights and buffers (Polyak and Juditsky 1992).

    After update n, each weight is ``d * average + (1 - d) * weight`` with ``d = min(decay, (1 + n) / (10 + n))``: the
    rise of TensorFlow's ExponentialMovingAverage(num_updates); without it a short run would average its random start.
    Buffers that are no floating numbers (counters) are copied.

    Attributes:
        detector: a copy of the detector that holds the averages; in eval mode, without gradients.
        num_updates: n.
    """

    def __init__(self, detector: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), not {decay}")
        self.detector = copy.deepcopy(detector).eval().requires_grad_(False)
        self.decay = decay
        self.num_updates = 0

    @torch.no_grad()
    def update(self, detector: nn.Module) -> None:
        """Take in the weights of ``detector`` after an optimiser step."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        values = detector.state_dict()
        averaged: list[tuple[Tensor, Tensor]] = []
        for name, average in self.detector.state_dict().items():
            if average.is_floating_point():
                averaged.append((average, values[name]))
            else:
                average.copy_(values[name])
        torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
            [average for average, _ in averaged], [value for _, value in averaged], 1 - decay
        )

    def state_dict(self) -> dict[str, Any]:
        return {"num_updates": self.num_updates, "detector": self.detector.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.detector.load_state_dict(state["detector"])
        self.num_updates = state["num_updates"]
