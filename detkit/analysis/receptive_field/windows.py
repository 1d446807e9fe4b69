"""Operations that read a window of cells, or resample them: convolution, pooling, resizing, padding, shuffling."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from detkit.analysis.receptive_field.layout import (
    AXES,
    Lost,
    axes_in,
    axis_number,
    feature_map,
    is_map,
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
from detkit.analysis.receptive_field.recorder import Call, Value


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
            reach[axis_number(value.layout[-i])] = Window(padding=before)
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


def _pair(value: Any) -> tuple[int, int]:
    values = [value] if isinstance(value, int) else list(value)
    return (values[0], values[-1])
