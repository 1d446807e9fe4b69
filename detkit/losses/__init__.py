"""Loss functions: parts that a head is given, one file for each thing they compare."""

from detkit.losses.box import L1, BoxLoss, CIoULoss, DIoULoss, GIoULoss, IoULoss, SmoothL1
from detkit.losses.classification import BCE, ClassificationLoss, CrossEntropy, Focal
from detkit.losses.heatmap import HeatmapLoss, PenaltyReducedFocal
from detkit.losses.layers import ClassLayer, LinearClassLayer

__all__ = [
    "BCE",
    "L1",
    "BoxLoss",
    "CIoULoss",
    "ClassLayer",
    "ClassificationLoss",
    "CrossEntropy",
    "DIoULoss",
    "Focal",
    "GIoULoss",
    "HeatmapLoss",
    "IoULoss",
    "LinearClassLayer",
    "PenaltyReducedFocal",
    "SmoothL1",
]
