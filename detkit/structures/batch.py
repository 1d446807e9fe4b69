"""What the loader hands to the trainer."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from detkit.structures.images import Images
from detkit.structures.target import Target


@dataclass(frozen=True, slots=True)
class Batch:
    """Images and, image by image, their targets."""

    images: Images
    targets: tuple[Target, ...]

    def __post_init__(self) -> None:
        if len(self.images) != len(self.targets):
            raise ValueError(f"{len(self.images)} images but {len(self.targets)} targets")

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """A copy on ``device``."""
        return Batch(self.images.to(device, non_blocking), tuple(t.to(device, non_blocking) for t in self.targets))

    def pin_memory(self) -> Batch:
        """A copy in memory that a GPU can read by itself."""
        return Batch(self.images.pin_memory(), tuple(t.pin_memory() for t in self.targets))
