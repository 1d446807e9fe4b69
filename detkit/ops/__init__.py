"""Sampling ops: a typed wrapper each, a fast pure-torch form, and a slow reference that is the specification."""

from detkit.ops.roi_align import multi_level_roi_align, roi_align, roi_align_reference

__all__ = ["multi_level_roi_align", "roi_align", "roi_align_reference"]
