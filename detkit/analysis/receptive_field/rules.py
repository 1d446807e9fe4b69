"""What each elementary operation reads: the table that the recorder asks."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from detkit.analysis.receptive_field.layout import (
    AXES,
    Atom,
    Layout,
    Lost,
    axes_in,
    broadcast,
    feature_map,
    is_map,
    plain,
    reshaped,
    resized,
)
from detkit.analysis.receptive_field.reach import (
    IDENTITY,
    Adaptive,
    Nearest,
    Reach,
    Resample,
    Transposed,
    Window,
)
from detkit.analysis.receptive_field.recorder import Call, Rule, Value

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


def convolution(call: Call) -> Value:
    """Ordinary, dilated, grouped and transposed convolution."""
    a = call.arguments
    kernel = a["weight"].shape[2:]
    if len(kernel) != 2:
        return _without_place(call)
    stride, padding, dilation = (_pair(a[name]) for name in ("stride", "padding", "dilation"))
    kind = Transposed if a["transposed"] else Window
    reach = [kind(*given) for given in zip(kernel, stride, padding, dilation, strict=True)]
    return _windowed(call, "input", (reach[0], reach[1]))


def deformable(call: Call) -> Value:
    """The regular grid; through the offsets, which are made from the image too, anything."""
    a = call.arguments
    kernel = a["weight"].shape[2:]
    if "x" in a:  # detkit's own
        stride, padding, dilation = a["stride"], a["padding"], a["dilation"]
    else:
        stride, padding, dilation = ([a[f"{name}_{side}"] for side in "hw"] for name in ("stride", "pad", "dilation"))
    reach = [Window(*given) for given in zip(kernel, stride, padding, dilation, strict=True)]
    return _windowed(call, "x" if "x" in a else "input", (reach[0], reach[1]))


def pool(call: Call) -> Value:
    """A pooling with a window: it sees what a convolution of that kernel sees."""
    a = call.arguments
    kernel = _pair(a["kernel_size"])
    stride = _pair(a["stride"] or kernel)
    dilation = _pair(a.get("dilation", 1))
    reach = [Window(*given) for given in zip(kernel, stride, _pair(a["padding"]), dilation, strict=True)]
    return _windowed(call, "self", (reach[0], reach[1]))


def adaptive_pool(call: Call) -> Value:
    """A pooling to a given size: equal windows where it divides, else each cell's own; to one cell, the whole map."""
    value = call.value("self")
    sizes_in, sizes_out = call.arguments["self"].shape[-2:], call.outputs[0].shape[-2:]
    if value is None or value.layout is None or tuple(sizes_out) == (1, 1) != tuple(sizes_in):
        return call.whole()
    reach = [Window(a // b, a // b) if a % b == 0 else Adaptive(a, b) for a, b in zip(sizes_in, sizes_out, strict=True)]
    return _windowed(call, "self", (reach[0], reach[1]))


def resize(call: Call) -> Value:
    """Interpolation, by the ratio that PyTorch uses: of the sizes, or the scale factor where one was given."""
    a = call.arguments
    corners = a.get("align_corners", False)
    reach = []
    for axis, name in ((-2, "scales_h"), (-1, "scales_w")):
        size_in, size_out, scale = a["self"].shape[axis], call.outputs[0].shape[axis], a.get(name)
        ratio = Fraction(size_in, size_out) if not scale else 1 / Fraction(scale).limit_denominator(10_000)
        if corners:
            ratio = Fraction(size_in - 1, max(1, size_out - 1))
        reach.append(_resize_along(call.name, ratio, Fraction(1, 2) if corners else ratio / 2))
    return _windowed(call, "self", (reach[0], reach[1]))


def _resize_along(name: str, ratio: Fraction, offset: Fraction) -> Reach:
    if "nearest" in name:
        return Nearest(ratio, offset if "exact" in name else Fraction(0))
    radius = Fraction(2 if "bicubic" in name else 1)
    return Resample(ratio, offset, radius * max(ratio, Fraction(1)) if name.endswith("_aa") else radius)


def pad(call: Call) -> Value:
    """Padding of any kind; beyond the border there is nothing of the image, mirrored rows count as that."""
    value = call.value("self")
    amounts = list(call.arguments.get("pad") or call.arguments.get("padding") or ())
    if value is None or value.layout is None:
        return call.whole()
    reach = [IDENTITY, IDENTITY]
    for i, before in enumerate(amounts[::2], start=1):  # last dimension first
        if axis := axes_in(value.layout[-i]):
            reach[_axis_number(value.layout[-i])] = Window(padding=before)
            assert axis in AXES
    return call.join([(value, (reach[0], reach[1]))], resized(value.layout, call.outputs[0].shape))


def shuffle(call: Call) -> Value:
    """Channels laid out as space: each cell becomes a block of finer ones that see the same."""
    r = call.arguments["upscale_factor"]
    return _windowed(call, "self", (Nearest(Fraction(1, r)), Nearest(Fraction(1, r))))


def unshuffle(call: Call) -> Value:
    """Space laid out as channels: a cell sees the block that it was made of."""
    r = call.arguments["downscale_factor"]
    return _windowed(call, "self", (Window(r, r), Window(r, r)))


def _windowed(call: Call, name: str, reach: tuple[Reach, Reach]) -> Value:
    """A map made from windows of the map ``name``; of any other input (weights made from the image) from all."""
    value = call.value(name)
    others = [v for tensor, v in call.inputs() if tensor is not call.arguments[name]]
    if value is None or value.layout is None:
        return call.whole()
    if not is_map(value.layout):
        raise Lost("its input's last two dimensions are not height and width")
    parts = [(value, reach), *((other, None) for other in others)]
    return call.join(parts, feature_map(call.outputs[0].shape))


def _without_place(call: Call) -> Value:
    if any(value.layout is not None for _, value in call.inputs()):
        raise Lost("not an operation on maps")
    return call.whole()


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
    reach[_axis_number(dim)] = Window(stride=a["step"], padding=-start)
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


def _axis_number(dim: tuple[Atom, ...]) -> int:
    if len(dim) != 1:
        raise Lost("it moves an image axis that is joined with another dimension")
    return AXES.index(dim[0].axis)


def _pair(value: Any) -> tuple[int, int]:
    values = [value] if isinstance(value, int) else list(value)
    return (values[0], values[-1])


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
