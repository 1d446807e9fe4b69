"""The comparison as one HTML file: pictures are inside, nothing is fetched."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup, escape

from detkit.app.compare.runs import System
from detkit.app.compare.table import NUM_COSTS, Row, cells, headings, score
from detkit.app.pages.html import inline, render


class Line(NamedTuple):
    """A row of a table; ``interval``: the cell that may be broken. ``is_shown``: a difference, which is set off."""

    cells: Sequence[str]
    interval: int | None = None
    is_shown: bool = False


def make_page(
    title: str, rows: Sequence[Row], metric: str, shown: Sequence[str], notes: Sequence[str], pictures: Sequence[Path]
) -> str:
    """The whole page as text. ``pictures`` are PNG files."""
    return render(
        "comparison.html",
        title=title,
        tables=_tables(rows, metric, shown),
        notes=notes,
        figures=[(_caption(p), inline(p.read_bytes(), "png")) for p in pictures],
        runs=_runs([row.system for row in rows], metric),
    )


def _tables(rows: Sequence[Row], metric: str, shown: Sequence[str]) -> list[tuple[list[Markup], list[Line]]]:
    """Scores with differences, and costs: side by side they would be wider than many a window."""
    names, end = [_breakable(name) for name in headings(metric, shown)], -NUM_COSTS
    interval = next(i for i, name in enumerate(names) if name.endswith("interval"))
    scores, costs = [], []
    for row in rows:
        system, *numbers = cells(row, shown)
        told = [_breakable(system), *numbers]
        d = row.difference
        is_shown = d is not None and d.is_shown and d.seeds_vary  # one seed's verdict is not worth bold type
        scores.append(Line(told[:end], interval, is_shown))
        costs.append(Line([told[0], *told[end:]]))
    return [(names[:end], scores), ([names[0], *names[end:]], costs)]


def _breakable(name: str) -> Markup:
    """A name that may be broken where a reader would."""
    return Markup(re.sub(r"([/=._])(?=\w)", r"\1<wbr>", str(escape(name))))


def _runs(systems: Sequence[System], metric: str) -> tuple[list[Markup], list[Line]]:
    """Every run with its number and folder, and what sets its system apart."""
    keys = list(systems[0].differences)
    lines = []
    for system in systems:
        for run in system.runs:
            folder = Markup("<code>{}</code>").format(_breakable(str(run.folder)))
            numbers = (run.seed, score(run.metrics[metric], 4), run.result.get("best_step", "-"))
            lines.append(Line([folder, *(str(v) for v in (*numbers, *(system.differences[key] for key in keys)))]))
    return [_breakable(name) for name in ("folder", "seed", metric, "best step", *keys)], lines


def _caption(picture: Path) -> str:
    return picture.stem.replace("_", " ").capitalize()
