"""The detector composed of backbone, neck and head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detkit.models.interfaces import Backbone, Detector, Head, Neck
from detkit.structures import Detections, Images, Losses, Target


class ComposedDetector(Detector):
    """Normalise, run the neck over the backbone, and hand the features to the head."""

    _mean: Tensor
    _std: Tensor

    def __init__(self, *, backbone: Backbone, neck: Neck, head: Head) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.head = head
        self.register_buffer("_mean", torch.tensor(backbone.pixel_stats.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(backbone.pixel_stats.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Images, targets: Sequence[Target] | None = None) -> Losses | list[Detections]:
        features = self.neck(self.normalize(images), self.backbone)
        if targets is None:
            return self.head.predict(features, images)
        return self.head.loss(features, images, targets)

    def normalize(self, images: Images) -> Tensor:
        """(B, 3, H, W) float32: zero mean and unit deviation by the backbone's own statistics, 0 in the padding."""
        pixels = (images.pixels.float() - self._mean) / self._std
        if all(size == images.padded_size for size in images.sizes):
            return pixels
        return pixels.masked_fill(~images.valid_mask(), 0)
