"""What is to be found in one image, in the frame of the network input."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Target:
    """N objects of one image.

    ``boxes`` (N, 4) float32 x1 y1 x2 y2 px of the network input; ``labels`` (N,) int64 in [0, K);
    ``ignore`` (N,) bool: crowd or difficult, neither positive nor negative.
    """

    boxes: Tensor
    labels: Tensor
    ignore: Tensor

    def __post_init__(self) -> None:
        if self.boxes.ndim != 2 or self.boxes.shape[1] != 4:
            raise ValueError(f"boxes must be (N, 4), not {tuple(self.boxes.shape)}")
        n = self.boxes.shape[0]
        if self.labels.shape != (n,) or self.ignore.shape != (n,):
            raise ValueError(f"{n} boxes but labels {tuple(self.labels.shape)} and ignore {tuple(self.ignore.shape)}")

    @classmethod
    def empty(cls) -> Target:
        """A target without objects."""
        return cls(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool))

    def __len__(self) -> int:
        return self.boxes.shape[0]

    def select(self, index: Tensor) -> Target:
        """The objects that ``index`` (a bool mask or integers) names."""
        return Target(self.boxes[index], self.labels[index], self.ignore[index])

    @property
    def wanted(self) -> Target:
        """The objects that are to be found: those not ignored."""
        return self.select(~self.ignore)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Target:
        """A copy on ``device``."""
        return Target(*(t.to(device, non_blocking=non_blocking) for t in (self.boxes, self.labels, self.ignore)))

    def pin_memory(self) -> Target:
        """A copy in memory that a GPU can read by itself."""
        return Target(self.boxes.pin_memory(), self.labels.pin_memory(), self.ignore.pin_memory())
