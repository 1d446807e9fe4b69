"""Pictures of boxes, with numpy and OpenCV alone."""

from __future__ import annotations

import colorsys
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

Color = tuple[int, int, int]

_FONT = cv2.FONT_HERSHEY_SIMPLEX
#: Height in px of a capital letter of that font at scale 1.
_CAPITAL_HEIGHT = 21.0

#: A box is large, so that its name may stand inside it, where the name is at most this share of its area and height.
_SMALL_SHARE = 0.25

#: What the next best place for a name costs, and to hide another name; 1 is to hide another box wholly.
_SECOND_CHOICE, _OTHER_NAME = 0.1, 3.0

#: The colour of the first landmark, so that dots do not have the colour of the first class, whose box is round them.
_FIRST_DOT = 2

#: What PNG files of detkit's say of themselves, as matplotlib takes it.
PNG_METADATA = {"Software": "detkit"}
#: Bytes of a PNG before anything that may vary: the signature and the header.
_PNG_START = 33


def class_color(label: int) -> Color:
    """The RGB colour of class ``label``: hues a golden angle apart, so that neighbouring labels differ clearly."""
    hue = (0.02 + label * 0.618034) % 1.0
    value = (1.0, 0.8)[label // 5 % 2]
    r, g, b = colorsys.hsv_to_rgb(hue, 0.85, value)
    return round(255 * r), round(255 * g), round(255 * b)


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: Sequence[int] | np.ndarray,
    names: Sequence[str],
    scores: Sequence[float] | np.ndarray | None = None,
    *,
    title: str | None = None,
    dashed: Sequence[bool] | np.ndarray | None = None,
    min_side: int = 0,
    bold: float = 1.0,
    landmarks: np.ndarray | None = None,
) -> np.ndarray:
    """A copy of ``image`` with outlined boxes and their names; lines and letters follow the size of the image.

    Args:
        image: uint8 (H, W, 3) RGB.
        boxes: (N, 4) x1 y1 x2 y2 px; they may reach over the border.
        labels: (N,) in [0, K).
        names: the K class names; an empty one is not written.
        scores: (N,) in [0, 1], written behind the names.
        title: written on a strip above the image.
        dashed: (N,) whether to draw a dashed outline (crowd).
        min_side: a smaller image is enlarged first, until its shorter side has so many px: names need room.
        bold: times the usual thickness of lines and size of letters, for a picture that will be shown small.
        landmarks: (N, L, 2) x y px, or (N, L, 3) with marks, of which 0 (not labelled) is left out and 1 (hidden) drawn
            as a ring; dots of a colour for each of the L points.

    Returns:
        uint8 (H', W', 3) RGB; of the size of ``image`` without ``title`` and ``min_side``. The largest boxes are drawn
        first, so that small ones stay visible. A name stands beside its box, inside only where the box is large.
    """
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    points = _marked(landmarks)
    canvas = np.array(image, order="C")
    if min(image.shape[:2]) < min_side:
        ratio = min_side / min(image.shape[:2])
        canvas = cv2.resize(canvas, None, fx=ratio, fy=ratio, interpolation=cv2.INTER_CUBIC)
        boxes = boxes * ratio
        points = points * [ratio, ratio, 1]
    side = min(canvas.shape[:2])
    thickness = max(1, round(bold * side / 300))
    letters = bold * float(np.clip(side / 45, 8, 24))
    order = np.argsort(-((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])), kind="stable")
    for i in order:
        _outline(canvas, boxes[i], class_color(int(labels[i])), thickness, dashed is not None and bool(dashed[i]))
    for of_object in points[order] if len(points) else points:
        _dots(canvas, of_object, thickness)
    corners = np.array([_corners(canvas, box) for box in boxes], dtype=np.int64).reshape(-1, 4)
    corners[:, 2:] = np.maximum(corners[:, 2:], corners[:, :2]) + 1  # half-open, and of one pixel at least
    tags: list[np.ndarray] = []
    for i in order:  # names over all outlines
        text = names[int(labels[i])], "" if scores is None else f" {scores[i]:.2f}"
        if any(text):
            tags.append(_tag(canvas, corners, i, tags, text, class_color(int(labels[i])), letters))
    return canvas if title is None else np.concatenate([_strip(title, canvas.shape[1], letters), canvas])


def contact_sheet(images: Sequence[np.ndarray], columns: int = 4, cell: int = 320, gap: int = 6) -> np.ndarray:
    """``images`` (uint8 RGB of any sizes) side by side, the longer side of each ``cell`` px: uint8 (H, W, 3) RGB.

    A row is as high as the highest image in it and a column as wide as the widest: those of one shape leave no bands.

    Raises:
        ValueError: there are no images, or ``columns`` or ``cell`` is not positive.
    """
    if not images or columns < 1 or cell < 1:
        raise ValueError(f"a contact sheet needs images, columns and a cell size, not {len(images)}, {columns}, {cell}")
    columns = min(columns, len(images))
    small = [_fit(image, cell) for image in images]
    heights = [max(each.shape[0] for each in small[i : i + columns]) for i in range(0, len(small), columns)]
    widths = [max(each.shape[1] for each in small[k::columns]) for k in range(columns)]
    sheet = np.full((sum(heights) + gap * (len(heights) + 1), sum(widths) + gap * (columns + 1), 3), 32, dtype=np.uint8)
    for i, image in enumerate(small):
        (h, w), (row, column) = image.shape[:2], divmod(i, columns)
        top = gap + sum(heights[:row]) + gap * row + (heights[row] - h) // 2
        left = gap + sum(widths[:column]) + gap * column + (widths[column] - w) // 2
        sheet[top : top + h, left : left + w] = image
    return sheet


def _fit(image: np.ndarray, side: int) -> np.ndarray:
    """``image`` with its longer side ``side`` px long."""
    h, w = image.shape[:2]
    ratio = side / max(h, w)
    size = max(1, round(w * ratio)), max(1, round(h * ratio))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if ratio < 1 else cv2.INTER_CUBIC)


def encode_png(picture: np.ndarray) -> bytes:
    """``picture``, uint8 (H, W, 3) RGB, as a PNG file that :func:`is_own_png` knows."""
    done, content = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    assert done, "OpenCV encodes any uint8 picture as PNG"
    png = content.tobytes()
    return png[:_PNG_START] + _png_mark() + png[_PNG_START:]


def is_own_png(path: str | Path) -> bool:
    """Whether the file at ``path`` is a PNG that detkit wrote: a result, which is not to be taken for a photograph."""
    mark = _png_mark()
    try:
        with open(path, "rb") as file:
            return file.read(_PNG_START + len(mark)).endswith(mark)
    except OSError:  # whoever reads the picture will say so
        return False


def _png_mark() -> bytes:
    """:data:`PNG_METADATA` as a text chunk of PNG (ISO/IEC 15948, 11.3.4.3)."""
    ((key, value),) = PNG_METADATA.items()
    text = b"tEXt" + f"{key}\0{value}".encode()
    return struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))


def _outline(canvas: np.ndarray, box: np.ndarray, color: Color, thickness: int, dashed: bool) -> None:
    x1, y1, x2, y2 = _corners(canvas, box)
    if not dashed:
        cv2.rectangle(canvas, (x1, y1), (x2, y2), color, thickness)
        return
    for start, end in (((x1, y1), (x2, y1)), ((x2, y1), (x2, y2)), ((x2, y2), (x1, y2)), ((x1, y2), (x1, y1))):
        length = abs(end[0] - start[0]) + abs(end[1] - start[1])
        marks = np.linspace(0, 1, 2 * max(1, length // (8 * thickness)) + 1)
        points = np.round(np.array(start) + marks[:, None] * (np.array(end) - start)).astype(int).tolist()
        for a, b in zip(points[::2], points[1::2], strict=False):
            cv2.line(canvas, a, b, color, thickness)


def _marked(landmarks: np.ndarray | None) -> np.ndarray:
    """(N, L, 3) float64 x, y, mark; every point that has no mark is seen."""
    if landmarks is None:
        return np.zeros((0, 0, 3))
    points = np.asarray(landmarks, dtype=np.float64)
    return points if points.shape[2] == 3 else np.concatenate([points, np.full_like(points[..., :1], 2)], axis=2)


def _dots(canvas: np.ndarray, points: np.ndarray, thickness: int) -> None:
    """A dot with a dark rim for each of ``points`` (L, 3)."""
    radius = thickness + 1
    for number, (x, y, mark) in enumerate(points):
        if mark == 0 or not np.isfinite([x, y]).all():
            continue
        place = int(np.clip(x, -1e6, 1e6)), int(np.clip(y, -1e6, 1e6))
        cv2.circle(canvas, place, radius + 1, (0, 0, 0), -1 if mark == 2 else 1, cv2.LINE_AA)
        cv2.circle(canvas, place, radius, class_color(number + _FIRST_DOT), -1 if mark == 2 else 1, cv2.LINE_AA)


def _tag(
    canvas: np.ndarray,
    corners: np.ndarray,
    i: int,
    tags: Sequence[np.ndarray],
    name_and_score: tuple[str, str],
    color: Color,
    letters: float,
) -> np.ndarray:
    """Both on a filled tag by box ``i`` of ``corners`` (N, 4); where it is: (4,) px, half-open."""
    size, weight = letters / _CAPITAL_HEIGHT, max(1, round(letters / 12))
    pad = max(1, round(letters / 5))
    text = _shortened(*name_and_score, canvas.shape[1] - 2 * pad - 1, size, weight)
    (w, h), below = cv2.getTextSize(text, _FONT, size, weight)
    place = _place(canvas.shape[:2], corners, i, tags, (w + 2 * pad + 1, h + below // 2 + 2 * pad + 1))
    x1, y1, x2, y2 = place.tolist()
    cv2.rectangle(canvas, (x1, y1), (x2 - 1, y2 - 1), color, -1)
    bright = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 140
    ink = (0, 0, 0) if bright else (255, 255, 255)
    cv2.putText(canvas, text, (x1 + pad, y1 + pad + h), _FONT, size, ink, weight, cv2.LINE_AA)
    return place


def _shortened(name: str, score: str, width: int, size: float, weight: int) -> str:
    """As much of ``name`` as fits into ``width`` px before ``score``, and dots for the rest."""
    for kept in range(len(name), 0, -1):
        shown = (name if kept == len(name) else f"{name[:kept].rstrip()}..") + score
        if cv2.getTextSize(shown, _FONT, size, weight)[0][0] <= width:
            return shown
    return score.strip() or name[:1]


def _place(
    size: tuple[int, int], corners: np.ndarray, i: int, tags: Sequence[np.ndarray], tag: tuple[int, int]
) -> np.ndarray:
    """Where a tag of so many px (width, height) hides least: (4,) px, inside a canvas of ``size`` (height, width).

    Its own box counts most, unless that is large; then what it would hide of other ``tags`` and boxes.
    """
    own, others = corners[i], np.delete(corners, i, axis=0)
    places = _places_round(own, tag)
    places = np.clip(places, 0, np.maximum(0, [size[1] - tag[0], size[0] - tag[1]]))
    places = np.concatenate([places, places + tag], axis=1)
    cost = _SECOND_CHOICE * np.arange(len(places), dtype=np.float64)
    if not _is_large(own, tag):
        hidden = _hidden(places, own[None])
        cost += 1000 * hidden + 100 * (hidden > 0)
    if len(others):
        cost += _hidden(places, others)
    if tags:
        cost += _OTHER_NAME * _hidden(places, np.stack(tags))
    return places[cost.argmin()]


def _places_round(box: np.ndarray, tag: tuple[int, int]) -> np.ndarray:
    """(7, 2): x and y of a tag's upper left corner by ``box``, the best first."""
    (x1, y1, x2, y2), (w, h) = box, tag
    above, below = y1 - h, y2
    return np.array([[x1, above], [x1, y1], [x1, below], [x2, y1], [x1 - w, y1], [x2 - w, above], [x2 - w, below]])


def _is_large(box: np.ndarray, tag: tuple[int, int]) -> bool:
    w, h = box[2:] - box[:2]
    return tag[0] <= w and tag[1] <= _SMALL_SHARE * h


def _hidden(places: np.ndarray, behind: np.ndarray) -> np.ndarray:
    """(P,): which shares of ``behind`` (N, 4) a tag at each of ``places`` (P, 4) would hide, summed."""
    low = np.maximum(places[:, None, :2], behind[:, :2])
    high = np.minimum(places[:, None, 2:], behind[:, 2:])
    area = (behind[:, 2:] - behind[:, :2]).prod(axis=1)
    return ((high - low).clip(0).prod(axis=2) / area).sum(axis=1)


def _strip(title: str, width: int, letters: float) -> np.ndarray:
    """``title`` on a dark strip ``width`` px wide, the letters smaller than asked where it would not fit."""
    size, pad = letters / _CAPITAL_HEIGHT, round(letters / 2)
    (w, _), _ = cv2.getTextSize(title, _FONT, size, 1)
    size *= min(1.0, max(1, width - 2 * pad) / max(w, 1))
    strip = np.full((round(letters) + 2 * pad, width, 3), 32, dtype=np.uint8)
    cv2.putText(strip, title, (pad, round(letters) + pad), _FONT, size, (255, 255, 255), 1, cv2.LINE_AA)
    return strip


def _corners(canvas: np.ndarray, box: np.ndarray) -> tuple[int, int, int, int]:
    """First and last pixel of ``box`` inside ``canvas``: the half-open box ends before x2."""
    h, w = canvas.shape[:2]
    x1, y1, x2, y2 = np.nan_to_num(box)
    x1, x2 = np.clip([round(x1), round(x2) - 1], 0, w - 1)
    y1, y2 = np.clip([round(y1), round(y2) - 1], 0, h - 1)
    return int(x1), int(y1), int(x2), int(y2)
