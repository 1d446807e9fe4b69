"""From files to batches: data sets, transforms, samplers and loaders."""

from detkit.data.balance import ClassBalanced, RepeatFactor, Sampling
from detkit.data.cache import ImageCache
from detkit.data.datasets import (
    CocoDataset,
    DataReport,
    DetectionDataset,
    ShapesDataset,
    VocDataset,
    YoloDataset,
)
from detkit.data.decode import ImageError, read_image
from detkit.data.loader import EvalLoader, TrainLoader
from detkit.data.sample import Sample
from detkit.data.samplers import TrainSampler
from detkit.data.transforms import (
    Albumentations,
    HorizontalFlip,
    MixingTransform,
    MixUp,
    Mosaic,
    RandomTile,
    RandomWindow,
    Resize,
    ResizeFit,
    ResizeShortestEdge,
    Transform,
)

__all__ = [
    "Albumentations",
    "ClassBalanced",
    "CocoDataset",
    "DataReport",
    "DetectionDataset",
    "EvalLoader",
    "HorizontalFlip",
    "ImageCache",
    "ImageError",
    "MixUp",
    "MixingTransform",
    "Mosaic",
    "RandomTile",
    "RandomWindow",
    "RepeatFactor",
    "Resize",
    "ResizeFit",
    "ResizeShortestEdge",
    "Sample",
    "Sampling",
    "ShapesDataset",
    "TrainLoader",
    "TrainSampler",
    "Transform",
    "VocDataset",
    "YoloDataset",
    "read_image",
]
