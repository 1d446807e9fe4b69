"""The sampling ops in ONNX's own: DeformConv (opset 19) and RoiAlign, for ``torch.onnx.export``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

#: DeformConv came with it
OPSET = 19


def onnx_translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """What ``torch.onnx.export(..., opset_version=OPSET, custom_translation_table=onnx_translations())`` needs.

    Needs onnxscript (``pip install 'detkit[export]'``). ONNX has no op for position-sensitive and deformable pooling,
    nor for maps that end before their padding does: an export of those raises a ValueError that says so.
    """
    return {
        torch.ops.detkit.deform_conv.default: _deform_conv,
        torch.ops.detkit.region_pooling.default: _region_pooling,
    }


def _deform_conv(
    x: Any,
    offset: Any,
    mask: Any,
    weight: Any,
    bias: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Any:
    op = _opset()
    _, per_group, kernel_h, kernel_w = weight.shape
    return op.DeformConv(
        x, weight, offset, bias, mask,
        kernel_shape=[kernel_h, kernel_w], strides=list(stride), pads=[*padding, *padding], dilations=list(dilation),
        group=x.shape[1] // per_group, offset_group=offset.shape[1] // (2 * kernel_h * kernel_w),
    )  # fmt: skip


def _region_pooling(
    features: Sequence[Any],
    boxes: Any,
    image_index: Any,
    levels: Any,
    offsets: Any,
    image_sizes: Sequence[int],
    output_size: Sequence[int],
    scales: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
    position_sensitive: bool,
    gamma: float,
) -> Any:
    """RoiAlign of every box on every level, of which each box keeps its own."""
    op = _opset()
    if offsets is not None or position_sensitive:
        raise ValueError("ONNX has no op for deformable or position-sensitive RoI pooling; RoIAlign can be exported")
    if image_sizes:
        raise ValueError("ONNX's RoiAlign reads a map as a whole: export multi_level_roi_align with image_sizes=None")
    pooled = None
    for level, (feature, scale) in enumerate(zip(features, scales, strict=True)):
        one = op.RoiAlign(
            feature, boxes, image_index, output_height=output_size[0], output_width=output_size[1],
            sampling_ratio=sampling_ratio, spatial_scale=scale, mode="avg",
            coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
        )  # fmt: skip
        if pooled is None:
            pooled = one
        else:
            mine = op.Equal(levels, op.Constant(value_int=level))
            pooled = op.Where(op.Unsqueeze(mine, op.Constant(value_ints=[1, 2, 3])), one, pooled)
    return pooled


def _opset() -> Any:
    import onnxscript

    return onnxscript.opset19
