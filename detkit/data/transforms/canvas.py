"""Images of other sizes painted onto a canvas, and what becomes of boxes at its border."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from detkit.data.sample import Sample
from detkit.data.transforms.resize import resize_image
from detkit.structures import Affine

#: Grey where no image lies, the field's value: near ImageNet's mean (124, 116, 104), and so near 0 in the detector once
#: it has normalised, as its padding is.
FILL = 114


def blank(h: int, w: int) -> np.ndarray:
    """A grey canvas, uint8 (h, w, 3)."""
    return np.full((h, w, 3), FILL, dtype=np.uint8)


def paint(canvas: np.ndarray, sample: Sample, h: int, w: int, top: int, left: int) -> Sample:
    """Resize ``sample`` to ``h`` x ``w`` px and paint it onto ``canvas`` (changed in place) at ``top`` and ``left``.

    It may reach over the border, by negative ``top`` and ``left`` too. Since all are whole pixels, boxes and pixels
    move by the same affine to the last bit.

    Returns:
        The sample in the frame of the canvas, its boxes not yet clipped.
    """
    rows = slice(max(top, 0), min(top + h, canvas.shape[0]))
    columns = slice(max(left, 0), min(left + w, canvas.shape[1]))
    if rows.start < rows.stop and columns.start < columns.stop:
        image = resize_image(sample.image, h, w)
        canvas[rows, columns] = image[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    old_h, old_w = sample.size
    return sample.moved(canvas, Affine(w / old_w, h / old_h, float(left), float(top)))


def clip(sample: Sample, min_visibility: float, min_size: float) -> Sample:
    """Cut the boxes at the border of the image, and leave out those of which too little remains, ignored ones alike.

    Args:
        sample: its boxes may reach over the border.
        min_visibility: least share of its area that must remain of a box.
        min_size: least width and height (px) that must remain.
    """
    h, w = sample.size
    boxes = sample.boxes.clip(0, np.array([w, h, w, h], dtype=np.float32))
    sides = boxes[:, 2:] - boxes[:, :2]
    area = (sample.boxes[:, 2:] - sample.boxes[:, :2]).prod(axis=1)
    kept = (sides >= min_size).all(axis=1) & (sides.prod(axis=1) >= min_visibility * area)
    return replace(sample, boxes=boxes).select(kept)


def check_limits(min_visibility: float, min_size: float) -> None:
    """Refuse limits of :func:`clip` that are out of range.

    Raises:
        ValueError: as it says.
    """
    if not 0 <= min_visibility <= 1:
        raise ValueError(f"min_visibility must be in [0, 1], not {min_visibility}")
    if min_size <= 0:
        raise ValueError(f"min_size must be positive, not {min_size}")


def check_scale(scale: tuple[float, float]) -> None:
    """Refuse a range of scales that is none, or that would make pictures of gigabytes.

    Raises:
        ValueError: as it says.
    """
    low, high = scale
    if not 0.1 <= low <= high <= 10:
        raise ValueError(f"scale must be a range within [0.1, 10], not {list(scale)}")
