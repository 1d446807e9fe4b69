"""The figures of a comparison with much to say: no name runs into another, and none over what is drawn."""

from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from detkit.app.compare.figures import draw_bars, draw_curves
from detkit.evaluation.bootstrap import Difference

#: As a sweep over three keys names its systems.
LONG = "loss@model.head.roi.cls_loss=NormalizedSoftmax transform.train.resize={_target_: ResizeFit, size: %d} optim.lr=1e-3"


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved, laid out."""
    figures = []

    def keep(figure, *_, **__):
        FigureCanvasAgg(figure).draw()
        figures.append(figure)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def system(name: str) -> SimpleNamespace:
    steps = np.arange(1, 5)
    run = SimpleNamespace(table={("train", "loss"): (steps, 1 / steps), ("val", "AP"): (steps[2:], steps[2:] / 10)})
    return SimpleNamespace(name=name, runs=[run], values=lambda _: [0.2])


def overlap(one, other) -> bool:
    return one.x0 < other.x1 and other.x0 < one.x1 and one.y0 < other.y1 and other.y0 < one.y1


@pytest.mark.parametrize("num", [2, 12])
@pytest.mark.parametrize("name", ["model.neck=FPN%d", LONG])
def test_curves_are_not_covered_by_their_legend(name, num, drawn):
    draw_curves(Path(), [system(name % k) for k in range(num)], "AP")
    (figure,) = drawn
    legend = figure.legends[0].get_window_extent()
    for axes in figure.axes:
        assert not overlap(legend, axes.get_tightbbox())
        assert axes.get_window_extent().height > 0.5 * 4.2 * figure.dpi
    assert legend.y1 < figure.bbox.y1
    looks = {(line.get_color(), line.get_linestyle()) for line in figure.legends[0].get_lines()}
    assert len(looks) == num


@pytest.mark.parametrize("num", [2, 12])
@pytest.mark.parametrize("name", ["model.neck=FPN%d", LONG])
def test_names_of_bars_stand_apart(name, num, drawn):
    difference = Difference(0.1, 0.0, 0.2, True, 0, 100)
    rows = [
        SimpleNamespace(system=system(name % k), means={"AP": 0.2}, difference=difference if k else None)
        for k in range(num)
    ]
    draw_bars(Path(), rows, "AP")
    for axes in drawn[0].axes:
        names = [label.get_window_extent() for label in axes.get_yticklabels()]
        assert not any(overlap(*two) for two in combinations(names, 2))
