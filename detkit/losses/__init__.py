"""Loss functions: parts that a head is given, one file for each thing they compare."""

from detkit.losses.angle_factors import ASoftmax, LSoftmax
from detkit.losses.box import L1, BoxLoss, CIoULoss, DIoULoss, GIoULoss, IoULoss, SmoothL1
from detkit.losses.classification import BCE, ClassificationLoss, CrossEntropy, Focal, SoftmaxFocal
from detkit.losses.cosine_layers import CosineClassLayer, CosineClassMap
from detkit.losses.heatmap import HeatmapLoss, PenaltyReducedFocal
from detkit.losses.layers import ClassLayer, LinearClassLayer
from detkit.losses.long_tail import Seesaw
from detkit.losses.margins import ArcFace, CombinedMargin, CosFace, MarginSoftmax, NormalizedSoftmax

__all__ = [
    "BCE",
    "L1",
    "ASoftmax",
    "ArcFace",
    "BoxLoss",
    "CIoULoss",
    "ClassLayer",
    "ClassificationLoss",
    "CombinedMargin",
    "CosFace",
    "CosineClassLayer",
    "CosineClassMap",
    "CrossEntropy",
    "DIoULoss",
    "Focal",
    "GIoULoss",
    "HeatmapLoss",
    "IoULoss",
    "LSoftmax",
    "LinearClassLayer",
    "MarginSoftmax",
    "NormalizedSoftmax",
    "PenaltyReducedFocal",
    "Seesaw",
    "SmoothL1",
    "SoftmaxFocal",
]
