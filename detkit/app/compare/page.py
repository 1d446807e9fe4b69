"""The comparison as one HTML file: pictures are inside, nothing is fetched."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from detkit.app.compare.runs import System
from detkit.app.compare.table import NUM_COSTS, Row, cells, headings, score

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1b1b1b; background: #fff; margin: 2rem auto; max-width: 72rem;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.wide { overflow-x: auto; margin-bottom: 1.2rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .5rem; border-bottom: 1px solid #ddd; text-align: right; vertical-align: top;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; overflow-wrap: break-word; max-width: 26rem; }
thead th { border-bottom: 2px solid #888; white-space: normal; vertical-align: bottom; }
tr.shown td.interval { font-weight: 600; }
td.interval { min-width: 8.2rem; white-space: normal; }
img { max-width: 100%; height: auto; }
.note { color: #555; max-width: 60rem; } code { background: #f3f3f3; padding: 0 .25em; }
@media (max-width: 60rem) { table { font-size: .8rem; } th, td { padding: .3rem; } }
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
{_tables(rows, metric, shown)}
{"".join(f'<p class="note">{escape(note)}</p>' for note in notes)}
{figures}
<h2>Runs</h2>
{_runs([row.system for row in rows], metric)}
</body>
</html>
"""


def _tables(rows: Sequence[Row], metric: str, shown: Sequence[str]) -> str:
    """Scores with differences, and costs: side by side they would be wider than many a window."""
    names, end = headings(metric, shown), -NUM_COSTS
    interval = next(i for i, name in enumerate(names) if name.endswith("interval"))
    scores, costs = [], []
    for row in rows:
        system, *numbers = cells(row, shown)
        told = [f"<td>{_breakable(system)}</td>", *(f"<td>{escape(number)}</td>" for number in numbers)]
        told[interval] = f"<td class=interval>{escape(numbers[interval - 1])}</td>"
        d = row.difference
        is_shown = d is not None and d.is_shown and d.seeds_vary  # one seed's verdict is not worth bold type
        scores.append(f"<tr{' class=shown' if is_shown else ''}>{''.join(told[:end])}</tr>")
        costs.append(f"<tr>{told[0]}{''.join(told[end:])}</tr>")
    return _table(names[:end], scores) + _table([names[0], *names[end:]], costs)


def _table(names: Sequence[str], rows: Sequence[str]) -> str:
    head = "".join(f"<th>{_breakable(name)}</th>" for name in names)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _breakable(name: str) -> str:
    """A name that may be broken where a reader would."""
    return re.sub(r"([/=._])(?=\w)", r"\1<wbr>", escape(name))


def _runs(systems: Sequence[System], metric: str) -> str:
    """Every run with its number and folder, and what sets its system apart."""
    keys = list(systems[0].differences)
    body = []
    for system in systems:
        for run in system.runs:
            told = [
                f"<code>{_breakable(str(run.folder))}</code>",
                *(escape(str(v)) for v in (run.seed, score(run.metrics[metric], 4), run.result["best_step"])),
                *(escape(str(system.differences[key])) for key in keys),
            ]
            body.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in told) + "</tr>")
    return _table(["folder", "seed", metric, "best step", *keys], body)


def _caption(picture: Path) -> str:
    return picture.stem.replace("_", " ").capitalize()
