"""What a checkpoint of mmdetection says of its input, in the text of its configuration, which is read and never run."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any, Literal

#: How pixels come in, and where a bottleneck halves its map. ``pytorch``: RGB by ImageNet's mean and deviation, in the
#: 3x3 convolution; ``caffe``: BGR less the mean, in the first 1x1.
Style = Literal["pytorch", "caffe"]


def style_in(text: str) -> Style | None:
    """The style of a configuration; None where it does not say.

    Raises:
        ValueError: it says a mixture of both, or is no Python.
    """
    try:
        said = {name: value for node in ast.parse(text).body for name, value in _assigned(node)}
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"its configuration is no Python: {error}") from error
    model = _mapping(said.get("model"))
    backbone = _mapping(model.get("backbone")).get("style")
    pixels = _mapping(model.get("data_preprocessor")) or _mapping(said.get("img_norm_cfg"))
    is_rgb, std = pixels.get("to_rgb", pixels.get("bgr_to_rgb")), pixels.get("std")
    if backbone is None and is_rgb is None:
        return None
    style: Style = "caffe" if backbone == "caffe" else "pytorch"
    if is_rgb is not None and (bool(is_rgb), _is_one(std)) != (style == "pytorch", style == "caffe"):
        raise ValueError(
            f"its configuration has backbone.style={backbone!r}, {'RGB' if is_rgb else 'BGR'} pixels and std={std}; "
            "taken are 'pytorch' with RGB and ImageNet's std, and 'caffe' with BGR and a std of 1"
        )
    return style


def _mapping(value: Any) -> Mapping[Any, Any]:
    """``value``, or nothing where it is something else: a file of strangers may say anything."""
    return value if isinstance(value, Mapping) else {}


def _is_one(std: Any) -> bool:
    return isinstance(std, list) and all(value == 1 for value in std)


def _assigned(node: ast.stmt) -> list[tuple[str, Any]]:
    if not isinstance(node, ast.Assign):
        return []
    return [(target.id, _value(node.value)) for target in node.targets if isinstance(target, ast.Name)]


def _value(node: ast.expr) -> Any:
    """What is written plainly: numbers, texts, lists and ``dict(...)``; None for anything else."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        return {k.arg: _value(k.value) for k in node.keywords if k.arg is not None}
    if isinstance(node, ast.Dict):
        pairs = ((key, value) for key, value in zip(node.keys, node.values, strict=True))
        return {key.value: _value(value) for key, value in pairs if isinstance(key, ast.Constant)}
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(element) for element in node.elts]
    return node.value if isinstance(node, ast.Constant) else None


def names_in(meta: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The names of the classes in a checkpoint's ``meta``; None where it does not say."""
    data = _mapping(meta.get("dataset_meta"))
    names = meta.get("CLASSES") or data.get("classes") or data.get("CLASSES")
    is_list = isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
    return tuple(names) if names and is_list else None
