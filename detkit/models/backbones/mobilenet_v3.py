"""MobileNetV3-Large (Howard et al., ICCV 2019): torchvision's network, cut into stages."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torchvision.models import MobileNet_V3_Large_Weights, mobilenet_v3_large

from detkit.config import BACKBONES, Whole
from detkit.models.backbones.weights import load_backbone_weights
from detkit.models.interfaces import Backbone
from detkit.models.layers import NormName, fold_frozen_norms, freeze, make_norm, use_strided_depthwise
from detkit.structures import FeatureSpec
from detkit.structures.feature_spec import IMAGENET_STATS

#: first layer of torchvision's ``features`` at strides 2, 4, 8, 16 and 32 (Howard et al., table 1)
STAGE_STARTS = (0, 2, 4, 7, 13)
_CHANNELS = (*(16, 16), *(24, 24), *(40, 40, 40), *(80, 80, 80, 80, 112, 112), *(160, 160, 160, 960))


@BACKBONES
class MobileNetV3(Backbone):
    """MobileNetV3-Large at width 1: by default feature maps at strides 4, 8, 16 and 32.

    Args:
        weights: "imagenet" (torchvision's IMAGENET1K_V1), the path of a state dict, or null for random weights.
        norm: normalisation layers; ``frozen_bn`` needs pretrained weights to make sense.
        norm_eps: their epsilon; 1e-3 for ImageNet weights, 1e-5 for those of torchvision's detectors.
        frozen_stages: leading stages that do not train; stage i ends at stride 2^i, up to 5.
        layers: which of the 17 layers of torchvision's ``features``, counted from 0, give the maps. torchvision's
            detectors read 13 and 16, both at stride 32.
    """

    pixel_stats = IMAGENET_STATS

    def __init__(
        self,
        *,
        weights: str | None = "imagenet",
        norm: NormName = "frozen_bn",
        norm_eps: float = 1e-3,
        frozen_stages: Literal[0, 1, 2, 3, 4, 5] = 0,
        layers: tuple[Whole, ...] = (3, 6, 12, 16),
    ) -> None:
        super().__init__()
        if not layers or list(layers) != sorted(set(layers)) or layers[-1] >= len(_CHANNELS):
            raise ValueError(f"layers must be ascending and different, out of 0 to 16; not {list(layers)}")
        network = mobilenet_v3_large(norm_layer=lambda channels: make_norm(norm, channels, norm_eps))
        network.classifier = nn.Sequential()
        load_backbone_weights(network, weights, MobileNet_V3_Large_Weights.IMAGENET1K_V1)
        features = list(network.features.children())[: layers[-1] + 1]
        starts = [start for start in STAGE_STARTS if start < len(features)]
        self.stages = nn.ModuleList(
            nn.Sequential(*features[first:end]) for first, end in zip(starts, (*starts[1:], None), strict=True)
        )
        freeze(self.stages, [[str(i)] for i in range(min(frozen_stages, len(starts)))])
        use_strided_depthwise(self)
        fold_frozen_norms(self)
        self.layers = layers
        self.out_spec = FeatureSpec(
            channels=tuple(_CHANNELS[i] for i in layers),
            strides=tuple(2.0 ** sum(start <= i for start in STAGE_STARTS) for i in layers),
        )

    def forward(self, pixels: Tensor) -> list[Tensor]:
        x, maps, number = pixels, [], 0
        for stage in self.stages:
            assert isinstance(stage, nn.Sequential)
            for layer in stage:
                x = layer(x)
                if number in self.layers:
                    maps.append(x)
                number += 1
        return maps
