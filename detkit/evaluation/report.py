"""Pictures of the detections beside the ground truth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from detkit.evaluation.results import Results
from detkit.pictures.draw import contact_sheet, draw_boxes, encode_png
from detkit.structures import Categories, GroundTruth
from detkit.utils.files import atomic_write

#: Longer side in px of each picture on a sheet.
CELL = 480


def comparison_sheet(
    images: Sequence[np.ndarray],
    truths: Sequence[GroundTruth],
    results: Results,
    categories: Categories,
    *,
    min_score: float = 0.5,
) -> np.ndarray:
    """One row for each image: its ground truth at the left, its detections at the right.

    Args:
        images: uint8 (H, W, 3) RGB, the original images.
        truths: the record of each of them; crowds are dashed.
        results: detections, of these images and perhaps of others.
        categories: the classes.
        min_score: detections with a smaller score are left out.

    Returns:
        uint8 (H', W', 3) RGB.

    Raises:
        ValueError: no image, not as many records as images, or detections of an unknown category.
    """
    if not images or len(images) != len(truths):
        raise ValueError(
            f"a sheet needs images and a record for each, not {len(images)} images and {len(truths)} records"
        )
    shown = results.select(results.scores >= min_score)
    pictures = []
    for image, truth in zip(images, truths, strict=True):
        pictures.append(_draw_truth(image, truth, categories))
        pictures.append(_draw_detections(image, shown.select(shown.image_ids == truth.image_id), categories))
    return contact_sheet(pictures, columns=2, cell=CELL)


def save_pictures(
    path: str | Path,
    images: Sequence[np.ndarray],
    truths: Sequence[GroundTruth],
    results: Results,
    categories: Categories,
    *,
    min_score: float = 0.5,
) -> None:
    """Write the :func:`comparison_sheet` of a few images to ``path``, a PNG file, whole or not at all."""
    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"{path}: the pictures are written as PNG, so the name must end in .png")
    sheet = comparison_sheet(images, truths, results, categories, min_score=min_score)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, encode_png(sheet))


def _draw_truth(image: np.ndarray, truth: GroundTruth, categories: Categories) -> np.ndarray:
    canvas, ratio = _fit(image)
    points = None if truth.landmarks is None else truth.landmarks.points * [ratio, ratio, 1]
    corners = _corners(truth.boxes) * ratio
    return draw_boxes(canvas, corners, truth.labels, categories.names, dashed=truth.crowd, landmarks=points)


def _draw_detections(image: np.ndarray, found: Results, categories: Categories) -> np.ndarray:
    label_of = {category_id: label for label, category_id in enumerate(categories.ids)}
    strange = set(found.category_ids.tolist()) - label_of.keys()
    if strange:
        raise ValueError(f"detections of category id {min(strange)}; known: {sorted(label_of)}")
    labels = [label_of[category_id] for category_id in found.category_ids.tolist()]
    canvas, ratio = _fit(image)
    points = None if found.landmarks is None else found.landmarks * ratio
    corners = _corners(found.boxes) * ratio
    return draw_boxes(canvas, corners, labels, categories.names, found.scores, landmarks=points)


def _fit(image: np.ndarray) -> tuple[np.ndarray, float]:
    """``image`` in the size that it has on the sheet, so that names are as legible on small images as on large ones."""
    h, w = image.shape[:2]
    ratio = CELL / max(h, w)
    size = max(1, round(w * ratio)), max(1, round(h * ratio))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if ratio < 1 else cv2.INTER_CUBIC), ratio


def _corners(boxes: np.ndarray) -> np.ndarray:
    """x y w h to x1 y1 x2 y2."""
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
