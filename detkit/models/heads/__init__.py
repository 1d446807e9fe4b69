"""Heads: they own their loss and their decoding."""

from detkit.models.heads.roi import RoIHead
from detkit.models.heads.rpn import RPN
from detkit.models.heads.two_stage import TwoStageHead

__all__ = ["RPN", "RoIHead", "TwoStageHead"]
