"""Heads: they own their loss and their decoding."""

from detkit.models.heads.centernet import CenterNetHead
from detkit.models.heads.flow import FlowHead
from detkit.models.heads.pools import DeformRoIPool, ModulatedDeformRoIPool, PSRoIAlign, RoIAlign
from detkit.models.heads.regions import RegionMLP, ScoreMaps
from detkit.models.heads.retinanet import RetinaHead
from detkit.models.heads.roi import RoIHead
from detkit.models.heads.rpn import RPN
from detkit.models.heads.scales import ScaleHead
from detkit.models.heads.trident import TridentHead
from detkit.models.heads.two_stage import TwoStageHead
from detkit.models.heads.yolov1 import YOLOv1Head

__all__ = [
    "RPN",
    "CenterNetHead",
    "DeformRoIPool",
    "FlowHead",
    "ModulatedDeformRoIPool",
    "PSRoIAlign",
    "RegionMLP",
    "RetinaHead",
    "RoIAlign",
    "RoIHead",
    "ScaleHead",
    "ScoreMaps",
    "TridentHead",
    "TwoStageHead",
    "YOLOv1Head",
]
