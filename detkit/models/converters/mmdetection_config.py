"""What a checkpoint of mmdetection says of its input, in the text of its configuration, which is read and never run."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from detkit.models.converters.pixels import Pixels, Style, pixels_of

#: What turns the channels of an image; each does, whatever its name says of the order before.
_TURNS = ("to_rgb", "bgr_to_rgb", "rgb_to_bgr")


def input_in(text: str) -> tuple[Style | None, Pixels | None]:
    """The style of a configuration, and how its network takes pixels; None for what it does not say.

    Raises:
        ValueError: it is no Python, or its mean and deviation are no three numbers each.
    """
    try:
        said = {name: value for node in ast.parse(text).body for name, value in _assigned(node)}
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"its configuration is no Python: {error}") from error
    model = _mapping(said.get("model"))
    style = _mapping(model.get("backbone")).get("style")
    pixels = _pixels_in(model, said)
    if style not in (None, "pytorch", "caffe"):
        raise ValueError(f"its backbone.style is {style!r}; allowed: 'pytorch', 'caffe'")
    return "pytorch" if style is None and pixels is not None else style, pixels


def _pixels_in(model: Mapping[Any, Any], said: Mapping[str, Any]) -> Pixels | None:
    """What is done to an image, which mmdetection reads as BGR: channels are turned first, where that is said."""
    for place, node, turned_unless_said in (
        ("model.data_preprocessor", _mapping(model.get("data_preprocessor")), False),
        ("data_preprocessor", _mapping(said.get("data_preprocessor")), False),
        ("img_norm_cfg", _mapping(said.get("img_norm_cfg")), True),
    ):
        if node:
            turns = [bool(node[key]) for key in _TURNS if key in node] or [turned_unless_said]
            return pixels_of(node.get("mean"), node.get("std"), not any(turns), (f"{place}.mean", f"{place}.std"))
    return None


def _mapping(value: Any) -> Mapping[Any, Any]:
    """``value``, or nothing where it is something else: a file of strangers may say anything."""
    return value if isinstance(value, Mapping) else {}


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
