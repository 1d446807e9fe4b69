"""One image of a data set with its annotations, exactly as its files give them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detkit.structures.landmarks import Landmarks


@dataclass(frozen=True, slots=True)
class GroundTruth:
    """The record of one image: datasets make it, the loader turns it into a Target, the evaluator scores against it.

    This is the one place inside detkit where boxes are in the file's form, so that the evaluator sees the very numbers
    of the annotation file. ``boxes`` (N, 4) float64 x y w h px of the original image; ``labels`` (N,) int64 in [0, K);
    ``area`` (N,) float64 px^2 (of the segment where the file gives it); ``crowd`` (N,) bool: crowd or difficult;
    ``annotation_ids`` (N,) int64. ``file`` is the path of the image, ``size`` its (h, w) as the annotations count them.
    ``landmarks`` of the N objects, float64 px of the original image, where the file has any.
    """

    image_id: int
    file: str
    size: tuple[int, int]
    boxes: np.ndarray
    labels: np.ndarray
    area: np.ndarray
    crowd: np.ndarray
    annotation_ids: np.ndarray
    landmarks: Landmarks | None = None

    def __post_init__(self) -> None:
        n = len(self.boxes)
        if self.boxes.shape != (n, 4):
            raise ValueError(f"{self.file}: boxes must be (N, 4), not {self.boxes.shape}")
        for name in ("labels", "area", "crowd", "annotation_ids"):
            if getattr(self, name).shape != (n,):
                raise ValueError(f"{self.file}: {n} boxes but {name} is {getattr(self, name).shape}")
        if self.landmarks is not None and len(self.landmarks) != n:
            raise ValueError(f"{self.file}: {n} boxes but landmarks of {len(self.landmarks)} objects")

    def __len__(self) -> int:
        return len(self.boxes)
