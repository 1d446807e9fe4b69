"""A padded batch of images, and for each image what leads back to its file."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from detkit.structures.affine import Affine
from detkit.structures.size_range import SizeRange
from detkit.utils.transfer import constant


@dataclass(frozen=True, slots=True)
class ImageMeta:
    """Everything needed to come back from the network input to the original image.

    ``size`` is (h, w) in px inside the batch before padding, ``original_size`` (h, w) of the file. ``affine`` maps the
    original to the network input and is None where random augmentation has no known inverse. ``key`` is
    hash(seed, epoch, index): it seeds whatever is drawn for this image, so that batch order cannot change a result.
    ``valid_range``: the sizes that count in this image, None for all; what lies outside is neither learnt nor found
    (SNIP, see ``matching.ranges``).
    """

    image_id: int
    file: str
    size: tuple[int, int]
    original_size: tuple[int, int]
    affine: Affine | None = None
    key: int = 0
    valid_range: SizeRange | None = None


@dataclass(frozen=True, slots=True)
class Images:
    """``pixels`` (B, 3, H, W) RGB, uint8 or float32 in 0..255, padded at the right and bottom only; one meta each."""

    pixels: Tensor
    meta: tuple[ImageMeta, ...]

    def __post_init__(self) -> None:
        if self.pixels.ndim != 4 or self.pixels.shape[1] != 3:
            raise ValueError(f"pixels must be (B, 3, H, W), not {tuple(self.pixels.shape)}")
        if len(self.meta) != self.pixels.shape[0]:
            raise ValueError(f"{self.pixels.shape[0]} images but {len(self.meta)} metas")
        h, w = self.pixels.shape[2:]
        for meta in self.meta:
            if meta.size[0] > h or meta.size[1] > w:
                raise ValueError(f"{meta.file}: size {meta.size} does not fit into the batch of {h} x {w}")

    def __len__(self) -> int:
        return self.pixels.shape[0]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(h, w) of each image before padding."""
        return [meta.size for meta in self.meta]

    @property
    def padded_size(self) -> tuple[int, int]:
        """(H, W) of the batch."""
        return self.pixels.shape[2], self.pixels.shape[3]

    def valid_mask(self) -> Tensor:
        """(B, 1, H, W) bool, False in the padding."""
        h, w = self.padded_size
        sizes = constant(tuple(self.sizes), self.pixels.device)
        rows = torch.arange(h, device=self.pixels.device) < sizes[:, :1]
        columns = torch.arange(w, device=self.pixels.device) < sizes[:, 1:]
        return rows[:, None, :, None] & columns[:, None, None, :]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Images:
        """A copy on ``device``; sizes and files stay."""
        return replace(self, pixels=self.pixels.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Images:
        """A copy in memory that a GPU can read by itself."""
        return replace(self, pixels=self.pixels.pin_memory())
