"""The nouns of detkit. Everything that passes between data, models, evaluation and engine is one of these."""

from detkit.structures.affine import Affine
from detkit.structures.batch import Batch
from detkit.structures.categories import Categories
from detkit.structures.detections import Detections
from detkit.structures.feature_spec import FeatureSpec, PixelStats
from detkit.structures.ground_truth import GroundTruth
from detkit.structures.images import ImageMeta, Images
from detkit.structures.landmarks import Landmarks
from detkit.structures.losses import Losses, Ratio
from detkit.structures.size_range import SizeRange, size_ranges
from detkit.structures.target import Target

__all__ = [
    "Affine",
    "Batch",
    "Categories",
    "Detections",
    "FeatureSpec",
    "GroundTruth",
    "ImageMeta",
    "Images",
    "Landmarks",
    "Losses",
    "PixelStats",
    "Ratio",
    "SizeRange",
    "Target",
    "size_ranges",
]
