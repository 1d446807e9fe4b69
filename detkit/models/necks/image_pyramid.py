"""The image pyramid: one network on the image at several sizes, the classical rival of the feature pyramid.

Each level of the result comes from the same depth of the same network, so that an object of any size is seen at the
scale that fits it by features of equal strength (Adelson et al. 1984; SNIP: Singh and Davis, CVPR 2018), at the price
of a pass over every size. See also Lin et al., CVPR 2017, figure 1: (a) this, (d) FPN.
"""

from __future__ import annotations

from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from detkit.config import NECKS, Count
from detkit.models.interfaces import Neck
from detkit.structures import FeatureSpec


@NECKS
class ImagePyramid(Neck):
    """One backbone map from the image at each of several scales.

    The level of scale s has the stride of the map over s. Weights are shared by all scales. Heads that read one map
    take the sum of all.

    Args:
        scales: factors on the image's sides, largest first: the finest level comes first.
        stride: of the backbone's map that is taken, in px of the scaled image; null for the last. Coarser maps are
            computed in vain: a ResNet leaves them out by ``model.backbone.levels=[2,3]``.
        out_channels: project to so many channels, by a 1x1 and a 3x3 convolution that all levels share.
        merge: "levels" gives one map a scale; "sum" adds them up at the finest stride, for heads that read one map.
    """

    def __init__(
        self,
        *,
        in_spec: FeatureSpec,
        scales: tuple[float, ...] = (2.0, 1.0, 0.5, 0.25),
        stride: int | None = None,
        out_channels: Count = 256,
        merge: Literal["levels", "sum"] = "levels",
    ) -> None:
        super().__init__()
        if not scales or min(scales) <= 0 or list(scales) != sorted(set(scales), reverse=True):
            raise ValueError(f"scales must be positive and fall, so that the finest level is first: {list(scales)}")
        self.scales = scales
        self.level = in_spec.at_stride(stride)
        self.lateral = nn.Conv2d(in_spec.channels[self.level], out_channels, 1)
        self.output = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        for conv in (self.lateral, self.output):
            assert conv.bias is not None
            nn.init.kaiming_uniform_(conv.weight, a=1)
            nn.init.zeros_(conv.bias)
        strides = tuple(in_spec.strides[self.level] / scale for scale in scales)
        self.merge = merge
        num_levels = 1 if merge == "sum" else len(scales)
        self.out_spec = FeatureSpec((out_channels,) * num_levels, strides[:num_levels])

    def forward(self, pixels: Tensor, backbone: nn.Module) -> list[Tensor]:
        levels = [self.output(self.lateral(backbone(scaled(pixels, scale))[self.level])) for scale in self.scales]
        if self.merge == "levels":
            return levels
        finest = levels[0]
        for level, scale in zip(levels[1:], self.scales[1:], strict=True):
            finest = finest + _cut_or_extended(scaled(level, self.scales[0] / scale), finest.shape[2], finest.shape[3])
        return [finest]


def _cut_or_extended(x: Tensor, h: int, w: int) -> Tensor:
    """``x`` with ``h`` rows and ``w`` columns: coarse maps end where their last whole cell does."""
    x = x[:, :, :h, :w]
    return F.pad(x, (0, w - x.shape[3], 0, h - x.shape[2]), mode="replicate")


def scaled(pixels: Tensor, scale: float) -> Tensor:
    """``pixels`` (B, C, H, W) at ``scale`` times the size, smoothed first where it shrinks.

    The mapping uses ``scale`` itself, not the rounded sizes: cell (i, j) of every image lies where its stride says.
    """
    if scale == 1:
        return pixels
    options: dict[str, Any] = {"mode": "bilinear", "align_corners": False, "recompute_scale_factor": False}
    return F.interpolate(pixels, scale_factor=scale, antialias=scale < 1, **options)
