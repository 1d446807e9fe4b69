"""The upsampling path of CenterNet: from the backbone's coarsest map to one fine map.

Zhou, Wang, Kraehenbuehl, "Objects as points" (arXiv 1904.07850), section 5 and appendix, after Xiao, Wu, Wei, "Simple
baselines for human pose estimation" (ECCV 2018): per step a 3x3 convolution (deformable in the published ResNets), then
a transposed 4x4 convolution of stride 2 that starts as bilinear interpolation, each with norm and ReLU. (The published
code fills the first output channel so and leaves the others random; here each channel starts as its own interpolation.)
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.config import NECKS, Count
from detkit.models.interfaces import Neck
from detkit.models.layers import ConvName, NormName, make_conv, make_norm
from detkit.structures import FeatureSpec


@NECKS
class Upsample(Neck):
    """One map at a fine stride, grown from the coarsest.

    Args:
        channels: channels after each doubling; three of them lead from stride 32 to 4.
        mode: "transposed" convolutions, or a 1x1 convolution and "bilinear" interpolation.
        lateral: add the backbone's own map where it has one of the same stride, through a 1x1 convolution. The paper's
            ResNets have none of this; small objects and short schedules gain by it.
        conv: the 3x3 convolutions: plain, or ``deform`` and ``modulated_deform`` as in the published ResNets (DCNv2).
        norm: normalisation layers; not ``frozen_bn``, since they start at random.
    """

    def __init__(
        self,
        *,
        in_spec: FeatureSpec,
        channels: tuple[Count, ...] = (256, 128, 64),
        mode: Literal["transposed", "bilinear"] = "transposed",
        lateral: bool = False,
        conv: ConvName = "conv",
        norm: Literal["bn", "gn", "sync_bn"] = "bn",
    ) -> None:
        super().__init__()
        if not channels:
            raise ValueError("channels must name at least one step")
        widths = (in_spec.channels[-1], *channels)
        strides = [in_spec.strides[-1] / 2 ** (i + 1) for i in range(len(channels))]
        self.steps = nn.ModuleList(_Doubling(a, b, mode, conv, norm) for a, b in pairwise(widths))
        #: for each step the backbone's level that joins it, or None
        self.levels = [in_spec.strides.index(s) if lateral and s in in_spec.strides else None for s in strides]
        self.laterals = nn.ModuleList(
            nn.Identity() if level is None else nn.Conv2d(in_spec.channels[level], width, 1)
            for level, width in zip(self.levels, channels, strict=True)
        )
        self.out_spec = FeatureSpec((channels[-1],), (strides[-1],))

    def forward(self, pixels: Tensor, backbone: nn.Module) -> list[Tensor]:
        maps = backbone(pixels)
        x = maps[-1]
        for step, lateral, level in zip(self.steps, self.laterals, self.levels, strict=True):
            x = step(x)
            if level is not None:
                joined = lateral(maps[level])  # of an odd size it is one row or column short of the doubled map
                x = x[:, :, : joined.shape[2], : joined.shape[3]] + joined
        return [x]


class _Doubling(nn.Module):
    """Half the stride."""

    def __init__(self, in_channels: int, channels: int, mode: str, conv: ConvName, norm: NormName) -> None:
        super().__init__()
        self.mode = mode
        self.conv = make_conv(conv, in_channels, channels, 3)
        self.conv_norm = make_norm(norm, channels)
        if mode == "transposed":
            self.up: nn.Module = nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1, bias=False)
            start_as_bilinear(self.up)
        else:
            self.up = nn.Conv2d(channels, channels, 1, bias=False)
        self.up_norm = make_norm(norm, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_norm(self.conv(x)).relu()
        x = self.up(x)
        if self.mode == "bilinear":  # after the 1x1 convolution, which commutes with it, at a quarter of its cost
            x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
        return self.up_norm(x).relu()


def start_as_bilinear(layer: nn.ConvTranspose2d) -> None:
    """Set the weights so that each channel is its own input, bilinearly interpolated to twice the size."""
    assert layer.kernel_size == (4, 4)
    tent = torch.tensor([0.25, 0.75, 0.75, 0.25])
    with torch.no_grad():
        layer.weight.zero_()
        for channel in range(layer.in_channels):
            layer.weight[channel, channel] = torch.outer(tent, tent)
