"""Pictures of single objects for a report: crops of the images with boxes drawn in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from detkit.app.pages.html import legend, pictures
from detkit.data.datasets.base import DetectionDataset
from detkit.pictures.draw import class_color, draw_boxes

#: Roles of boxes in pictures; their colours are those of classes 2, 0 and 1.
OBJECT, DETECTION, CANDIDATE = 2, 0, 1

#: Pictures are shown at about half this size (px), so lines and letters are drawn twice as large.
_PICTURE_SIDE, _BOLD = 320, 2.0

#: Least side of a crop: below that no one knows what is looked at.
_LEAST_CROP = 48

Corners = tuple[float, float, float, float]


class Shot(NamedTuple):
    """A picture to take.

    ``row``: which image of the data set. ``boxes``: px of the original image, with role and tag. ``what``: there is to
    see. ``where``: file and ids. ``rank``: how much it is worth seeing. ``frame``: boxes that the crop is around; none
    for those that are drawn.
    """

    row: int
    boxes: Sequence[tuple[Corners, int, str]]
    what: str
    where: str
    rank: float
    frame: Sequence[Corners] = ()


def album(shots: Sequence[Shot], dataset: DetectionDataset, roles: dict[str, int]) -> str:
    """HTML: ``shots`` in rows, above them what the colours in them mean, by ``roles`` (words -> role)."""
    drawn = {role for shot in shots for _, role, _ in shot.boxes}
    colors = {words: class_color(role) for words, role in roles.items() if role in drawn}
    return legend(colors) + pictures([(take(shot, dataset), shot.what, shot.where) for shot in shots])


def best_shots(shots: Sequence[Shot], count: int) -> list[Shot]:
    """The ``count`` most worth seeing, those of images that are shown already after all others."""
    ranked = sorted(shots, key=lambda shot: -shot.rank)
    first: dict[int, Shot] = {}
    for shot in ranked:
        first.setdefault(shot.row, shot)
    chosen = list(first.values())
    return (chosen + [s for s in ranked if s is not first[s.row]])[:count]


def typical_shots(shots: Sequence[Shot], count: int) -> list[Shot]:
    """``count`` from the most to the least worth seeing, at even distances."""
    ranked = sorted(shots, key=lambda shot: -shot.rank)
    places = np.linspace(0, len(ranked) - 1, min(count, len(ranked))).round().astype(int)
    return [ranked[i] for i in places]


def take(shot: Shot, dataset: DetectionDataset) -> np.ndarray:
    """A square crop around the boxes of ``shot`` with as much again around them, drawn; uint8 RGB."""
    image = dataset.read(shot.row)
    h, w = image.shape[:2]
    boxes = np.array([box for box, _, _ in shot.boxes]).reshape(-1, 4)
    around = np.array(shot.frame) if shot.frame else boxes
    low, high = around[:, :2].min(axis=0), around[:, 2:].max(axis=0)
    side = float(np.clip((high - low).max() * 2, _LEAST_CROP, max(h, w)))
    x, y = ((low + high) / 2 - side / 2).round().astype(int)
    x, y = int(np.clip(x, 0, max(w - side, 0))), int(np.clip(y, 0, max(h - side, 0)))
    crop = image[y : y + round(side), x : x + round(side)]
    ratio = _PICTURE_SIDE / max(crop.shape[:2])
    crop = cv2.resize(crop, None, fx=ratio, fy=ratio, interpolation=cv2.INTER_AREA if ratio < 1 else cv2.INTER_CUBIC)
    shifted = (boxes - [x, y, x, y]) * ratio
    for box, (_, role, tag) in zip(shifted, shot.boxes, strict=True):
        crop = draw_boxes(crop, box[None], [role], [tag] * (role + 1), bold=_BOLD)
    return crop


def corners(xywh: np.ndarray) -> Corners:
    """x1 y1 x2 y2 of an x y w h box."""
    x, y, w, h = xywh.tolist()
    return x, y, x + w, y + h


def place_of(file: str, image_id: int, annotation_id: int | None) -> str:
    """Where an object is, for a reader."""
    annotation = "" if annotation_id is None else f", annotation {annotation_id}"
    return f"{Path(file).name}, id {image_id}{annotation}"
