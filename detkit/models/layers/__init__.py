"""Building blocks that several models share."""

from detkit.models.layers.attention import CBAM, SE, Attention
from detkit.models.layers.norm import (
    ConvNorm,
    NormName,
    conv_norm,
    fold_frozen_norms,
    freeze,
    make_norm,
    with_frozen_norms,
)
from detkit.models.layers.tower import ConvTower

__all__ = [
    "CBAM",
    "SE",
    "Attention",
    "ConvNorm",
    "ConvTower",
    "NormName",
    "conv_norm",
    "fold_frozen_norms",
    "freeze",
    "make_norm",
    "with_frozen_norms",
]
