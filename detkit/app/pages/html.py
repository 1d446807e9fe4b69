"""Pieces of a report as one HTML file, that opens without a server, a network or a script.

How each looks stands in ``templates/``, which escape whatever they are given but pieces made here.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from detkit.pictures.draw import class_color

#: Pictures are small crops: no one sees more.
_JPEG_QUALITY = 82

_TEMPLATES = Environment(
    loader=PackageLoader(__package__ or "", "templates"), autoescape=True, undefined=StrictUndefined,
    trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
)  # fmt: skip


class Bar(NamedTuple):
    """One row of a bar chart; ``shown`` stands behind the bar."""

    label: str
    value: float
    shown: str


def render(template: str, **values: Any) -> str:
    """The whole document ``template`` with ``values``."""
    return _TEMPLATES.get_template(template).render(**values)


def _part(name: str, *values: Any) -> Markup:
    return getattr(_TEMPLATES.get_template("parts.html").module, name)(*values)


def page(title: str, subtitle: str, parts: Sequence[str]) -> str:
    """The whole document; ``parts`` are made by the functions below."""
    return render("report.html", title=title, subtitle=subtitle, parts=parts)


def section(heading: str, *parts: str, note: str = "") -> Markup:
    """A framed part of the page; text among ``parts`` is escaped."""
    return _part("section", heading, parts, note)


def pair(*sections: str) -> Markup:
    """Sections beside each other, where the window is wide enough."""
    return _part("pair", sections)


def paragraphs(*texts: str) -> Markup:
    """Running text."""
    return _part("paragraphs", texts)


def tiles(numbers: Mapping[str, str]) -> Markup:
    """Large numbers with what they are."""
    return _part("tiles", numbers)


def advice(lines: Sequence[tuple[str, str]]) -> Markup:
    """A numbered list: what is the matter, and what to do."""
    return _part("advice", lines)


def bars(rows: Sequence[Bar], color: str = "var(--fill)") -> Markup:
    """A chart of horizontal bars, the longest as wide as there is room."""
    return _part("bars", rows, max((row.value for row in rows), default=0) or 1, color)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    """A table whose first column is text and whose others are numbers."""
    return _part("table", headings, rows)


def matrix(counts: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> Markup:
    """A confusion matrix; a cell is the darker, the larger its share of its row."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    cells = [
        [(counts[i, j], "59,125,216" if i == j else "201,71,47", 0.75 * shares[i, j]) for j in range(len(columns))]
        for i in range(len(rows))
    ]
    return _part("matrix", rows, columns, cells)


def curves(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x: str,
    y: str,
    bands: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
) -> Markup:
    """Lines of (x, y) in [0, 1] by name, as a drawing of 440 x 300 px; the area from low to high of ``bands`` (low,
    high), at the x of the line of that name, has its colour."""
    w, h, left, bottom = 440, 300, 50, 36

    def place(px: float, py: float) -> tuple[float, float]:
        return left + px * (w - left - 8), (h - bottom) - py * (h - bottom - 8)

    def drawn(xs: Sequence[float], ys: Sequence[float]) -> str:
        return " ".join("{:.1f},{:.1f}".format(*place(px, py)) for px, py in zip(xs, ys, strict=True))

    lines = []
    for k, (name, (xs, ys)) in enumerate(series.items()):
        low, high = (bands or {}).get(name, ((), ()))
        area = drawn([*xs, *reversed(xs)], [*low, *reversed(high)]) if len(low) else ""
        lines.append((name, _rgb(class_color(k)), drawn(xs, ys), area))
    ticks = [(value, *place(value, value)) for value in (0.0, 0.25, 0.5, 0.75, 1.0)]
    return _part("curves", lines, ticks, x, y, w, h, left, bottom)


def legend(colors: Mapping[str, tuple[int, int, int]]) -> Markup:
    """What the colours in pictures mean."""
    return _part("legend", [(what, _rgb(color)) for what, color in colors.items()])


def pictures(images: Sequence[tuple[np.ndarray, str, str]]) -> Markup:
    """Pictures (uint8 RGB) in rows, each with what is to be seen and where it is."""
    return _part("pictures", [(_jpeg(image), what, where) for image, what, where in images])


def inline(content: bytes, kind: str) -> str:
    """The address of a picture that stands in the page itself; ``kind``: png or jpeg."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _jpeg(image: np.ndarray) -> str:
    done, jpeg = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    assert done
    return inline(jpeg.tobytes(), "jpeg")


def _rgb(color: tuple[int, int, int]) -> str:
    return "rgb({},{},{})".format(*color)
