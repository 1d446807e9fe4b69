"""The receptive field of each feature map that a network returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from detkit.analysis.receptive_field.graph import Node, closed_form, is_regular, nodes_below, reads_all, trace_back
from detkit.analysis.receptive_field.layout import is_map
from detkit.analysis.receptive_field.reach import Span
from detkit.analysis.receptive_field.recorder import Recorder, Value
from detkit.analysis.receptive_field.rules import rule_of

#: Cells around the middle whose fields are compared where they may differ: nearest-neighbour enlargement by two repeats
#: after two cells, three of them in a row (FPN from stride 32 to 4) after eight. An odd ratio may repeat later.
MAX_PHASES = 32


class Box(NamedTuple):
    """Rows and columns of the input, px, half-open; it may reach over the border."""

    y1: int
    x1: int
    y2: int
    x2: int


@dataclass(frozen=True, slots=True)
class LevelField:
    """The analytic receptive field of one feature map. Pairs are (y, x), in px of the network input.

    ``shape`` (h, w) cells; ``stride`` px per cell; ``start`` the centre of the field of the first cell, where 0 is the
    image's border and 0.5 the centre of the first pixel; ``size`` of the field, by the recurrence, of the cell with the
    largest; ``closed_form`` the same by the closed form. Those are equal where all cells have the same field
    (``is_regular``); where maps are enlarged the closed form is an upper bound, and ``start`` an average. ``stride``,
    ``start`` and ``closed_form`` are None where branches do not lie exactly over each other. ``centre`` is the field of
    the cell in the middle.

    ``whole_image`` names the operations through which a cell depends on the whole image (a global pool). Everything
    else is then without them, and None if nothing is left.
    """

    shape: tuple[int, int]
    stride: tuple[float, float] | None = None
    start: tuple[float, float] | None = None
    size: tuple[int, int] | None = None
    closed_form: tuple[int, int] | None = None
    is_regular: bool = False
    centre: Box | None = None
    whole_image: tuple[str, ...] = ()


def receptive_fields(
    network: Callable[[Tensor], Sequence[Tensor]], pixels: Tensor
) -> tuple[list[LevelField], list[str]]:
    """Run ``network`` once on ``pixels`` (B, 3, H, W) and find the field of each map (B, C, h, w) that it returns.

    Modules should be in eval mode: batch norm then has no statistics of its own.

    Returns:
        One field for each map, and notes for the reader: what is not counted, and what the analysis could not follow.
        That counts as made from the whole image, so a field is never smaller than it is in truth.
    """
    with torch.no_grad(), Recorder(pixels, rule_of) as recorder:
        maps = network(pixels)
    fields = [_field(recorder.lookup(level), (level.shape[-2], level.shape[-1])) for level in maps]
    return fields, list(recorder.notes)


def _field(value: Value | None, shape: tuple[int, int]) -> LevelField:
    if value is None:  # made of constants
        return LevelField(shape)
    nodes = nodes_below(value.node)
    whole = reads_all(nodes)
    if value.layout is None or not is_map(value.layout):
        return LevelField(shape, whole_image=whole or (value.node.op,))
    y, x = (_along(nodes, shape[axis], axis) for axis in (0, 1))
    if y is None or x is None:
        return LevelField(shape, whole_image=whole)
    exact = y.stride is not None and x.stride is not None
    return LevelField(
        shape=shape,
        stride=(y.stride, x.stride) if exact else None,  # type: ignore[arg-type]
        start=(y.start, x.start) if exact else None,  # type: ignore[arg-type]
        size=(y.size, x.size),
        closed_form=(y.closed_form, x.closed_form) if exact else None,  # type: ignore[arg-type]
        is_regular=is_regular(nodes),
        centre=Box(y.centre.first, x.centre.first, y.centre.last + 1, x.centre.last + 1),
        whole_image=whole,
    )


class _Along(NamedTuple):
    """The field of a level along one axis."""

    centre: Span
    size: int
    stride: float | None
    start: float | None
    closed_form: int | None


def _along(nodes: Sequence[Node], length: int, axis: int) -> _Along | None:
    middle = length // 2
    first = max(0, middle - MAX_PHASES // 2)
    cells = [middle] if is_regular(nodes) else range(first, min(length, first + MAX_PHASES))
    spans = {cell: span for cell in cells if (span := trace_back(nodes, cell, axis)) is not None}
    if middle not in spans:
        return None
    size = max(span.last - span.first + 1 for span in spans.values())
    bounds = closed_form(nodes, axis)
    if bounds is None:
        return _Along(spans[middle], size, None, None, None)
    stride = float(bounds.ratio)
    offsets = [(span.first + span.last + 1) / 2 - stride * cell for cell, span in spans.items()]
    return _Along(spans[middle], size, stride, sum(offsets) / len(offsets), int(bounds.high - bounds.low) + 1)
