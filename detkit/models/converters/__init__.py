"""State dicts of other libraries under detkit's names: every tensor is placed, or named in an error."""

from detkit.models.converters.foreign import Foreign, Library, read_foreign
from detkit.models.converters.loading import faults_of, load_converted
from detkit.models.converters.naming import UnfitError, coco_categories
from detkit.models.converters.pixels import Pixels, Style, backbone_keys, same_stats
from detkit.models.converters.torchvision import from_torchvision, preset_of

__all__ = [
    "Foreign",
    "Library",
    "Pixels",
    "Style",
    "UnfitError",
    "backbone_keys",
    "coco_categories",
    "faults_of",
    "from_torchvision",
    "load_converted",
    "preset_of",
    "read_foreign",
    "same_stats",
]
