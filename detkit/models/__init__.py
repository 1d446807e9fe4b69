"""Detectors and their parts."""

from detkit.models import backbones, heads, necks
from detkit.models.build import build_detector
from detkit.models.detector import ComposedDetector
from detkit.models.interfaces import (
    AnsweringDetector,
    AssigningHead,
    Backbone,
    Detector,
    Head,
    Neck,
    ProposalHead,
    References,
    RegionHead,
    RegionNetwork,
    RegionPool,
    Wording,
)
from detkit.models.mtcnn.detector import MTCNN
from detkit.models.tiles import Tiles
from detkit.models.tta import MultiView

__all__ = [
    "MTCNN",
    "AnsweringDetector",
    "AssigningHead",
    "Backbone",
    "ComposedDetector",
    "Detector",
    "Head",
    "MultiView",
    "Neck",
    "ProposalHead",
    "References",
    "RegionHead",
    "RegionNetwork",
    "RegionPool",
    "Tiles",
    "Wording",
    "backbones",
    "build_detector",
    "heads",
    "necks",
]
