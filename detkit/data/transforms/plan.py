"""Where a transform puts an image, known before a pixel is read; and what then becomes of the pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from detkit.data.sample import Layout
from detkit.structures import Affine

#: Grey where no image lies, the field's value: near ImageNet's mean (124, 116, 104), and so near 0 in the detector once
#: it has normalised, as its padding is.
FILL = 114


class Limits(NamedTuple):
    """A box cut at the border is left out where less than ``min_visibility`` of its area or ``min_size`` px remains.

    With ``ignore_rest`` one of which less than ``min_visibility`` remains is to be ignored instead.
    """

    min_visibility: float
    min_size: float
    ignore_rest: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """An image is mirrored, resized, and laid into a frame: what all that moves boxes amounts to.

    Args:
        before: (h, w) px of the image.
        size: (h, w) px of the frame.
        placed: (h, w) px to which the image is resized.
        corner: (top, left) px of the frame where it begins; negative beyond its border.
        mirrored: whether left and right are exchanged first.
        limits: what is left out where it is cut at the border; None cuts nothing.
    """

    before: tuple[int, int]
    size: tuple[int, int]
    placed: tuple[int, int]
    corner: tuple[int, int] = (0, 0)
    mirrored: bool = False
    limits: Limits | None = None

    @classmethod
    def resized(cls, before: tuple[int, int], size: tuple[int, int]) -> Plan:
        """An image of ``before`` (h, w) px that fills ``size`` (h, w) px; the same plan for none where they agree."""
        return cls(before, size, size)

    @property
    def fills(self) -> bool:
        """Whether the image covers its frame exactly."""
        return self.placed == self.size and self.corner == (0, 0)

    @property
    def is_idle(self) -> bool:
        """Whether nothing happens to image and boxes."""
        return self.fills and self.placed == self.before and not self.mirrored and self.limits is None

    @property
    def affine(self) -> Affine:
        """The map from the image to the frame, px."""
        affine = Affine()
        for move in self._moves():
            affine = affine.then(move)
        return affine

    def move(self, layout: Layout) -> Layout:
        """The objects of ``layout`` in the frame."""
        for affine in self._moves():
            layout = layout.moved(self.size, affine)
        return layout if self.limits is None else layout.clip(*self.limits)

    def _moves(self) -> Iterator[Affine]:
        h, w = self.before
        if self.mirrored:
            yield Affine(scale_x=-1.0, shift_x=float(w))
        if not self.fills or self.placed != self.before:
            top, left = self.corner
            yield Affine(self.placed[1] / w, self.placed[0] / h, float(left), float(top))


def render(image: np.ndarray, plan: Plan) -> np.ndarray:
    """``image`` uint8 (h, w, 3) as ``plan`` lays it into its frame, grey where it does not reach."""
    if not plan.fills:
        canvas = blank(*plan.size)
        paint(canvas, image, plan)
        return canvas
    return resize_image(cv2.flip(image, 1) if plan.mirrored else image, *plan.size)


def blank(h: int, w: int) -> np.ndarray:
    """A grey canvas, uint8 (h, w, 3)."""
    return np.full((h, w, 3), FILL, dtype=np.uint8)


def paint(canvas: np.ndarray, image: np.ndarray, plan: Plan) -> None:
    """Lay ``image`` onto ``canvas`` (changed in place) as ``plan`` says, of whose frame it has the size.

    Since all places are whole pixels, boxes and pixels move by the same affine to the last bit.
    """
    (h, w), (top, left) = plan.placed, plan.corner
    rows = slice(max(top, 0), min(top + h, canvas.shape[0]))
    columns = slice(max(left, 0), min(left + w, canvas.shape[1]))
    if rows.start < rows.stop and columns.start < columns.stop:
        image = resize_image(cv2.flip(image, 1) if plan.mirrored else image, h, w)
        canvas[rows, columns] = image[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]


def resize_image(image: np.ndarray, h: int, w: int) -> np.ndarray:
    """``image`` (H, W, 3) at ``h`` x ``w`` px."""
    old_h, old_w = image.shape[:2]
    if (h, w) == (old_h, old_w):
        return image
    # Bilinear reads two pixels a side: below half the size it would skip some. Averaging over areas costs 8 times more.
    method = cv2.INTER_AREA if max(old_h / h, old_w / w) > 2 else cv2.INTER_LINEAR
    return cv2.resize(image, (w, h), interpolation=method)


def scaled(side: int, scale: float) -> int:
    """``scale`` times ``side`` in whole px, at least one."""
    return max(1, round(side * scale))


def fitted(size: tuple[int, int], longer: int) -> Plan:
    """An image of ``size`` (h, w) px with a longer side of ``longer`` px; the aspect is kept."""
    h, w = size
    scale = longer / max(h, w)
    return Plan.resized(size, (scaled(h, scale), scaled(w, scale)))


def check_limits(min_visibility: float, min_size: float) -> Limits:
    """The limits that these are.

    Raises:
        ValueError: one is out of range.
    """
    if not 0 <= min_visibility <= 1:
        raise ValueError(f"min_visibility must be in [0, 1], not {min_visibility}")
    if min_size <= 0:
        raise ValueError(f"min_size must be positive, not {min_size}")
    return Limits(min_visibility, min_size)


def check_scale(scale: tuple[float, float]) -> None:
    """Refuse a range of scales that is none, or that would make pictures of gigabytes.

    Raises:
        ValueError: as it says.
    """
    low, high = scale
    if not 0.1 <= low <= high <= 10:
        raise ValueError(f"scale must be a range within [0.1, 10], not {list(scale)}")
