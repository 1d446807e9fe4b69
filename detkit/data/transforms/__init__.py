"""Transforms of a sample: pure functions of the sample, a key, and for mixing ones their partners."""

from detkit.data.transforms.albumentations import Albumentations
from detkit.data.transforms.base import (
    MixingTransform,
    MixPlan,
    PlannedMixing,
    PlannedTransform,
    Transform,
    apply,
    lay,
    unplanned,
)
from detkit.data.transforms.flip import HorizontalFlip
from detkit.data.transforms.mixing import MixUp, Mosaic
from detkit.data.transforms.plan import Plan
from detkit.data.transforms.resize import Resize, ResizeFit, ResizeShortestEdge
from detkit.data.transforms.tile import RandomTile
from detkit.data.transforms.window import RandomWindow

__all__ = [
    "Albumentations",
    "HorizontalFlip",
    "MixPlan",
    "MixUp",
    "MixingTransform",
    "Mosaic",
    "Plan",
    "PlannedMixing",
    "PlannedTransform",
    "RandomTile",
    "RandomWindow",
    "Resize",
    "ResizeFit",
    "ResizeShortestEdge",
    "Transform",
    "apply",
    "lay",
    "unplanned",
]
