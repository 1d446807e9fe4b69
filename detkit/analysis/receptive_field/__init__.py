"""What a cell of a feature map sees of the image: analytic and effective receptive field, and objects of which size."""

from detkit.analysis.receptive_field.coverage import Cover, Gap, SizeBin, gaps, size_bins
from detkit.analysis.receptive_field.effective import effective_fields, effective_size
from detkit.analysis.receptive_field.fields import Box, LevelField, receptive_fields

__all__ = [
    "Box",
    "Cover",
    "Gap",
    "LevelField",
    "SizeBin",
    "effective_fields",
    "effective_size",
    "gaps",
    "receptive_fields",
    "size_bins",
]
