"""Building blocks that several models share."""

from detkit.models.layers.norm import NormName, freeze, make_norm, with_frozen_norms

__all__ = ["NormName", "freeze", "make_norm", "with_frozen_norms"]
