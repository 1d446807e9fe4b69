"""How ``tools/inspect_model.py`` shows what it found: tables, sentences, plain values, and a picture."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from detkit.analysis.receptive_field import Gap, gaps, size_bins
from detkit.analysis.receptive_field.effective import THRESHOLD
from detkit.app.inspect.model_found import Inspection, Level

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def cost_table(found: Inspection) -> Table:
    """Parameters and operations, part by part."""
    h, w = found.input_size
    table = Table(title=f"cost of one image of {h} x {w} px (a multiply-add counts as 2 FLOPs)", title_justify="left")
    for column in ("part", "parameters", "trainable", "GFLOPs", "share"):
        table.add_column(column, justify="left" if column == "part" else "right")
    total = max(1, found.costs["total"].flops)
    for name, cost in found.costs.items():
        flops = f"{cost.flops / 1e9:.2f}"
        table.add_row(name, f"{cost.parameters:,}", f"{cost.trainable:,}", flops, f"{cost.flops / total:.1%}")
    return table


def level_table(found: Inspection) -> Table:
    """Stride, fields and anchors of each level."""
    table = Table(title="what a cell of each level sees, px of the network input", title_justify="left")
    headings = ["stride", "start", "field", "closed form", "effective", "covers"]
    has_anchors = any(level.anchors for level in found.levels)
    for column in [*headings, *(["anchors"] if has_anchors else [])]:
        table.add_column(column, justify="right", overflow="fold")
    for level in found.levels:
        effective = "" if level.effective is None else f"{level.effective:.0f}"
        covers = f"{level.cover.low:g} to {_bound(level.cover.high)}"
        row = [f"{level.stride:g}", _pair(level.field.start), _field(level), _closed(level), effective, covers]
        table.add_row(*row, *([", ".join(f"{side:g}" for side in level.anchors)] if has_anchors else []))
    return table


def size_table(found: Inspection) -> Table:
    """The sizes of the boxes against the levels that cover them."""
    assert found.sides is not None
    table = Table(title="sizes of the boxes at the network's input", title_justify="left")
    for column in ("side (px)", "boxes", "share", "levels that cover them, by stride"):
        table.add_column(column, justify="right" if column != "levels that cover them, by stride" else "left")
    for row in size_bins(found.sides, [level.cover for level in found.levels]):
        names = [_name(found.levels[i], i in row.well) for i in row.levels]
        sizes = f"{row.low:g} to {row.high:g}"
        table.add_row(sizes, str(row.count), f"{row.share:.1%}", "  ".join(names) or ("none" if row.count else ""))
    return table


def describe(found: Inspection) -> str:
    """What the tables mean, and what no level covers."""
    lines = [
        "start: centre of the field of the first cell (0 is the image's border, 0.5 the centre of its first pixel)",
        "field: of the cell with the largest; the head's own layers come on top",
        "closed form: equal wherever all cells have the same field; where maps are enlarged a bound for all cells (<=)",
        f"effective: root of the area where the gradient exceeds 4.55 % of its peak; inputs: {found.inputs}",
        "a level covers objects from 2 strides to its field; ~ in the table: larger than its effective field",
    ]
    for level in found.levels:
        if level.field.whole_image:
            rest = "; without that, what stands in brackets" if level.field.size else ""
            through = ", ".join(level.field.whole_image)
            lines.append(f"stride {level.stride:g} sees the whole image through {through}{rest}")
    lines += [f"note: {note}" for note in found.notes]
    if found.sides is None:
        lines.append("no data: box sizes are not compared")
    covers = [level.cover for level in found.levels]
    uncovered = gaps(np.zeros(0) if found.sides is None else found.sides, covers)
    lines.append(f"covered by no level: {', '.join(_gap(gap, found) for gap in uncovered) or 'nothing'}")
    if found.sides is not None and len(found.sides) and (vague := _vague(found)):
        share = vague / len(found.sides)
        lines.append(f"covered, but by no level within its effective field: {vague} boxes ({share:.1%})")
    return "\n".join(lines)


def as_dict(found: Inspection) -> dict[str, Any]:
    """Plain values, for a JSON file; a missing upper bound is null."""
    covers = [level.cover for level in found.levels]
    sides = found.sides
    return {
        "input_size": list(found.input_size),
        "inputs": found.inputs,
        "levels": [_level_dict(level) for level in found.levels],
        "costs": {name: cost._asdict() for name, cost in found.costs.items()},
        "num_boxes": None if sides is None else len(sides),
        "sizes": [] if sides is None else [b._asdict() for b in size_bins(sides, covers)],
        "uncovered": [
            {"low": g.low, "high": None if math.isinf(g.high) else g.high, "boxes": None if sides is None else g.count}
            for g in gaps(np.zeros(0) if sides is None else sides, covers)
        ],
        "larger_than_effective": None if sides is None else _vague(found),
        "notes": list(found.notes),
    }


def plot(found: Inspection) -> Figure:
    """The gradient of each level's middle cell with its field, over the boxes' sizes and what the levels cover."""
    from matplotlib.figure import Figure

    maps = [level for level in found.levels if level.gradient is not None]
    num = max(1, len(maps))
    below = 1.2 if found.sides is None else 3.3
    figure = Figure(figsize=(max(8.0, 2.9 * num), below + 3.1 * bool(maps)), layout="constrained", dpi=110)
    grid = figure.add_gridspec(2 if maps else 1, num, height_ratios=[3.1, below] if maps else None)
    for i, level in enumerate(maps):
        _plot_gradient(figure.add_subplot(grid[0, i]), level)
    _plot_sizes(figure.add_subplot(grid[-1, :]), found)
    return figure


def _plot_gradient(axes: Axes, level: Level) -> None:
    from matplotlib.patches import Rectangle

    assert level.gradient is not None
    assert level.effective is not None
    gradient = level.gradient.numpy()
    peak = max(gradient.max(), np.finfo(float).tiny)
    # A root makes the bell visible that a linear scale hides between the grid that strided layers leave.
    axes.imshow((gradient / peak) ** 0.4, cmap="magma", vmin=0, vmax=1, interpolation="nearest")
    y, x = (places.mean() for places in np.nonzero(gradient >= THRESHOLD * peak)) if gradient.any() else (0.0, 0.0)
    squares = [(y, x, level.effective, level.effective, "--")]
    if (box := level.window.centre) is not None:
        middle = (box.y1 + box.y2 - 1) / 2, (box.x1 + box.x2 - 1) / 2
        squares.append((*middle, box.y2 - box.y1, box.x2 - box.x1, "-"))
    for y, x, h, w, style in squares:
        outline = Rectangle((x - w / 2, y - h / 2), w, h, fill=False, edgecolor="#4fd1ff", linestyle=style)
        axes.add_patch(outline)
    axes.set(xlim=(-0.5, gradient.shape[1] - 0.5), ylim=(gradient.shape[0] - 0.5, -0.5), xticks=[], yticks=[])
    axes.set_title(
        f"stride {level.stride:g}: field {_field(level)}\neffective {level.effective:.0f} (dashed)", fontsize=9
    )


def _plot_sizes(axes: Axes, found: Inspection) -> None:
    sides = found.sides if found.sides is not None else np.zeros(0)
    ends = [level.cover.high for level in found.levels if math.isfinite(level.cover.high)]
    right = 1.3 * max([*ends, *found.input_size, *sides.tolist()])
    left = min([found.levels[0].cover.low / 2, *sides[sides > 0].tolist()])
    top = 1.0
    if len(sides):
        counts, *_ = axes.hist(sides, bins=np.geomspace(left, right, 61).tolist(), color="#b8c4d6")
        top = float(np.max(counts))
    step = 0.09 * top
    for i, level in enumerate(found.levels):
        low, high, effective = level.cover
        high = min(high, right)
        y = -step * (i + 1)
        axes.barh(y, high - low, left=low, height=0.62 * step, color="#9cc2f0")
        if effective is not None and effective > low:
            axes.barh(y, min(effective, high) - low, left=low, height=0.62 * step, color="#2a66b8")
        axes.text(low / 1.04, y, f"stride {level.stride:g}", fontsize=8, ha="right", va="center")
    axes.axhline(0, color="0.4", linewidth=0.8)
    top = 1.08 * top if len(sides) else 0.0
    axes.set(xscale="log", xlim=(left, right), ylim=(-step * (len(found.levels) + 0.7), top))
    axes.set_xticks([t for t in 2.0 ** np.arange(0, 14) if left <= t <= right], minor=False)
    axes.minorticks_off()
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_yticks([t for t in axes.get_yticks() if 0 <= t <= top] if len(sides) else [])
    axes.set_ylabel("boxes" if len(sides) else "", fontsize=9)
    axes.set_xlabel(
        "side of a box (root of its area, px of the network input); bars: what each level covers, "
        "dark within its effective field",
        fontsize=9,
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def _level_dict(level: Level) -> dict[str, Any]:
    field = {k: v for k, v in dataclasses.asdict(level.field).items() if k != "centre"}
    high = level.cover.high
    return {
        **field,
        "stride": level.stride,
        "stride_of_operations": level.field.stride,
        "effective": level.effective,
        "covers": [level.cover.low, None if math.isinf(high) else high],
        "anchors": list(level.anchors),
    }


def _vague(found: Inspection) -> int:
    """Boxes that some level covers, but none within its effective field."""
    covers = [level.cover for level in found.levels]
    assert found.sides is not None
    if any(c.effective is None for c in covers):
        return 0
    sides = found.sides
    covered = np.any([c.covers(sides) for c in covers], axis=0)
    well = np.any([c.covers(sides) & (sides <= (c.effective or 0)) for c in covers], axis=0)
    return int((covered & ~well).sum())


def _gap(gap: Gap, found: Inspection) -> str:
    if not gap.low:
        range_ = f"below {gap.high:g} px"
    elif math.isinf(gap.high):
        range_ = f"above {gap.low:g} px"
    else:
        range_ = f"between {gap.low:g} and {gap.high:g} px"
    if found.sides is None or not len(found.sides):
        return range_
    return f"{range_} ({gap.count} boxes, {gap.count / len(found.sides):.1%})"


def _name(level: Level, well: bool) -> str:
    return f"{level.stride:g}" if well or level.effective is None else f"~{level.stride:g}"


def _field(level: Level) -> str:
    size = _pair(level.field.size)
    if not level.field.whole_image:
        return size or "nothing"
    return f"image ({size})" if size else "image"


def _closed(level: Level) -> str:
    closed = level.field.closed_form
    return "" if closed is None else ("" if level.field.is_regular else "<= ") + _pair(closed)


def _pair(values: Sequence[float] | None) -> str:
    """One number where height and width agree."""
    if values is None:
        return ""
    return f"{values[0]:g}" if values[0] == values[1] else f"{values[0]:g} x {values[1]:g}"


def _bound(value: float) -> str:
    return "any size" if math.isinf(value) else f"{value:g}"
