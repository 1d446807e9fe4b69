"""``tools/benchmark.py scaling``: how time and memory grow with images, boxes, classes and pixels, and by which power.

Every point is measured in a process of its own. The exponent is that of a power law through all points of a row, by
least squares on logarithms; ``last`` is that of the last step alone, where what is constant counts least: 1 is linear,
and what is above 1.1 is marked.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import rich
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.models import recipe_detector
from benchmarks.ops import WIDTH
from benchmarks.processes import in_a_process_of_its_own
from benchmarks.training import made_images, training_step
from detkit.app.run.costs import peak_memory
from detkit.config.ranges import check_range
from detkit.evaluation import CocoEvaluator, EvaluatorState
from detkit.evaluation.synthetic import synthetic_set
from detkit.pictures.draw import PNG_METADATA
from detkit.utils.files import atomic_write
from detkit.utils.progress import track

#: Height and width, px, of the smallest images; larger ones have both sides multiplied.
_SIZE = (160, 224)
#: An exponent above this grows clearly faster than its input.
_LINEAR = 1.1

#: A row's line in the plot: what is done by the kind of line, against what by the colour.
_LINES = {"training step": "-", "prediction": "--", "evaluation": ":"}
_COLOURS = {"images": "C0", "boxes": "C1", "classes": "C2", "pixels": "C3"}

_USUAL = {"images": 1, "boxes": 14, "classes": 3, "pixels": _SIZE[0] * _SIZE[1]}


class Row(NamedTuple):
    """``what`` is done with each of ``values`` of ``axis``, all else as usual.

    Boxes are objects in an image of a training step, regions that a prediction classifies and may give out, and both
    objects and detections in an image of an evaluation.
    """

    what: str
    axis: str
    values: tuple[int, ...]


class Point(NamedTuple):
    """Seconds of the process's own work, a median; and the bytes that it took beyond what it had before."""

    seconds: float
    memory: int


_PIXELS = tuple(_USUAL["pixels"] * side**2 for side in (1, 2, 3, 4))
ROWS = (
    Row("training step", "images", (1, 2, 4, 8)),
    Row("training step", "boxes", (1, 10, 100, 1000)),
    Row("training step", "classes", (1, 70, 600, 5000)),
    Row("training step", "pixels", _PIXELS),
    Row("prediction", "images", (1, 2, 4, 8)),
    Row("prediction", "boxes", (1, 10, 100, 1000)),
    Row("prediction", "classes", (1, 70, 600, 5000)),
    Row("prediction", "pixels", _PIXELS),
    Row("evaluation", "images", (250, 1000, 4000)),
    Row("evaluation", "boxes", (1, 10, 100, 400)),
    Row("evaluation", "classes", (1, 70, 600, 5000)),
)


def benchmark_scaling(rows: Sequence[Row], repeats: int) -> Iterator[tuple[Row, list[Point | None]]]:
    """The points of each row; None for one whose process was killed."""
    total = sum(len(row.values) for row in rows)
    progress = iter(track(range(total), total, "measuring"))
    for row in rows:
        points = []
        for value in row.values:
            next(progress)
            points.append(in_a_process_of_its_own(measure, row.what, row.axis, value, repeats))
        yield row, points
    next(progress, None)


def measure(what: str, axis: str, value: int, repeats: int) -> Point:
    """``what`` with ``value`` of ``axis``, on one thread, ``repeats`` times after one that does not count."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    amounts = {**_USUAL, axis: value}
    before = psutil.Process().memory_info().rss
    run = _evaluation(axis, amounts) if what == "evaluation" else _step(what == "training step", axis, amounts)
    times = []
    for _ in range(repeats + 1):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return Point(statistics.median(times[1:]), max(0, peak_memory(torch.device("cpu")) - before))


def _step(trains: bool, axis: str, amounts: Mapping[str, int]) -> Callable[[], Any]:
    boxes, classes = amounts["boxes"], amounts["classes"]
    side = math.isqrt(amounts["pixels"] // _USUAL["pixels"])
    size = (_SIZE[0] * side, _SIZE[1] * side)
    batch, targets = made_images(amounts["images"], size, boxes, torch.device("cpu"), classes)
    key = "model.head.roi.selector.max_detections"
    regions = [f"model.head.rpn.num_proposals=[2000,{boxes}]", f"{key}={boxes}"] if axis == "boxes" else []
    model = recipe_detector("faster_rcnn", classes, regions).train(trains)
    if trains:
        return training_step(model, lambda: model(batch, targets).total)
    return torch.no_grad()(lambda: model(batch))


def _evaluation(axis: str, amounts: Mapping[str, int]) -> Callable[[], Any]:
    amount = {"num_images": amounts["images"] if axis == "images" else 500, "detections_per_image": 100}
    if axis == "boxes":
        amount |= {"detections_per_image": amounts["boxes"], "objects_per_image": amounts["boxes"]}
    made = synthetic_set(num_categories=amounts["classes"], **amount)
    evaluator = CocoEvaluator(categories=made.categories, truths=made.truths)
    evaluator.merge([EvaluatorState(np.array([t.image_id for t in made.truths]), made.results)])
    return evaluator.compute


def exponents(values: Sequence[int], amounts: Sequence[float]) -> tuple[float, float]:
    """Of ``amounts ~ values ** exponent``: by least squares over all points, and of the last step."""
    x, y = np.log(values), np.log(np.maximum(amounts, 1e-12))
    fitted = float(np.polyfit(x, y, 1)[0])
    return fitted, float((y[-1] - y[-2]) / (x[-1] - x[-2]))


def scaling_table(measured: Sequence[tuple[Row, list[Point | None]]]) -> Table:
    """One line for each row: from the least to the most, and the exponents of time and memory, marked above 1.1."""
    title = "time and memory against the amount of input, one thread, processor time"
    note = f"* grows faster than its input: the exponent is above {_LINEAR}"
    table = Table(title=title, title_justify="left", caption=note, caption_justify="left")
    for i, heading in enumerate(("", "against", "from", "to", "ms", "exponent", "last", "MiB", "exponent", "last")):
        table.add_column(heading, justify="right" if i > 1 else "left", no_wrap=True)
    for row, points in measured:
        found = [(v, p) for v, p in zip(row.values, points, strict=True) if p is not None]
        cells = [row.what, row.axis, f"{row.values[0]:,}", f"{row.values[-1]:,}"]
        if len(found) < len(points) or len(found) < 2:
            table.add_row(*cells, "killed: not enough memory?")
            continue
        values = [v for v, _ in found]
        for amounts, unit in (([p.seconds for _, p in found], 1e3), ([float(p.memory) for _, p in found], 2.0**-20)):
            fitted, last = exponents(values, amounts)
            span = f"{unit * amounts[0]:,.0f} to {unit * amounts[-1]:,.0f}"
            cells += [span, _marked(fitted), _marked(last)]
        table.add_row(*cells)
    return table


def _marked(exponent: float) -> str:
    return f"{exponent:.2f}{'*' * (exponent > _LINEAR)}"


def draw_scaling(measured: Sequence[tuple[Row, list[Point | None]]], path: Path) -> None:
    """A PNG: time and memory of each row against how many times its least value, both logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, name, unit in zip(panels, ("seconds", "memory"), (1.0, 2.0**-20), strict=True):
        for row, points in measured:
            found = [(v / row.values[0], getattr(p, name) * unit) for v, p in zip(row.values, points, strict=True) if p]
            line = f"{_LINES[row.what]}{_COLOURS[row.axis]}"
            axes.plot(*zip(*found, strict=True), line, marker="o", markersize=3, label=f"{row.what}, {row.axis}")
        axes.set(xscale="log", yscale="log", xlabel="times the least input", ylabel="MiB" if unit < 1 else "s")
        axes.grid(alpha=0.3)
    panels[1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.02, 0.5))
    content = BytesIO()
    figure.savefig(content, format="png", dpi=110, metadata=PNG_METADATA)
    atomic_write(path, content.getvalue())


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of :func:`benchmark_scaling`; what is interrupted is shown as far as it came."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = sorted({row.what for row in ROWS})
    parser.add_argument("--what", nargs="+", choices=names, default=names, help="(default: all)")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each point (default: %(default)s)")
    parser.add_argument("--most", type=int, help="leave out values above this, such as --most 4, for a short trial")
    parser.add_argument("--output", type=Path, help="a PNG file for the plot")
    options = parser.parse_args(arguments)
    check_range("--repeats", options.repeats, 1)
    check_range("--most", options.most, 1)
    rows = [row for row in ROWS if row.what in options.what]
    if options.most is not None:
        rows = [r._replace(values=tuple(v for v in r.values if v <= options.most)) for r in rows]
        rows = [row for row in rows if len(row.values) > 1]
    measured = []
    try:
        for each in benchmark_scaling(rows, options.repeats):
            measured.append(each)
    finally:
        if measured:
            Console(width=max(rich.get_console().width, WIDTH)).print(scaling_table(measured))
            if options.output is not None:
                draw_scaling(measured, options.output)
