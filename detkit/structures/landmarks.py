"""Named points of objects, such as the eyes of a face, as the data give them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from detkit.structures.affine import Affine

#: How a point is marked (COCO): nobody labelled it; it is hidden behind something; it is seen.
UNLABELLED, HIDDEN, VISIBLE = 0, 1, 2


@dataclass(frozen=True, slots=True, eq=False)
class Landmarks:
    """L points of each of N objects.

    ``points`` (N, L, 3) float: x, y px, in the frame of the boxes, and the mark, UNLABELLED, HIDDEN or VISIBLE; an
    unlabelled point lies at 0, 0. ``mirror`` (L,): which point of the object each one is in its mirror image.
    """

    points: np.ndarray
    mirror: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.points.ndim != 3 or self.points.shape[1:] != (len(self.mirror), 3):
            raise ValueError(f"points must be (N, {len(self.mirror)}, 3), not {self.points.shape}")

    def __len__(self) -> int:
        return len(self.points)

    @property
    def is_labelled(self) -> np.ndarray:
        """(N, L) bool."""
        return self.points[..., 2] != UNLABELLED

    def select(self, rows: np.ndarray | slice) -> Landmarks:
        """Those of the objects that ``rows`` (a bool mask, integers or a slice) names."""
        return replace(self, points=self.points[rows])

    def moved(self, affine: Affine) -> Landmarks:
        """The points in an image to which ``affine`` leads from theirs; in a mirror image left and right change names.

        What was the left eye is on the right there, where a right eye is.
        """
        points = self.points[:, list(self.mirror)] if affine.mirrors else self.points.copy()
        scale = np.array([affine.scale_x, affine.scale_y], points.dtype)
        shift = np.array([affine.shift_x, affine.shift_y], points.dtype)
        points[..., :2] = points[..., :2] * scale + shift
        return _blanked(replace(self, points=points), np.asarray(points[..., 2] == UNLABELLED))

    def inside(self, size: tuple[int, int]) -> Landmarks:
        """Those outside an image of ``size`` (h, w) px become unlabelled: it does not show them."""
        xy = self.points[..., :2]
        there = ((xy >= 0) & (xy <= np.array([size[1], size[0]]))).all(axis=-1)
        return _blanked(self, np.asarray(~there))

    def as_float32(self) -> Landmarks:
        """The same in float32."""
        return replace(self, points=self.points.astype(np.float32))

    @staticmethod
    def join(parts: Sequence[Landmarks | None]) -> Landmarks | None:
        """The objects of all ``parts``, one part after the other; None where one of them has none."""
        there = [part for part in parts if part is not None]
        if len(there) < len(parts) or not there:
            return None
        return replace(there[0], points=np.concatenate([part.points for part in there]))


def mirror_of(names: Sequence[str]) -> tuple[int, ...]:
    """(L,): for each of the points ``names`` the one that it is in a mirror image.

    A name with left in it changes with the one that has right in its place (left_eye and right_eye); all others stay.
    """
    place = {name: i for i, name in enumerate(names)}
    return tuple(place.get(_opposite(name), i) for i, name in enumerate(names))


def _opposite(name: str) -> str:
    for one, other in (("left", "right"), ("Left", "Right"), ("LEFT", "RIGHT")):
        if one in name:
            return name.replace(one, other)
        if other in name:
            return name.replace(other, one)
    return name


def _blanked(landmarks: Landmarks, where: np.ndarray) -> Landmarks:
    """``where`` (N, L) says which become unlabelled."""
    return replace(landmarks, points=np.where(where[..., None], landmarks.points.dtype.type(0), landmarks.points))
