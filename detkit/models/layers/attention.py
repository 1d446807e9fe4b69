"""Attention that rescales a feature map: squeeze-and-excitation, and CBAM.

Both can start as the identity: their gates are then ``2 sigmoid(z)`` with the last layer at zero, so that a pretrained
network computes what it computed before, and learns where to turn channels and places up or down. ``identity: false``
is the papers' ``sigmoid(z)``, which halves a fresh network's signal at each gate.

Both look at the whole map, padding included, as everywhere in the field: what an image gives depends a little on how
much padding its batch needs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detkit.config import ATTENTIONS


class Attention(nn.Module):
    """Rescales a map (B, C, H, W); made for ``channels`` at run time, once for every place it is put."""

    runtime_arguments = ("channels",)

    #: weight files of networks without it leave it as it starts
    added = True


@ATTENTIONS
class SE(Attention):
    """Squeeze-and-excitation (Hu, Shen, Sun, CVPR 2018, equations 2 to 4): each channel by what the whole map shows.

    Args:
        reduction: r, how much narrower the bottleneck is than the map.
        identity: start as the identity; see ``layers.attention``.
    """

    def __init__(self, *, channels: int, reduction: int = 16, identity: bool = True) -> None:
        super().__init__()
        self.mlp = _channel_mlp(channels, reduction)
        self.gate = _Gate(self.mlp[-1], identity)

    def forward(self, x: Tensor) -> Tensor:
        squeezed = x.mean(dim=(2, 3))  # equation 2
        return x * self.gate(self.mlp(squeezed))[:, :, None, None]  # equations 3 and 4


@ATTENTIONS
class CBAM(Attention):
    """Convolutional block attention (Woo et al., ECCV 2018, equations 1 to 3): first each channel, then each place.

    Args:
        reduction: r, how much narrower the channel branch's bottleneck is than the map.
        kernel: side of the spatial branch's convolution, odd; 7 in the paper.
        identity: start as the identity; see ``layers.attention``.
    """

    def __init__(self, *, channels: int, reduction: int = 16, kernel: int = 7, identity: bool = True) -> None:
        super().__init__()
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, not {kernel}")
        self.mlp = _channel_mlp(channels, reduction)
        self.spatial = nn.Conv2d(2, 1, kernel, padding=kernel // 2)
        self.channel_gate = _Gate(self.mlp[-1], identity)
        self.spatial_gate = _Gate(self.spatial, identity)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.mlp(x.mean(dim=(2, 3))) + self.mlp(x.amax(dim=(2, 3)))  # equation 2: one network for both
        x = x * self.channel_gate(pooled)[:, :, None, None]
        places = torch.cat([x.mean(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)], dim=1)
        return x * self.spatial_gate(self.spatial(places))  # equation 3


class _Gate(nn.Module):
    """Numbers around 1, or in (0, 1), from what ``last`` says; as the identity ``last`` starts at zero."""

    def __init__(self, last: nn.Module, identity: bool) -> None:
        super().__init__()
        self.scale = 2.0 if identity else 1.0
        if identity:
            for parameter in last.parameters():
                nn.init.zeros_(parameter)

    def forward(self, z: Tensor) -> Tensor:
        return self.scale * z.sigmoid()


def _channel_mlp(channels: int, reduction: int) -> nn.Sequential:
    if not 1 <= reduction <= channels:
        raise ValueError(f"reduction must lie between 1 and the {channels} channels, not {reduction}")
    narrow = channels // reduction
    return nn.Sequential(nn.Linear(channels, narrow), nn.ReLU(inplace=True), nn.Linear(narrow, channels))
