"""What each elementary operation reads: the table that the recorder asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from detkit.analysis.receptive_field.layout import (
    Layout,
    Lost,
    axes_in,
    axis_number,
    broadcast,
    plain,
    reshaped,
    resized,
)
from detkit.analysis.receptive_field.reach import (
    IDENTITY,
    Window,
)
from detkit.analysis.receptive_field.recorder import Call, Rule, Value
from detkit.analysis.receptive_field.windows import (
    adaptive_pool,
    convolution,
    deformable,
    pad,
    pool,
    resize,
    shuffle,
    unshuffle,
)

HERE = (IDENTITY, IDENTITY)

#: Pointwise operations that PyTorch does not tag as such.
_POINTWISE = {
    *("hardswish", "hardsigmoid", "_to_copy", "detach", "alias", "native_dropout", "prelu", "_prelu_kernel"),
    *("lift_fresh", "_native_batch_norm_legit_no_training", "where", "masked_fill"),
}


def rule_of(func: Any) -> Rule | None:
    """The rule for an operation of PyTorch; None if there is none."""
    namespace, name = func._schema.name.split("::")
    if (namespace, name) in (("detkit", "deform_conv"), ("torchvision", "deform_conv2d")):
        return deformable
    if namespace != "aten":
        return None
    if name not in _RULES and name.endswith("_"):
        name = name.rstrip("_")
    if name in _RULES:
        return _RULES[name]
    if name.startswith("_scaled_dot_product"):
        return Call.whole  # attention
    if name.endswith("_like") or name.startswith("new_"):
        return lambda call: None  # what is made like another tensor takes its shape and not its content
    is_pointwise = torch.Tag.pointwise in func.tags or name in _POINTWISE
    return pointwise if is_pointwise else None


def pointwise(call: Call) -> Value:
    """Every element is made from the elements that lie over it."""
    return _over_each_other(call, call.inputs(), call.outputs[0].shape)


def _over_each_other(call: Call, inputs: Sequence[tuple[Tensor, Value]], shape: Sequence[int]) -> Value:
    placed = [(value.layout, tensor.shape) for tensor, value in inputs if value.layout is not None]
    layout = broadcast(placed, shape) if placed else None
    return call.join([(value, None if value.layout is None else HERE) for _, value in inputs], layout)


def copied(call: Call) -> Value | None:
    """``copy_``: what was there before is gone."""
    source = call.value("src")
    return source and _over_each_other(call, [(call.arguments["src"], source)], call.outputs[0].shape)


def filled(call: Call) -> Value | None:
    """``zero_`` and ``fill_``: what was there before is gone."""
    return call.value("value") and call.whole()


def batch_norm(call: Call) -> Value:
    """A batch norm: by trained statistics each number is changed by itself."""
    if call.arguments.get("training"):
        call.note("batch statistics see the whole map; that is not counted")
    return pointwise(call)


def group_norm(call: Call) -> Value:
    """A group norm, taken for pointwise, with a note."""
    call.note("its statistics see the whole map; that is not counted")
    return _like_input(call, "input")


def layer_norm(call: Call) -> Value:
    """A layer norm over the channels alone, or with a note over the map too."""
    value = call.value("input")
    if value is None or value.layout is None:
        return call.whole()
    if any(map(axes_in, value.layout[-len(call.arguments["normalized_shape"]) :])):
        call.note("its statistics see the whole map; that is not counted")
    return _like_input(call, "input")


def _like_input(call: Call, name: str) -> Value:
    value = call.value(name)
    if value is None or value.layout is None:
        return call.whole()
    return call.join([(value, HERE)], value.layout)


def reduce(call: Call) -> Value:
    """Sums, means and maxima; over an image axis they read the whole map."""
    if isinstance(call.arguments.get("other"), Tensor):  # max and min of two maps
        return pointwise(call)
    value = call.value("self")
    if value is None or value.layout is None:
        return call.whole()
    dims = call.arguments.get("dim")
    dims = range(len(value.layout)) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    gone = {d % len(value.layout) for d in dims}
    if any(axes_in(value.layout[d]) for d in gone):
        return call.whole()
    keep = call.arguments.get("keepdim", False)
    layout = tuple(plain(1) if i in gone else dim for i, dim in enumerate(value.layout) if keep or i not in gone)
    return call.join([(value, HERE)], layout)


def along(call: Call) -> Value:
    """Softmax, sorting, cumulative sums: along a dimension that is no image axis they stay in place."""
    value = call.value("self")
    if value is None or value.layout is None:
        return call.whole()
    dim = call.arguments["dim"]
    if axes_in(value.layout[dim]):
        raise Lost("it runs along an image axis")
    return call.join([(value, HERE)], resized(value.layout, call.outputs[0].shape))


def concatenate(call: Call) -> Value:
    """Tensors beside each other: what a cell sees is the union of what they see there."""
    tensors = call.arguments["tensors"]
    dim = call.arguments["dim"]
    inputs = call.inputs()
    layouts = [value.layout for _, value in inputs if value.layout is not None]
    if not layouts:
        return call.whole()
    if call.name == "stack":
        dim %= tensors[0].ndim + 1
        layouts = [(*layout[:dim], plain(1), *layout[dim:]) for layout in layouts]
    if axes_in(layouts[0][dim]):
        raise Lost("it joins maps along an image axis")
    fitted = [resized(layout, call.outputs[0].shape) for layout in layouts]
    if any(layout != fitted[0] for layout in fitted):
        raise Lost("it joins maps whose axes differ")
    return call.join([(value, None if value.layout is None else HERE) for _, value in inputs], fitted[0])


def cut(call: Call) -> Value:
    """Slices: along an image axis with their start and step."""
    value, a = call.value("self"), call.arguments
    if value is None or value.layout is None:
        return call.whole()
    dim = value.layout[a["dim"]]
    layout = resized(value.layout, call.outputs[0].shape)
    if not axes_in(dim):
        return call.join([(value, HERE)], layout)
    size = call.arguments["self"].shape[a["dim"]]
    start = a["start"] or 0
    start = max(0, start + size) if start < 0 else min(start, size)
    reach = [IDENTITY, IDENTITY]
    reach[axis_number(dim)] = Window(stride=a["step"], padding=-start)
    return call.join([(value, (reach[0], reach[1]))], layout)


def pieces(call: Call) -> list[Value]:
    """Splits and chunks."""
    value, dim = call.value("self"), call.arguments["dim"]
    if value is None or value.layout is None:
        return [call.whole()] * len(call.outputs)
    if axes_in(value.layout[dim]):
        raise Lost("it takes a map apart along an image axis")
    if call.name == "unbind":
        layout = tuple(d for i, d in enumerate(value.layout) if i != dim % len(value.layout))
        return [call.join([(value, HERE)], layout)] * len(call.outputs)
    return [call.join([(value, HERE)], resized(value.layout, out.shape)) for out in call.outputs]


def pick(call: Call) -> Value:
    """One index of a dimension."""
    value, dim = call.value("self"), call.arguments["dim"]
    if value is None or value.layout is None:
        return call.whole()
    if axes_in(value.layout[dim]):
        raise Lost("it picks one row or column of a map")
    layout = tuple(d for i, d in enumerate(value.layout) if i != dim % len(value.layout))
    return call.join([(value, HERE)], layout)


def rearrange(call: Call) -> Value:
    """Views: the content stays, the dimensions change."""
    value, a = call.value("self"), call.arguments
    if value is None or value.layout is None:
        return call.whole()
    layout, shape = value.layout, call.outputs[0].shape
    if call.name == "permute":
        layout = tuple(layout[d] for d in a["dims"])
    elif call.name in ("transpose", "t"):
        order = list(range(len(layout)))
        first, second = (a["dim0"], a["dim1"]) if call.name == "transpose" else (0, -1)
        order[first], order[second] = order[second], order[first]
        layout = tuple(layout[d] for d in order)
    elif call.name == "expand":
        layout = broadcast([(layout, a["self"].shape)], shape)
    else:
        layout = reshaped(layout, shape)
    return call.join([(value, HERE)], layout)


def product(call: Call) -> Value:
    """Matrix products: a linear layer on each cell, or the image mixed with itself (attention)."""
    first, second = ("self", "mat2") if call.name in ("mm", "bmm") else ("mat1", "mat2")
    if call.name == "baddbmm":
        first, second = "batch1", "batch2"
    a, b = call.value(first), call.value(second)
    if all(v is None or v.layout is None for v in (a, b)):
        return call.whole()
    if a is not None and b is not None:
        raise Lost("it multiplies two maps with each other, as attention does")
    value = a or b
    assert value is not None
    assert value.layout is not None
    inner, outer = (-1, -2) if value is a else (-2, -1)
    if axes_in(value.layout[inner]):
        return call.whole()
    rows = value.layout[outer]
    columns = plain(call.outputs[0].shape[-1 if value is a else -2])
    last: Layout = (rows, columns) if value is a else (columns, rows)
    layout = (*value.layout[:-2], *last)
    bias = call.value("self") if call.name in ("addmm", "baddbmm") else None
    if bias is not None:
        raise Lost("it adds a map to a matrix product")
    return call.join([(value, HERE)], layout)


def read(call: Call) -> None:
    """A number that Python looks at."""
    call.note("Python reads a number computed from the image; what it decides by it is not counted")


_NAMES: dict[Rule, tuple[str, ...]] = {
    copied: ("copy",),
    filled: ("zero", "fill"),
    batch_norm: ("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm"),
    group_norm: ("native_group_norm",),
    layer_norm: ("native_layer_norm",),
    convolution: ("convolution",),
    pool: ("max_pool2d_with_indices", "avg_pool2d"),
    adaptive_pool: ("_adaptive_avg_pool2d", "adaptive_max_pool2d"),
    resize: (
        *("upsample_nearest2d", "_upsample_nearest_exact2d", "upsample_bilinear2d", "upsample_bicubic2d"),
        *("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"),
    ),
    pad: ("constant_pad_nd", "reflection_pad2d", "replication_pad2d"),
    shuffle: ("pixel_shuffle",),
    unshuffle: ("pixel_unshuffle",),
    reduce: (
        *("mean", "sum", "amax", "amin", "max", "min", "prod", "var", "std", "var_mean", "argmax", "argmin"),
        *("logsumexp", "linalg_vector_norm", "norm", "any", "all"),
    ),
    along: ("_softmax", "_log_softmax", "cumsum", "sort", "topk"),
    concatenate: ("cat", "stack"),
    cut: ("slice",),
    pieces: ("split", "split_with_sizes", "unbind"),
    pick: ("select",),
    rearrange: (
        *("view", "_unsafe_view", "_reshape_alias", "permute", "transpose", "t", "unsqueeze", "squeeze", "expand"),
    ),
    product: ("mm", "addmm", "bmm", "baddbmm"),
    read: ("_local_scalar_dense", "is_nonzero", "equal"),
}
_RULES: dict[str, Rule] = {name: rule for rule, names in _NAMES.items() for name in names}
