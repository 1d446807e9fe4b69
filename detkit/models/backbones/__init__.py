"""Backbones: normalised pixels in, feature maps out. One architecture a file."""

from detkit.models.backbones.darknet import Darknet24
from detkit.models.backbones.mobilenet import MobileNetV2
from detkit.models.backbones.mobilenet_v3 import MobileNetV3
from detkit.models.backbones.resnet import ResNet
from detkit.models.backbones.timm import Timm

__all__ = ["Darknet24", "MobileNetV2", "MobileNetV3", "ResNet", "Timm"]
