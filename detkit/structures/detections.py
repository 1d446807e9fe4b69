"""What a detector found in one image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Detections:
    """D detections of one image, the highest score first.

    ``boxes`` (D, 4) float32 x1 y1 x2 y2 px; of the network input as a detector returns them, of the original image
    after evaluation mapped them back. ``scores`` (D,) float32 in [0, 1]; ``labels`` (D,) int64 in [0, K).
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.boxes.ndim != 2 or self.boxes.shape[1] != 4:
            raise ValueError(f"boxes must be (D, 4), not {tuple(self.boxes.shape)}")
        n = self.boxes.shape[0]
        if self.scores.shape != (n,) or self.labels.shape != (n,):
            raise ValueError(f"{n} boxes but scores {tuple(self.scores.shape)} and labels {tuple(self.labels.shape)}")

    def __len__(self) -> int:
        return self.boxes.shape[0]

    def select(self, index: Tensor) -> Detections:
        """The detections that ``index`` (a bool mask or integers) names, in that order."""
        return Detections(self.boxes[index], self.scores[index], self.labels[index])

    def to(self, device: torch.device | str) -> Detections:
        """A copy on ``device``."""
        return Detections(self.boxes.to(device), self.scores.to(device), self.labels.to(device))
