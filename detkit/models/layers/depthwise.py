"""Depthwise convolutions with a stride, in float32 where a CPU would train them in bf16.

oneDNN has no fast gradient for them in bf16: of MobileNetV2's four, on 4 images of 320 x 416 px, it takes 3 to 13 times
as long as in float32 with the conversions (docs/performance.md).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.models.layers.conv import OwnConv


class StridedDepthwise(OwnConv):
    """A convolution that is none of bf16 on a CPU: its input becomes float32, its result bf16 again.

    Args:
        conv: whose weights, stride, padding, holes and groups it takes.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(
            conv.in_channels, conv.out_channels, (conv.kernel_size[0], conv.kernel_size[1]), groups=conv.groups,
            bias=False, device="meta",
        )  # fmt: skip
        self.weight, self.bias = conv.weight, conv.bias
        self.stride, self.padding, self.dilation = conv.stride, conv.padding, conv.dilation

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not _would_be_bf16(x):
            return self._plain(x, weight, bias)
        with torch.autocast("cpu", enabled=False):
            result = self._plain(x.float(), weight.float(), None if bias is None else bias.float())
        return result.bfloat16()

    def _plain(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)


def _would_be_bf16(x: Tensor) -> bool:
    if x.device.type != "cpu":
        return False
    cast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    return cast == torch.bfloat16


def use_strided_depthwise(module: nn.Module) -> None:
    """Replace every plain depthwise convolution with a stride below ``module``; weights keep their names."""
    for child in module.modules():
        for name, conv in child.named_children():
            if type(conv) is nn.Conv2d and _is_strided_depthwise(conv):
                setattr(child, name, StridedDepthwise(conv))


def _is_strided_depthwise(conv: nn.Conv2d) -> bool:
    return 1 < conv.groups == conv.in_channels and max(conv.stride) > 1 and conv.padding_mode == "zeros"
