"""A convolution, plain or deformable by one argument (Dai et al., ICCV 2017; modulated: Zhu et al., CVPR 2019)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from detkit.ops import deform_conv

#: ``deform`` moves the kernel's taps (v1), ``modulated_deform`` also scales what they read (v2).
ConvName = Literal["conv", "deform", "modulated_deform"]


def make_conv(
    name: ConvName, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, *, bias: bool = False
) -> nn.Conv2d:
    """The layer that ``name`` means, padded so that stride 1 keeps the size."""
    padding = kernel_size // 2
    if name == "conv":
        return nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=bias)
    return DeformConv(
        in_channels=in_channels, out_channels=out_channels, kernel_size=kernel_size, stride=stride, padding=padding,
        bias=bias, modulated=name == "modulated_deform",
    )  # fmt: skip


class OwnConv(nn.Conv2d, ABC):
    """A convolution that is not run as PyTorch runs it."""

    @abstractmethod
    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer with another kernel, such as one with a frozen norm folded in."""

    def forward(self, input: Tensor) -> Tensor:
        return self.convolve(input, self.weight, self.bias)


class OffsetConv(nn.Conv2d):
    """The convolution that says how taps move: zero at the start, and of no pretrained network."""

    #: weight files of other networks lack it; loading them leaves it as it starts
    added = True

    def reset_parameters(self) -> None:
        """Offsets start at 0: the deformable convolution is then a plain one."""
        nn.init.zeros_(self.weight)
        assert self.bias is not None
        nn.init.zeros_(self.bias)


class DeformConv(OwnConv):
    """A convolution whose taps move by offsets that a second convolution makes from the same map.

    The second convolution starts at zero. A fresh v1 layer therefore is the plain convolution with its weights. A fresh
    v2 layer is half of it (before the bias): its mask is a sigmoid, 0.5 at zero, as Zhu et al., section 3.1, have it,
    and with them detectron2 and mmcv, whose weights so keep their meaning. The papers train the second convolution
    with a tenth of the learning rate (Zhu et al.); here, as in detectron2 and mmdetection, it has the whole.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: as of ``nn.Conv2d``.
        offset_groups: equal groups of input channels that have offsets of their own.
        modulated: v2.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        offset_groups: int = 1,
        bias: bool = False,
        modulated: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        self.num_moves = 2 * offset_groups * kernel_size**2
        num_masks = offset_groups * kernel_size**2 if modulated else 0
        self.offset = OffsetConv(
            in_channels, self.num_moves + num_masks, kernel_size, stride, padding, dilation, bias=True
        )

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        moves = self.offset(x)
        mask = moves[:, self.num_moves :].sigmoid() if moves.shape[1] > self.num_moves else None
        (sy, sx), (py, px), (dy, dx) = self.stride, (int(p) for p in self.padding), self.dilation
        return deform_conv(
            x, moves[:, : self.num_moves], weight, bias, mask, stride=(sy, sx), padding=(py, px), dilation=(dy, dx)
        )


def convolve(conv: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``conv`` with another kernel and bias."""
    if isinstance(conv, OwnConv):
        return conv.convolve(x, weight, bias)
    return F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)
