"""The figures of a comparison, as PNG files."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from detkit.app.compare.runs import Run, System
from detkit.app.compare.table import NOT_DEFINED, NOT_SHOWN, Row, no_interval
from detkit.evaluation.bootstrap import CONFIDENCE
from detkit.evaluation.summary import with_nan
from detkit.pictures.draw import PNG_METADATA

#: Okabe and Ito's colours, which the colour-blind can tell apart.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
#: Of curves beyond so many.
STYLES = ("-", "--", ":", "-.")

#: Letters in a line of a name, beside a bar and in the legend of curves.
_BESIDE_BARS, _IN_LEGEND = 40, 60
#: Inches that a line of names and one of an axis's words take: 9 and 10 points, and the space between.
_NAME_LINE, _WORD_LINE = 0.15, 0.17


def draw_bars(path: Path, rows: Sequence[Row], metric: str) -> None:
    """A bar for each system: the mean over its runs, which are dots; below, the differences with their intervals."""
    from matplotlib.figure import Figure

    compared = [row for row in rows if row.difference is not None]
    difference = _difference(rows, compared, metric) if compared else ""
    row_height = max(0.5, _NAME_LINE * (1 + _most_lines([row.system.name for row in rows], _BESIDE_BARS)))
    height = 1.2 + _WORD_LINE * max(0, difference.count("\n") - 1) + row_height * (len(rows) + len(compared))
    figure = Figure(figsize=(9, height), layout="constrained")
    ratios = [len(rows), max(1, len(compared))]
    axes = figure.subplots(2 if compared else 1, 1, squeeze=False, height_ratios=ratios[: 2 if compared else 1])
    top = axes[0, 0]
    for i, row in enumerate(rows):
        values = row.system.values(metric)
        top.barh(i, row.means[metric], color=_color(i), alpha=0.35, height=0.7)
        top.plot(values, np.full(len(values), i), "o", color=_color(i), markersize=5)
        _say(top, NOT_DEFINED if np.isnan(row.means[metric]) else "", i)
    _name_rows(top, [row.system.name for row in rows])
    top.set_xlabel(f"{metric}: mean over the runs (bar) and each run (dot)")
    top.set_xlim(left=0)
    if compared:
        _draw_differences(axes[1, 0], rows, compared)
        axes[1, 0].set_xlabel(difference, parse_math=False)
    figure.savefig(path, dpi=110, metadata=PNG_METADATA)


def _draw_differences(axis, rows: Sequence[Row], compared: Sequence[Row]) -> None:
    places = {row.system.name: i for i, row in enumerate(rows)}
    for i, row in enumerate(compared):
        d = row.difference
        assert d is not None
        color = _color(places[row.system.name])
        axis.plot([d.low, d.high], [i, i], color=color, linewidth=2, linestyle="-" if d.seeds_vary else ":")
        axis.plot(d.value, i, "o", color=color, markersize=7, markerfacecolor=color if d.is_shown else "white")
        _say(axis, no_interval(d), i)
    axis.axvline(0, color="black", linewidth=1)
    _name_rows(axis, [row.system.name for row in compared])


def _difference(rows: Sequence[Row], compared: Sequence[Row], metric: str) -> str:
    """What the axis of the differences says, in lines."""
    baseline = next(row.system.name for row in rows if row.difference is None)
    told = [row.difference for row in compared if row.difference is not None and not no_interval(row.difference)]
    alone = any(not d.seeds_vary for d in told)
    marks = f"hollow: {NOT_SHOWN}{'; dotted: images alone' * alone}"
    return textwrap.fill(f"{metric} minus that of {baseline}, {CONFIDENCE:.0%} interval ({marks})", width=64)


def _say(axis, words: str, row: int) -> None:
    """Why there is nothing to see in a row."""
    if words:
        axis.text(0.01, row, words, transform=axis.get_yaxis_transform(), va="center", fontsize=9, color="#555")


def draw_curves(path: Path, systems: Sequence[System], metric: str) -> None:
    """Training loss and validation metric by step: each run thin, the mean of a system's runs thick."""
    from matplotlib.figure import Figure

    legend_height = _NAME_LINE * (0.4 + _most_lines([s.name for s in systems], _IN_LEGEND)) * ((len(systems) + 1) // 2)
    figure = Figure(figsize=(10, 4.2 + max(0.0, legend_height - 0.7)), layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, system in enumerate(systems):
        _draw_lines(left, [_smooth(*_series(run, "train", "loss")) for run in system.runs], i, system.name)
        scores = [_series(run, "val", metric) for run in system.runs]
        _draw_lines(right, [(steps, with_nan(values)) for steps, values in scores], i, system.name)
    left.set(xlabel="step", ylabel="training loss (smoothed)", yscale="log")
    right.set(xlabel="step", ylabel=f"validation {metric}")
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.set_xlim(left=0)
        if not axis.lines:
            axis.text(0.5, 0.5, "no metrics.csv in the run folders", ha="center", transform=axis.transAxes)
    handles, labels = left.get_legend_handles_labels()
    if handles:
        names = [textwrap.fill(x, _IN_LEGEND) for x in labels]
        legend = figure.legend(handles, names, loc="outside lower center", ncols=2, fontsize=9)
        for text in legend.get_texts():
            text.set_parse_math(False)
    figure.savefig(path, dpi=110, metadata=PNG_METADATA)


def _draw_lines(axis, series: Sequence[tuple[np.ndarray, np.ndarray]], number: int, name: str) -> None:
    color, style = _color(number), STYLES[number // len(COLORS) % len(STYLES)]
    lines = [(steps, values) for steps, values in series if len(steps)]
    marker = "o" if lines and max(len(steps) for steps, _ in lines) < 3 else None
    for steps, values in lines:
        axis.plot(steps, values, color=color, linewidth=0.8, alpha=0.4, marker=marker)
    if not lines:
        return
    common = lines[0][0]
    for steps, _ in lines[1:]:
        common = np.intersect1d(common, steps)
    mean = np.mean([values[np.isin(steps, common)] for steps, values in lines], axis=0)
    axis.plot(common, mean, color=color, linewidth=2.2, linestyle=style, label=name, marker=marker)


def _series(run: Run, split: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    return run.table.get((split, name), (np.zeros(0, int), np.zeros(0)))


def _smooth(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over windows of a fortieth of the run: single steps jump."""
    window = max(1, len(values) // 40)
    if window == 1:
        return steps, values
    usable = len(values) // window * window
    return steps[:usable].reshape(-1, window)[:, -1], values[:usable].reshape(-1, window).mean(axis=1)


def _name_rows(axis, names: Sequence[str]) -> None:
    axis.set_yticks(
        range(len(names)), [textwrap.fill(name, _BESIDE_BARS) for name in names], fontsize=9, parse_math=False
    )
    axis.set_ylim(len(names) - 0.5, -0.5)  # the first on top
    axis.spines[["top", "right"]].set_visible(False)


def _most_lines(names: Sequence[str], width: int) -> int:
    """Lines of the longest of ``names`` in a column of ``width`` letters."""
    return max((len(textwrap.wrap(name, width)) for name in names), default=1)


def _color(i: int) -> str:
    return COLORS[i % len(COLORS)]
