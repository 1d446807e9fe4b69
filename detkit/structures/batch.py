"""What the loader hands to the trainer."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from detkit.structures.images import Images
from detkit.structures.target import Target, brought, pinned


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
        """A copy on ``device``, in as many pieces whatever the number of images."""
        return Batch(self.images.to(device, non_blocking), brought(self.targets, device, non_blocking))

    def pin_memory(self) -> Batch:
        """A copy in memory that a GPU can read by itself."""
        return Batch(self.images.pin_memory(), pinned(self.targets))
