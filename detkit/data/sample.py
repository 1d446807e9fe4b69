"""One image on its way through the transforms."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from detkit.data.datasets.table import clipped_corners, is_usable
from detkit.structures import Affine, GroundTruth


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """An image and its objects.

    ``image`` uint8 (H, W, 3) RGB; ``boxes`` (N, 4) float32 x1 y1 x2 y2 px of that image; ``labels`` (N,) int64;
    ``ignore`` (N,) bool. ``affine`` maps the original image to it, None once a transform without inverse was applied.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    ignore: np.ndarray
    affine: Affine | None

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) px."""
        return self.image.shape[0], self.image.shape[1]

    @classmethod
    def from_truth(cls, image: np.ndarray, truth: GroundTruth) -> Sample:
        """``image`` with the boxes of ``truth``, clipped to it; boxes without area inside it are left out."""
        corners, usable = trainable_boxes(truth)
        return cls(image, corners[usable].astype(np.float32), truth.labels[usable], truth.crowd[usable], Affine())

    def moved(self, image: np.ndarray, affine: Affine) -> Sample:
        """The sample in the frame of ``image``, to which ``affine`` leads from this one."""
        boxes = affine.apply(torch.from_numpy(self.boxes)).numpy()
        return replace(self, image=image, boxes=boxes, affine=None if self.affine is None else self.affine.then(affine))

    def select(self, rows: np.ndarray) -> Sample:
        """The sample with the objects that ``rows`` (a bool mask or integers) names."""
        return replace(self, boxes=self.boxes[rows], labels=self.labels[rows], ignore=self.ignore[rows])


def trainable_boxes(truth: GroundTruth) -> tuple[np.ndarray, np.ndarray]:
    """The clipped x1 y1 x2 y2 boxes (N, 4) float64 of ``truth``, and (N,) bool: which have an area to train on."""
    corners = clipped_corners(truth.boxes, np.array(truth.size))
    return corners, is_usable(corners)
