"""Pieces of a report as one HTML file, that opens without a server, a network or a script."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

import cv2
import numpy as np

from detkit.structures.draw import class_color

#: Pictures are small crops: no one sees more.
_JPEG_QUALITY = 82

_STYLE = """
:root { color-scheme: light; --ink: #1c2733; --soft: #5d6b7a; --line: #dde3ea; --fill: #3b7dd8; --bad: #c9472f; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: #f5f7f9; margin: 0; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 26px; margin: 0; } h2 { font-size: 18px; margin: 0 0 10px; } h3 { font-size: 15px; margin: 22px 0 6px; }
p { margin: 4px 0 10px; } .soft, figcaption { color: var(--soft); font-size: 13px; overflow-wrap: anywhere; }
section { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 18px 20px; margin-top: 18px; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(440px, 1fr)); gap: 18px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin-top: 18px; }
.tile { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 12px 16px; }
.tile b { display: block; font-size: 26px; line-height: 1.2; }
.bar { display: grid; grid-template-columns: 190px 1fr 116px; gap: 10px; align-items: center; padding: 3px 0; }
.bar i { display: block; height: 16px; border-radius: 3px; background: var(--fill); min-width: 2px; }
.bar em { font-style: normal; text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.advice li { margin-bottom: 8px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; } .scroll { overflow-x: auto; }
th, td { padding: 4px 10px; text-align: right; border-bottom: 1px solid var(--line); } th { color: var(--soft);
font-weight: 500; font-size: 13px; } th:first-child, td:first-child { text-align: left; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 12px; }
figure { margin: 0; } figure img { width: 100%; border-radius: 6px; display: block; margin-bottom: 4px; }
figcaption { line-height: 1.35; } figcaption b { color: var(--ink); font-weight: 500; }
.key { display: inline-block; width: 11px; height: 11px; border-radius: 2px; margin: 0 5px 0 14px; }
"""


class Bar(NamedTuple):
    """One row of a bar chart; ``shown`` stands behind the bar."""

    label: str
    value: float
    shown: str


def page(title: str, subtitle: str, parts: Sequence[str]) -> str:
    """The whole document; ``parts`` are HTML already, made by the functions below."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>\n'
        f'<body><main><h1>{escape(title)}</h1><p class="soft">{escape(subtitle)}</p>\n'
        + "\n".join(parts)
        + "\n</main></body></html>\n"
    )


def section(heading: str, *parts: str, note: str = "") -> str:
    """A framed part of the page."""
    below = f'<p class="soft">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(heading)}</h2>{below}{''.join(parts)}</section>"


def pair(*sections: str) -> str:
    """Sections beside each other, where the window is wide enough."""
    return f'<div class="pair">{"".join(sections)}</div>'


def tiles(numbers: Mapping[str, str]) -> str:
    """Large numbers with what they are."""
    return (
        '<div class="tiles">'
        + "".join(f'<div class="tile"><b>{escape(n)}</b>{escape(what)}</div>' for what, n in numbers.items())
        + "</div>"
    )


def advice(lines: Sequence[tuple[str, str]]) -> str:
    """A numbered list: what is the matter, and what to do."""
    items = "".join(f"<li><b>{escape(what)}</b> {escape(todo)}</li>" for what, todo in lines)
    return f'<ol class="advice">{items}</ol>'


def bars(rows: Sequence[Bar], color: str = "var(--fill)") -> str:
    """A chart of horizontal bars, the longest as wide as there is room."""
    most = max((row.value for row in rows), default=0) or 1
    return "".join(
        f'<div class="bar"><span>{escape(row.label)}</span><span><i style="width:{100 * row.value / most:.1f}%;'
        f'background:{color}"></i></span><em>{escape(row.shown)}</em></div>'
        for row in rows
    )


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    head = "".join(f"<th>{escape(h)}</th>" for h in headings)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def matrix(counts: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> str:
    """A confusion matrix; a cell is the darker, the larger its share of its row."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    head = "<th></th>" + "".join(f"<th>{escape(c)}</th>" for c in columns)
    body = ""
    for i, name in enumerate(rows):
        cells = ""
        for j in range(len(columns)):
            rgb = "59,125,216" if i == j else "201,71,47"
            number = str(counts[i, j]) if counts[i, j] else ""
            cells += f'<td style="background:rgba({rgb},{0.75 * shares[i, j]:.2f})">{number}</td>'
        body += f"<tr><td>{escape(name)}</td>{cells}</tr>"
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def curves(series: Mapping[str, tuple[Sequence[float], Sequence[float]]], x: str, y: str) -> str:
    """Lines of (x, y) in [0, 1] by name, as a drawing of 440 x 300 px."""
    w, h, left, bottom = 440, 300, 44, 36
    lines, legend = "", ""
    for k, (name, (xs, ys)) in enumerate(series.items()):
        color = "rgb({},{},{})".format(*class_color(k))
        points = " ".join(
            f"{left + px * (w - left - 8):.1f},{(h - bottom) - py * (h - bottom - 8):.1f}"
            for px, py in zip(xs, ys, strict=True)
        )
        lines += f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>'
        legend += f'<span class="key" style="background:{color}"></span>{escape(name)}'
    ticks = ""
    for value in (0.0, 0.25, 0.5, 0.75, 1.0):
        px, py = left + value * (w - left - 8), (h - bottom) - value * (h - bottom - 8)
        ticks += f'<line x1="{left}" x2="{w - 8}" y1="{py}" y2="{py}" stroke="#e6ebf0"/>'
        ticks += f'<text x="{left - 6}" y="{py + 4}" text-anchor="end">{value:g}</text>'
        ticks += f'<text x="{px}" y="{h - bottom + 16}" text-anchor="middle">{value:g}</text>'
    names = f'<text x="{(w + left) / 2}" y="{h - 4}" text-anchor="middle">{escape(x)}</text>'
    names += f'<text x="12" y="{h / 2}" text-anchor="middle" transform="rotate(-90 12 {h / 2})">{escape(y)}</text>'
    svg = f'<svg viewBox="0 0 {w} {h}" width="100%" style="max-width:{w}px;font-size:11px">{ticks}{lines}{names}</svg>'
    return f"{svg}<p>{legend}</p>"


def legend(colors: Mapping[str, tuple[int, int, int]]) -> str:
    """What the colours in pictures mean."""
    return (
        '<p class="soft">'
        + "".join(
            f'<span class="key" style="background:rgb({r},{g},{b})"></span>{escape(what)}'
            for what, (r, g, b) in colors.items()
        )
        + "</p>"
    )


def pictures(images: Sequence[tuple[np.ndarray, str, str]]) -> str:
    """Pictures (uint8 RGB) in rows, each with what is to be seen and where it is."""
    return '<div class="pictures">' + "".join(_figure(*each) for each in images) + "</div>"


def _figure(image: np.ndarray, what: str, where: str) -> str:
    done, jpeg = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    assert done
    source = base64.b64encode(jpeg.tobytes()).decode()
    return (
        f'<figure><img src="data:image/jpeg;base64,{source}" alt=""><figcaption><b>{escape(what)}</b><br>'
        f"{escape(where)}</figcaption></figure>"
    )
