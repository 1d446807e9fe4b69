"""MobileNetV2 (Sandler et al., CVPR 2018): torchvision's network, cut into stages."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torchvision.models import MobileNet_V2_Weights, mobilenet_v2

from detkit.config import BACKBONES, Count
from detkit.models.backbones.weights import load_backbone_weights
from detkit.models.interfaces import Backbone
from detkit.models.layers import (
    NormName,
    branched,
    dilate,
    fold_frozen_norms,
    for_branches,
    freeze,
    make_norm,
    use_lean_relu6,
    use_strided_depthwise,
)
from detkit.structures import FeatureSpec
from detkit.structures.feature_spec import IMAGENET_STATS

#: last layer of torchvision's ``features`` at each stride, and its channels (Sandler et al., table 2)
_STAGE_ENDS = (1, 3, 6, 13, 18)
_CHANNELS = (16, 24, 32, 96, 1280)


@BACKBONES
class MobileNetV2(Backbone):
    """MobileNetV2 at width 1: feature maps at strides 4, 8, 16 and 32.

    Args:
        weights: "imagenet" (torchvision's IMAGENET1K_V1), the path of a state dict, or null for random weights.
        norm: normalisation layers; ``frozen_bn`` needs pretrained weights to make sense.
        frozen_stages: leading stages that do not train; stage i ends at stride 2^i, up to 5.
        last_conv: end with the 1280-channel 1x1 convolution of the classifier rather than its 320 inputs.
        trident: dilations of branches that share the weights of the last stage that is read, all but its first block
            (TridentNet): maps then hold the batch once for each branch. One dilation makes no branches.
        dilate_last: let the last stage keep the stride of 16, its convolutions with holes instead (R-FCN, section 2).
    """

    pixel_stats = IMAGENET_STATS
    stage1: nn.Module
    stage2: nn.Module
    stage3: nn.Module
    stage4: nn.Module
    stage5: nn.Sequential

    def __init__(
        self,
        *,
        weights: str | None = "imagenet",
        norm: NormName = "frozen_bn",
        frozen_stages: Literal[0, 1, 2, 3, 4, 5] = 0,
        last_conv: bool = True,
        dilate_last: bool = False,
        trident: tuple[Count, ...] | None = None,
    ) -> None:
        super().__init__()
        network = mobilenet_v2(norm_layer=lambda channels: make_norm(norm, channels))
        network.classifier = nn.Sequential()
        load_backbone_weights(network, weights, MobileNet_V2_Weights.IMAGENET1K_V1)
        layers = list(network.features.children())
        if not last_conv:
            layers.pop()
        ends = (*(end + 1 for end in _STAGE_ENDS[:-1]), len(layers))
        for i, (first, last) in enumerate(zip((0, *ends[:-1]), ends, strict=True)):
            setattr(self, f"stage{i + 1}", nn.Sequential(*layers[first:last]))
        if dilate_last:
            dilate(self.stage5)
        if trident is not None:
            self.stage5 = branched(self.stage5, trident)
            self.num_branches = len(trident)
        freeze(self, [[f"stage{i + 1}"] for i in range(frozen_stages)])
        use_strided_depthwise(self)
        fold_frozen_norms(self)
        use_lean_relu6(self)
        channels = _CHANNELS[1:] if last_conv else (*_CHANNELS[1:-1], 320)
        self.out_spec = FeatureSpec(channels=channels, strides=(4.0, 8.0, 16.0, 16.0 if dilate_last else 32.0))

    def forward(self, pixels: Tensor) -> list[Tensor]:
        x = self.stage2(self.stage1(pixels))
        maps = [x]
        for stage in (self.stage3, self.stage4, self.stage5):
            x = stage(x)
            maps.append(x)
        return [*(for_branches(m, self.num_branches) for m in maps[:-1]), maps[-1]]
