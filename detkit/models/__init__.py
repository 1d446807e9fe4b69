"""Detectors and their parts."""

from detkit.models import backbones, heads, necks
from detkit.models.build import build_detector
from detkit.models.detector import ComposedDetector
from detkit.models.interfaces import (
    AssigningHead,
    Backbone,
    Detector,
    Head,
    Neck,
    ProposalHead,
    RegionHead,
    RegionNetwork,
    RegionPool,
)
from detkit.models.mtcnn.detector import MTCNN
from detkit.models.tiles import Tiles
from detkit.models.tta import MultiView

__all__ = [
    "MTCNN",
    "AssigningHead",
    "Backbone",
    "ComposedDetector",
    "Detector",
    "Head",
    "MultiView",
    "Neck",
    "ProposalHead",
    "RegionHead",
    "RegionNetwork",
    "RegionPool",
    "Tiles",
    "backbones",
    "build_detector",
    "heads",
    "necks",
]
