"""Which reference answers for which object, and which candidates survive."""

from detkit.matching.anchors import AnchorGrid, Anchors, misfit
from detkit.matching.assigners import IGNORED, NEGATIVE, Assigner, Assignment, MaxIoUAssigner
from detkit.matching.coders import Coder, DeltaCoder
from detkit.matching.fusion import NMS, WBF, Merge, OverSmaller, SoftNMS, merge_views
from detkit.matching.groups import nms_by_group
from detkit.matching.proposals import NO_SCORE, select_proposals, top_proposals
from detkit.matching.ranges import (
    allowed_pairs,
    assign_allowed,
    assign_anchors,
    found_in_range,
    in_own_range,
    only_in_range,
)
from detkit.matching.samplers import BalancedSampler, HardExamples, Sampler
from detkit.matching.select import select_candidates, select_detections, top_candidates, top_peaks
from detkit.matching.selector import Selector, SoftSelector
from detkit.matching.trace import Fate, Selection, Trace, tracing

__all__ = [
    "IGNORED",
    "NEGATIVE",
    "NMS",
    "NO_SCORE",
    "WBF",
    "AnchorGrid",
    "Anchors",
    "Assigner",
    "Assignment",
    "BalancedSampler",
    "Coder",
    "DeltaCoder",
    "Fate",
    "HardExamples",
    "MaxIoUAssigner",
    "Merge",
    "OverSmaller",
    "Sampler",
    "Selection",
    "Selector",
    "SoftNMS",
    "SoftSelector",
    "Trace",
    "allowed_pairs",
    "assign_allowed",
    "assign_anchors",
    "found_in_range",
    "in_own_range",
    "merge_views",
    "misfit",
    "nms_by_group",
    "only_in_range",
    "select_candidates",
    "select_detections",
    "select_proposals",
    "top_candidates",
    "top_peaks",
    "top_proposals",
    "tracing",
]
