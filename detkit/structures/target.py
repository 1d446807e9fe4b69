"""What is to be found in one image, in the frame of the network input."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from detkit.structures.columns import check_landmarks, each_field


@dataclass(frozen=True, slots=True)
class Target:
    """N objects of one image.

    ``boxes`` (N, 4) float32 x1 y1 x2 y2 px of the network input; ``labels`` (N,) int64 in [0, K);
    ``ignore`` (N,) bool: crowd or difficult, neither positive nor negative. ``landmarks``, where the data have them,
    (N, L, 3) float32: x, y px and the mark of each of L points, 0 where nobody labelled it (see
    :class:`~detkit.structures.Landmarks`).
    """

    boxes: Tensor
    labels: Tensor
    ignore: Tensor
    landmarks: Tensor | None = None

    def __post_init__(self) -> None:
        if self.boxes.ndim != 2 or self.boxes.shape[1] != 4:
            raise ValueError(f"boxes must be (N, 4), not {tuple(self.boxes.shape)}")
        n = self.boxes.shape[0]
        if self.labels.shape != (n,) or self.ignore.shape != (n,):
            raise ValueError(f"{n} boxes but labels {tuple(self.labels.shape)} and ignore {tuple(self.ignore.shape)}")
        check_landmarks(self.landmarks, n, 3, "boxes")

    @classmethod
    def empty(cls) -> Target:
        """A target without objects."""
        return cls(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool))

    def __len__(self) -> int:
        return self.boxes.shape[0]

    def select(self, index: Tensor) -> Target:
        """The objects that ``index`` (a bool mask or integers) names."""
        return each_field(self, lambda column: column[index])

    @property
    def wanted(self) -> Target:
        """The objects that are to be found: those not ignored."""
        return self.select(~self.ignore)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Target:
        """A copy on ``device``."""
        return each_field(self, lambda column: column.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Target:
        """A copy in memory that a GPU can read by itself."""
        return each_field(self, lambda column: column.pin_memory())
