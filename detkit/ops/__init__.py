"""Sampling ops: a typed wrapper each, a fast pure-torch form, and a slow reference that is the specification."""

from detkit.ops.conv_at import can_conv_at, conv_at
from detkit.ops.deform_conv import deform_conv, deform_conv_reference
from detkit.ops.deform_roi_pool import deform_roi_pool, deform_roi_pool_reference
from detkit.ops.ps_roi_align import ps_roi_align, ps_roi_align_reference, ps_roi_pool, ps_roi_pool_reference
from detkit.ops.roi_align import multi_level_roi_align, roi_align, roi_align_reference

__all__ = [
    "can_conv_at",
    "conv_at",
    "deform_conv",
    "deform_conv_reference",
    "deform_roi_pool",
    "deform_roi_pool_reference",
    "multi_level_roi_align",
    "ps_roi_align",
    "ps_roi_align_reference",
    "ps_roi_pool",
    "ps_roi_pool_reference",
    "roi_align",
    "roi_align_reference",
]
