"""Building blocks that several models share."""

from detkit.models.layers.norm import (
    ConvNorm,
    NormName,
    conv_norm,
    fold_frozen_norms,
    freeze,
    make_norm,
    with_frozen_norms,
)

__all__ = [
    "ConvNorm",
    "NormName",
    "conv_norm",
    "fold_frozen_norms",
    "freeze",
    "make_norm",
    "with_frozen_norms",
]
