"""A stack of convolutions in front of a dense head's predictions."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from detkit.models.layers.norm import ConvNorm, NormName, conv_with_norm

#: Slope of YOLOv1's leaky ReLU (Redmon et al., CVPR 2016, equation 2).
LEAK = 0.1


class ConvTower(nn.Module):
    """``num_convs`` times a 3x3 convolution and a ReLU (RetinaNet, Lin et al. ICCV 2017, section 4).

    Args:
        in_channels: channels that come in.
        channels: channels of every convolution.
        num_convs: how many; none leaves the input as it is.
        std: deviation of the normal distribution that the weights are drawn from, 0.01 in RetinaNet; None keeps the
            signal's size from layer to layer (He et al., ICCV 2015, equation 10). Biases are 0.
        norm: normalisation after each convolution, in place of its bias; None for none.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        num_convs: int,
        std: float | None = None,
        norm: NormName | None = None,
    ) -> None:
        super().__init__()
        widths = [in_channels] + [channels] * num_convs
        self.out_channels = widths[-1]
        self.convs = nn.ModuleList(conv_with_norm(a, b, 3, norm) for a, b in pairwise(widths))
        for conv in self.modules():
            if isinstance(conv, nn.Conv2d):
                _initialize(conv, std)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, C, H, W) from (B, in_channels, H, W); between layers 0 where ``mask`` (B, 1, H, W) is False."""
        for conv in self.convs:
            x = (conv(x, mask) if isinstance(conv, ConvNorm) else conv(x)).relu()
            if mask is not None:
                x = x.masked_fill(~mask, 0)
        return x


def _initialize(conv: nn.Conv2d, std: float | None) -> None:
    if std is None:
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    else:
        nn.init.normal_(conv.weight, std=std)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
