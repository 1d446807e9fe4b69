"""The network of YOLOv1 (Redmon et al., CVPR 2016, figure 3): 24 convolutional layers, leaky ReLUs, no shortcuts."""

from __future__ import annotations

from torch import Tensor, nn

from detkit.config import BACKBONES
from detkit.models.backbones.weights import load_file
from detkit.models.interfaces import Backbone
from detkit.models.layers import LEAK, NormName, make_norm
from detkit.structures import FeatureSpec, PixelStats

#: Figure 3: (kernel, channels in units of the first layer's, stride) of each convolution. Stages 1 to 4 begin with a
#: 2x2 max pooling; stages 0 and 5 halve the map by the stride of their first convolution.
_STAGES = (
    ((7, 1, 2),),
    ((3, 3, 1),),
    ((1, 2, 1), (3, 4, 1), (1, 4, 1), (3, 8, 1)),
    ((1, 4, 1), (3, 8, 1)) * 4 + ((1, 8, 1), (3, 16, 1)),
    ((1, 8, 1), (3, 16, 1)) * 2 + ((3, 16, 1),),
    ((3, 16, 2), (3, 16, 1), (3, 16, 1)),
)


@BACKBONES
class Darknet24(Backbone):
    """YOLOv1's 24 convolutions: maps at strides 4, 8, 16, 32 and 64.

    Args:
        width: channels of the first layer, 64 in the paper; all others follow.
        norm: normalisation after each convolution; null is the paper, which has none and was pretrained on ImageNet
            for a week. From random weights take ``bn``.
        weights: path of a state dict, or null for random weights.
    """

    #: The authors' darknet feeds pixels in [0, 1].
    pixel_stats = PixelStats(mean=(0.0, 0.0, 0.0), std=(255.0, 255.0, 255.0))

    def __init__(self, *, width: int = 64, norm: NormName | None = None, weights: str | None = None) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        channels, maps = 3, []
        for i, stage in enumerate(_STAGES):
            layers: list[nn.Module] = [nn.MaxPool2d(2)] if 0 < i < 5 else []
            for kernel, factor, stride in stage:
                layers.append(_layer(channels, factor * width, kernel, stride, norm))
                channels = factor * width
            self.stages.append(nn.Sequential(*layers))
            maps.append(channels)
        load_file(self, weights)
        self.out_spec = FeatureSpec(tuple(maps[1:]), (4.0, 8.0, 16.0, 32.0, 64.0))

    def forward(self, pixels: Tensor) -> list[Tensor]:
        x = self.stages[0](pixels)
        maps = []
        for stage in list(self.stages)[1:]:
            x = stage(x)
            maps.append(x)
        return maps


def _layer(in_channels: int, channels: int, kernel: int, stride: int, norm: NormName | None) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, channels, kernel, stride, padding=kernel // 2, bias=norm is None)
    nn.init.kaiming_normal_(conv.weight, a=LEAK, nonlinearity="leaky_relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    norms = [] if norm is None else [make_norm(norm, channels)]
    return nn.Sequential(conv, *norms, nn.LeakyReLU(LEAK, inplace=True))
