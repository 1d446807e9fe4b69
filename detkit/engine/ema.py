"""A moving average of the weights, which is often better than the last weights themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import PARAM_LIST, AveragedModel


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
        self._model = AveragedModel(detector, multi_avg_fn=self._take_in, use_buffers=True)
        self._model.n_averaged += 1  # the copy counts: the first update is averaged with it and does not replace it
        self.detector = self._model.module.eval().requires_grad_(False)
        self.decay = decay
        self.num_updates = 0

    def update(self, detector: nn.Module) -> None:
        """Take in the weights of ``detector`` after an optimiser step."""
        self.num_updates += 1
        self._model.update_parameters(detector)

    @torch.no_grad()
    def _take_in(self, averages: PARAM_LIST, values: PARAM_LIST, _: Any) -> None:
        """For tensors of one type. The count is our own: torch's is a tensor, and to read it would wait for the GPU."""
        if averages[0].is_floating_point():
            decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
            torch._foreach_lerp_(averages, values, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
        else:
            torch._foreach_copy_(averages, values)  # pyright: ignore[reportPrivateImportUsage]

    def state_dict(self) -> dict[str, Any]:
        """The averaged detector's, and how many updates are in it."""
        return {"num_updates": self.num_updates, "detector": self.detector.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self.detector.load_state_dict(state["detector"])
        self.num_updates = state["num_updates"]
