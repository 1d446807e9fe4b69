"""State dicts of other libraries under detkit's names: every tensor is placed, or named in an error."""

from detkit.models.converters.loading import load_converted
from detkit.models.converters.torchvision import from_torchvision, preset_of

__all__ = ["from_torchvision", "load_converted", "preset_of"]
