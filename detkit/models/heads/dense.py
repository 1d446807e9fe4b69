"""The template of heads that speak at every cell of every level: three pure pieces, put together in one place."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from detkit.models.interfaces import Head
from detkit.structures import Detections, Images, Losses, Target
from detkit.utils.precision import full_precision
from detkit.utils.transfer import constant

#: For each level (B, 1, H_l, W_l) bool, False where a cell begins in the padding; None where nothing is padded.
CellMasks = Sequence[Tensor] | None


class DenseHead(Head):
    """A dense head is its ``forward``, ``loss_from_raw`` and ``decode``; here they become losses and detections.

    ``forward`` runs in the precision of the network, the two others in float32. ``levels``: the maps that it reads, of
    those it is given; ``strides``: input px per cell of each of these. The three see only them.
    ``in_padding``: maps are read as they are, padding and all.
    """

    levels: tuple[int, ...]
    strides: tuple[float, ...]
    in_padding: bool = False

    @abstractmethod
    def forward(self, features: Sequence[Tensor], masks: CellMasks = None) -> Any:
        """The raw outputs, a NamedTuple of tensors or lists of them.

        Args:
            features: L maps (B, C, H_l, W_l).
            masks: ``features`` are zero where these are False, and what later layers with neighbours read must be too,
                so that an image's outputs do not depend on how much padding its batch needs.
        """

    @abstractmethod
    def loss_from_raw(self, raw: Any, images: Images, targets: Sequence[Target]) -> Losses:
        """The losses of raw outputs."""

    @abstractmethod
    def decode(self, raw: Any, images: Images) -> list[Detections]:
        """The detections in raw outputs, px of the network input."""

    def loss(self, features: Sequence[Tensor], images: Images, targets: Sequence[Target]) -> Losses:
        return full_precision(self.loss_from_raw)(self._raw(features, images), images, targets)

    def predict(self, features: Sequence[Tensor], images: Images) -> list[Detections]:
        return full_precision(self.decode)(self._raw(features, images), images)

    def _raw(self, features: Sequence[Tensor], images: Images) -> Any:
        features = [features[level] for level in self.levels]
        masks = self.masks(features, images)
        if masks is not None:  # a network's own maps are not zero in the padding: norms and biases reach there
            features = [feature.masked_fill(~mask, 0) for feature, mask in zip(features, masks, strict=True)]
        return self(features, masks)

    def masks(self, features: Sequence[Tensor], images: Images) -> CellMasks:
        """Where each level has cells of the image, see :data:`CellMasks`."""
        return None if self.in_padding else cell_masks(features, self.strides, images)


def cell_masks(features: Sequence[Tensor], strides: Sequence[float], images: Images) -> CellMasks:
    """Where maps of ``strides`` have cells of the image, see :data:`CellMasks`."""
    if all(size == images.padded_size for size in images.sizes):
        return None
    return [
        cells_inside((f.shape[2], f.shape[3]), stride, images)[:, None]
        for f, stride in zip(features, strides, strict=True)
    ]


def cells_inside(shape: tuple[int, int], stride: float, images: Images) -> Tensor:
    """(B, H, W) bool: which cells of a map of ``shape`` begin inside their image, not in its padding."""
    device = images.pixels.device
    sizes = constant(tuple(images.sizes), device)
    y = torch.arange(shape[0], device=device) * stride
    x = torch.arange(shape[1], device=device) * stride
    return (y < sizes[:, :1])[:, :, None] & (x < sizes[:, 1:])[:, None, :]
