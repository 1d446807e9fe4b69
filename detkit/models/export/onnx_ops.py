"""NMS and the sampling ops in ONNX's own, for ``torch.onnx.export``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from detkit.matching.fixed import LEAST  # registers nms_marks too
from detkit.ops.onnx import onnx_translations


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """For ``custom_translation_table``: what a Program has beside torch's own operators."""
    return {**onnx_translations(), torch.ops.detkit.nms_marks.default: _nms_marks}


def _nms_marks(boxes: Any, scores: Any, iou_threshold: float) -> Any:
    """NonMaxSuppression names those that stay, (S, 3) image, group and place; their marks are set to True."""
    import onnxscript

    op: Any = onnxscript.opset19
    most = op.Constant(value_ints=[2**31 - 1])
    kept = op.NonMaxSuppression(
        boxes, scores, most, op.Constant(value_floats=[iou_threshold]), op.Constant(value_floats=[LEAST])
    )  # fmt: skip
    count = op.Slice(op.Shape(kept), op.Constant(value_ints=[0]), op.Constant(value_ints=[1]))
    ones = op.Expand(op.Constant(value_float=1.0), count)
    zeros = op.Mul(scores, op.Constant(value_float=0.0))
    return op.Greater(op.ScatterND(zeros, kept, ones), op.Constant(value_float=0.5))
