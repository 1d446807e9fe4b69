"""One feature map, for heads without a pyramid, and as the baseline that a pyramid is measured against."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from detkit.config import NECKS, Count
from detkit.models.interfaces import Neck
from detkit.models.layers import Attention
from detkit.structures import FeatureSpec


@NECKS
class SingleLevel(Neck):
    """One of the backbone's maps, by its stride.

    Args:
        stride: input px per cell of the map to take, the deepest of several (a dilated C5 and C4); null for the
            last of all.
        out_channels: project to so many channels by a 1x1 convolution and a ReLU; null takes the map as it is.
        attention: rescales the result (``attention@model.neck.attention=SE``).
    """

    def __init__(
        self,
        *,
        in_spec: FeatureSpec,
        stride: int | None = None,
        out_channels: Count | None = None,
        attention: Callable[..., Attention] | None = None,
    ) -> None:
        super().__init__()
        self.level = in_spec.at_stride(stride)
        channels = in_spec.channels[self.level]
        self.projection = None if out_channels is None else nn.Conv2d(channels, out_channels, 1)
        self.attention = nn.Identity() if attention is None else attention(channels=out_channels or channels)
        self.out_spec = FeatureSpec((out_channels or channels,), (in_spec.strides[self.level],))

    def forward(self, pixels: Tensor, backbone: nn.Module) -> list[Tensor]:
        x = backbone(pixels)[self.level]
        return [self.attention(x if self.projection is None else F.relu(self.projection(x)))]
