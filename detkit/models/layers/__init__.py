"""Building blocks that several models share."""

from detkit.models.layers.attention import CBAM, SE, Attention
from detkit.models.layers.conv import ConvName, DeformConv, OffsetConv, make_conv
from detkit.models.layers.depthwise import use_strided_depthwise
from detkit.models.layers.dilation import dilate
from detkit.models.layers.norm import (
    ConvNorm,
    NormName,
    conv_norm,
    conv_with_norm,
    fold_frozen_norms,
    freeze,
    make_norm,
    with_frozen_norms,
)
from detkit.models.layers.relu6 import use_lean_relu6
from detkit.models.layers.tower import LEAK, ConvTower
from detkit.models.layers.trident import TridentConv, TridentStage, branched, for_branches, one_branch

__all__ = [
    "CBAM",
    "LEAK",
    "SE",
    "Attention",
    "ConvName",
    "ConvNorm",
    "ConvTower",
    "DeformConv",
    "NormName",
    "OffsetConv",
    "TridentConv",
    "TridentStage",
    "branched",
    "conv_norm",
    "conv_with_norm",
    "dilate",
    "fold_frozen_norms",
    "for_branches",
    "freeze",
    "make_conv",
    "make_norm",
    "one_branch",
    "use_lean_relu6",
    "use_strided_depthwise",
    "with_frozen_norms",
]
