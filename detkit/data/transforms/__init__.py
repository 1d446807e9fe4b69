"""Transforms of a sample: pure functions of the sample and a key."""

from detkit.data.transforms.albumentations import Albumentations
from detkit.data.transforms.base import Transform, apply
from detkit.data.transforms.flip import HorizontalFlip
from detkit.data.transforms.resize import ResizeFit, ResizeShortestEdge

__all__ = ["Albumentations", "HorizontalFlip", "ResizeFit", "ResizeShortestEdge", "Transform", "apply"]
