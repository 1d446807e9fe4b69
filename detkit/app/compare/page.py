"""The comparison as one HTML file: pictures are inside, nothing is fetched."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

from detkit.app.compare.runs import System
from detkit.app.compare.table import Row, cells, headings

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1b1b1b; background: #fff; margin: 2rem auto; max-width: 84rem;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .93rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .5rem; border-bottom: 1px solid #ddd; text-align: right; vertical-align: top;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal;
  overflow-wrap: anywhere; min-width: 9rem; }
thead th { border-bottom: 2px solid #888; white-space: nowrap; }
tr.shown td.interval { font-weight: 600; }
td.interval { min-width: 9.5rem; white-space: normal; }
img { max-width: 100%; height: auto; }
.note { color: #555; max-width: 60rem; } code { background: #f3f3f3; padding: 0 .25em; overflow-wrap: anywhere; }
"""


def make_page(
    title: str, rows: Sequence[Row], metric: str, shown: Sequence[str], notes: Sequence[str], pictures: Sequence[Path]
) -> str:
    """The whole page as text. ``pictures`` are PNG files."""
    figures = "\n".join(
        f'<h2>{escape(_caption(p))}</h2>\n<img alt="{escape(_caption(p))}" src="data:image/png;base64,'
        f'{base64.b64encode(p.read_bytes()).decode()}">'
        for p in pictures
    )
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}</style></head>
<body>
<h1>{escape(title)}</h1>
<div class="wide">{_table(rows, metric, shown)}</div>
{"".join(f'<p class="note">{escape(note)}</p>' for note in notes)}
{figures}
<h2>Runs</h2>
<div class="wide">{_runs([row.system for row in rows], metric)}</div>
</body>
</html>
"""


def _table(rows: Sequence[Row], metric: str, shown: Sequence[str]) -> str:
    names = headings(metric, shown)
    interval = next(i for i, name in enumerate(names) if name.endswith("interval"))
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = []
    for row in rows:
        is_shown = row.difference is not None and row.difference.is_shown
        told = "".join(
            f"<td{' class=interval' if i == interval else ''}>{escape(cell)}</td>"
            for i, cell in enumerate(cells(row, shown))
        )
        body.append(f"<tr{' class=shown' if is_shown else ''}>{told}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _runs(systems: Sequence[System], metric: str) -> str:
    """Every run with its number and folder, and what sets its system apart."""
    keys = list(systems[0].differences)
    head = "".join(f"<th>{escape(name)}</th>" for name in ("folder", "seed", metric, "best step", *keys))
    body = []
    for system in systems:
        for run in system.runs:
            told = [
                f"<code>{escape(str(run.folder))}</code>",
                *(escape(str(v)) for v in (run.seed, f"{run.metrics[metric]:.4f}", run.result["best_step"])),
                *(escape(str(system.differences[key])) for key in keys),
            ]
            body.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in told) + "</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _caption(picture: Path) -> str:
    return picture.stem.replace("_", " ").capitalize()
