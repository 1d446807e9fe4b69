"""Which reference answers for which object, and which candidates survive."""

from detkit.matching.anchors import AnchorGrid, misfit
from detkit.matching.assigners import IGNORED, NEGATIVE, Assignment, MaxIoUAssigner
from detkit.matching.coders import DeltaCoder
from detkit.matching.fusion import NMS, WBF, Merge, SoftNMS
from detkit.matching.ranges import SizeRange, assign_anchors, check_ranges, of_level
from detkit.matching.samplers import BalancedSampler
from detkit.matching.select import (
    select_candidates,
    select_detections,
    select_proposals,
    top_candidates,
    top_peaks,
    top_proposals,
)
from detkit.matching.trace import Fate, Selection, Trace, tracing

__all__ = [
    "IGNORED",
    "NEGATIVE",
    "NMS",
    "WBF",
    "AnchorGrid",
    "Assignment",
    "BalancedSampler",
    "DeltaCoder",
    "Fate",
    "MaxIoUAssigner",
    "Merge",
    "Selection",
    "SizeRange",
    "SoftNMS",
    "Trace",
    "assign_anchors",
    "check_ranges",
    "misfit",
    "of_level",
    "select_candidates",
    "select_detections",
    "select_proposals",
    "top_candidates",
    "top_peaks",
    "top_proposals",
    "tracing",
]
