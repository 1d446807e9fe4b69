"""One image on its way through the transforms, and what of it needs no pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from detkit.data.datasets.table import clipped_corners, is_usable
from detkit.structures import Affine, GroundTruth, Landmarks


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Where the objects of an image lie, without the image.

    ``size`` (h, w) px; ``boxes`` (N, 4) float32 x1 y1 x2 y2 px of an image of that size; ``labels`` (N,) int64;
    ``ignore`` (N,) bool. ``affine`` maps the original image to it, None once a transform without inverse was applied.
    ``landmarks`` of the objects, float32 px of that image, where the data have any.
    """

    size: tuple[int, int]
    boxes: np.ndarray
    labels: np.ndarray
    ignore: np.ndarray
    affine: Affine | None
    landmarks: Landmarks | None = None

    @classmethod
    def from_truth(cls, truth: GroundTruth) -> Layout:
        """The boxes of ``truth``, clipped to its image; those without area inside it are left out."""
        corners, usable = trainable_boxes(truth)
        boxes = corners[usable].astype(np.float32)
        points = truth.landmarks
        points = None if points is None else points.select(usable).as_float32().inside(truth.size)
        return cls(truth.size, boxes, truth.labels[usable], truth.crowd[usable], Affine(), points)

    @classmethod
    def empty(cls, size: tuple[int, int]) -> Layout:
        """An image of ``size`` (h, w) px without objects."""
        nothing = np.zeros(0, dtype=np.int64)
        return cls(size, np.zeros((0, 4), np.float32), nothing, nothing > 0, Affine())

    def moved(self, size: tuple[int, int], affine: Affine) -> Layout:
        """The objects in an image of ``size`` (h, w) px, to which ``affine`` leads from this one."""
        boxes = affine.apply(torch.from_numpy(self.boxes)).numpy()
        points = None if self.landmarks is None else self.landmarks.moved(affine)
        there = None if self.affine is None else self.affine.then(affine)
        return replace(self, size=size, boxes=boxes, affine=there, landmarks=points)

    def select(self, rows: np.ndarray) -> Layout:
        """The objects that ``rows`` (a bool mask or integers) names."""
        points = None if self.landmarks is None else self.landmarks.select(rows)
        boxes, labels, ignore = self.boxes[rows], self.labels[rows], self.ignore[rows]
        return replace(self, boxes=boxes, labels=labels, ignore=ignore, landmarks=points)

    def clip(self, min_visibility: float, min_size: float, ignore_rest: bool = False) -> Layout:
        """Cut the boxes at the border, and leave out those of which too little remains, ignored ones alike.

        Landmarks beyond it become unlabelled.

        Args:
            min_visibility: least share of its area that must remain of a box.
            min_size: least width and height (px) that must remain.
            ignore_rest: what has less than ``min_visibility`` stays, to be ignored.
        """
        h, w = self.size
        boxes = self.boxes.clip(0, np.array([w, h, w, h], dtype=np.float32))
        sides = boxes[:, 2:] - boxes[:, :2]
        area = (self.boxes[:, 2:] - self.boxes[:, :2]).prod(axis=1)
        large = np.asarray((sides >= min_size).all(axis=1))
        visible = np.asarray(sides.prod(axis=1) >= min_visibility * area)
        points = None if self.landmarks is None else self.landmarks.inside(self.size)
        cut = replace(self, boxes=boxes, landmarks=points)
        if ignore_rest:
            return replace(cut, ignore=self.ignore | ~visible).select(large)
        return cut.select(large & visible)

    @classmethod
    def together(cls, layouts: Sequence[Layout]) -> Layout:
        """The objects of all ``layouts``, of one size; there is no way back to one original."""
        boxes, labels, ignore = (
            np.concatenate([getattr(layout, name) for layout in layouts]) for name in ("boxes", "labels", "ignore")
        )
        return cls(layouts[0].size, boxes, labels, ignore, None, Landmarks.join([each.landmarks for each in layouts]))


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """An image and its objects.

    ``image`` uint8 (H, W, 3) RGB; ``boxes`` (N, 4) float32 x1 y1 x2 y2 px of that image; ``labels`` (N,) int64;
    ``ignore`` (N,) bool. ``affine`` maps the original image to it, None once a transform without inverse was applied.
    ``landmarks`` of the objects, float32 px of that image, where the data have any.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    ignore: np.ndarray
    affine: Affine | None
    landmarks: Landmarks | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) px."""
        return self.image.shape[0], self.image.shape[1]

    @property
    def layout(self) -> Layout:
        """All but the pixels."""
        return Layout(self.size, self.boxes, self.labels, self.ignore, self.affine, self.landmarks)

    @classmethod
    def of(cls, image: np.ndarray, layout: Layout) -> Sample:
        """``image`` (H, W, 3) with the objects of ``layout``, which is of its size."""
        return cls(image, layout.boxes, layout.labels, layout.ignore, layout.affine, layout.landmarks)

    @classmethod
    def from_truth(cls, image: np.ndarray, truth: GroundTruth) -> Sample:
        """``image`` with the boxes of ``truth``, clipped to it; boxes without area inside it are left out."""
        return cls.of(image, Layout.from_truth(truth))

    def select(self, rows: np.ndarray) -> Sample:
        """The sample with the objects that ``rows`` (a bool mask or integers) names."""
        return Sample.of(self.image, self.layout.select(rows))


def trainable_boxes(truth: GroundTruth) -> tuple[np.ndarray, np.ndarray]:
    """The clipped x1 y1 x2 y2 boxes (N, 4) float64 of ``truth``, and (N,) bool: which have an area to train on."""
    corners = clipped_corners(truth.boxes, np.array(truth.size))
    return corners, is_usable(corners)
