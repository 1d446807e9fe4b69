"""What a head's export form is, and by which verb it is found: a plug-in registers its own here."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from detkit.config import ConfigError
from detkit.matching.fixed import Marked
from detkit.models.heads.scales import side_at
from detkit.structures import SizeRange


class NoFormError(ConfigError):
    """A part of a detector that no export form says; the message names it."""


class View(NamedTuple):
    """B images of one size: ``size`` (h, w) px before padding, and the sizes of objects that count in it, None all.

    ``num_branches``: how often the maps hold the batch, as the backbone says (:class:`~detkit.models.Backbone`).
    ``scale``: by how much sizes are larger than in the original images, None where that is not known.
    """

    size: tuple[int, int]
    valid_range: SizeRange | None = None
    num_branches: int = 1
    scale: float | None = None


@functools.singledispatch
def found_by(head: nn.Module, features: Sequence[Tensor], view: View) -> Marked:
    """What ``head.predict`` finds in maps (B, C, H_l, W_l), as rows of a fixed number: the export form of a head.

    Maps of a backbone of N branches are (N * B, C, H_l, W_l).

    ``@found_by.register`` with the type of the head as its annotation adds one. A whole detector that is not composed
    of parts has one in the same way; its only map are the pixels (B, 3, H, W) float, 0 to 255.

    Raises:
        NoFormError: the head has none.
    """
    known = ", ".join(sorted(t.__name__ for t in found_by.registry if t is not object))
    raise NoFormError(f"model.head: {type(head).__name__} has no export form; there are those of {known}")


def has_form(module: nn.Module) -> bool:
    """Whether :func:`found_by` knows it."""
    return found_by.dispatch(type(module)) is not found_by.dispatch(object)


def inside_marks(shape: tuple[int, int], stride: float, size: tuple[int, int], device: torch.device) -> Tensor:
    """(H, W) bool: :func:`~detkit.models.heads.dense.cells_inside` of images of one ``size``."""
    y = torch.arange(shape[0], device=device) * stride
    x = torch.arange(shape[1], device=device) * stride
    return (y < size[0])[:, None] & (x < size[1])[None, :]


def map_shape(feature: Tensor) -> tuple[int, int]:
    """(h, w) of a map (B, C, h, w)."""
    return feature.shape[2], feature.shape[3]


def scaled_up(side: int, scale: float) -> int:
    """``ceil(side * scale)`` where ``side`` may stand for any number, in a way that every runtime divides alike.

    ONNX divides whole numbers towards zero, Python downwards: they agree above it.

    Raises:
        NoFormError: neither ``scale`` nor its inverse is whole, and the side is not known.
    """
    if scale == int(scale):
        return side * int(scale)
    parts = round(1 / scale)
    if abs(parts * scale - 1) < 1e-9:
        return (side + parts - 1) // parts
    if isinstance(side, int):
        return side_at(side, scale)
    raise NoFormError(f"maps at {scale:g} cells a px are exported for one size of images alone: give size=[H,W]")
