"""The sampling ops in ONNX's own: DeformConv (opset 19) and RoiAlign, for ``torch.onnx.export``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

#: DeformConv came with it
OPSET = 19


def onnx_translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """What ``torch.onnx.export(..., opset_version=OPSET, custom_translation_table=onnx_translations())`` needs.

    Needs onnxscript (``pip install 'detkit[export]'``). ONNX has no op for deformable pooling, nor for maps that end
    before their padding does: an export of those raises a ValueError that says so. Position-sensitive pooling becomes
    RoiAlign of all channels, of which each bin keeps its own: right, and as many times dearer as there are bins.
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
    image_sizes: Any,
    output_size: Sequence[int],
    scales: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
    position_sensitive: bool,
    gamma: float,
) -> Any:
    """RoiAlign of every box on every level, of which each box keeps its own, and each bin its own where it has any."""
    op = _opset()
    if offsets is not None:
        raise ValueError("ONNX has no op for deformable RoI pooling; RoIAlign can be exported")
    if image_sizes is not None:
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
    return _own_channels(op, pooled, output_size[0], output_size[1]) if position_sensitive else pooled


def _own_channels(op: Any, pooled: Any, h: int, w: int) -> Any:
    """(R, C, h, w): of all channels (R, h * w * C, h, w) of each bin those that are its own, by a mask and a sum."""
    bins = h * w
    by_bin = op.Reshape(pooled, op.Constant(value_ints=[0, bins, -1, bins]))
    own = op.Constant(value_floats=[float(i == j) for i in range(bins) for j in range(bins)])
    own = op.Reshape(own, op.Constant(value_ints=[1, bins, 1, bins]))
    kept = op.ReduceSum(op.Mul(by_bin, own), op.Constant(value_ints=[1]), keepdims=0)
    return op.Reshape(kept, op.Constant(value_ints=[0, 0, h, w]))


def _opset() -> Any:
    import onnxscript

    return onnxscript.opset19
