"""A made-up data set with made-up detections, in the proportions of COCO: for timing and for comparing backends."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from detkit.evaluation.results import Results
from detkit.structures import Categories, GroundTruth

#: COCO val2017 has 36 781 objects in 5000 images, 1.25 % of them crowds.
OBJECTS_PER_IMAGE = 7.36
CROWD_SHARE = 0.0125


class SyntheticSet(NamedTuple):
    """``truths``: one record for each image; ``results``: the detections of all images, in blocks by image."""

    categories: Categories
    truths: list[GroundTruth]
    results: Results


def synthetic_set(
    *,
    num_images: int,
    num_categories: int,
    detections_per_image: int,
    objects_per_image: float = OBJECTS_PER_IMAGE,
    crowd_share: float = CROWD_SHARE,
    size: int = 640,
    seed: int = 0,
) -> SyntheticSet:
    """Draw a data set of square images of ``size`` px.

    Two detections of five are near an object and have its class; scores have three digits, so that many are equal.
    """
    rng = np.random.default_rng(seed)
    categories = Categories(tuple(f"class {k}" for k in range(num_categories)), tuple(range(1, num_categories + 1)))
    truths, parts = [], []
    next_id = 1
    for image_id in range(1, num_images + 1):
        truth = _truth(rng, image_id, next_id, rng.poisson(objects_per_image), num_categories, size, crowd_share)
        next_id += len(truth)
        truths.append(truth)
        parts.append(_detect(rng, truth, detections_per_image, num_categories, size))
    return SyntheticSet(categories, truths, Results.join(parts))


def _truth(
    rng: np.random.Generator,
    image_id: int,
    first_id: int,
    count: int,
    num_categories: int,
    size: int,
    crowd_share: float,
) -> GroundTruth:
    boxes = _boxes(rng, count, size)
    return GroundTruth(
        image_id=image_id,
        file=f"{image_id:012d}.jpg",
        size=(size, size),
        boxes=boxes,
        labels=rng.integers(0, num_categories, count),
        area=boxes[:, 2] * boxes[:, 3] * rng.uniform(0.4, 1.0, count),  # a segment fills part of its box
        crowd=rng.random(count) < crowd_share,
        annotation_ids=np.arange(first_id, first_id + count),
    )


def _detect(rng: np.random.Generator, truth: GroundTruth, count: int, num_categories: int, size: int) -> Results:
    boxes = _boxes(rng, count, size)
    labels = rng.integers(0, num_categories, count)
    if len(truth):
        near = rng.random(count) < 0.4
        which = rng.integers(0, len(truth), count)
        sides = truth.boxes[which, 2:]
        moved = truth.boxes[which] + 0.08 * np.tile(sides, 2) * rng.standard_normal((count, 4))
        moved[:, 2:] = np.maximum(moved[:, 2:], 0)
        boxes = np.where(near[:, None], moved, boxes)
        labels = np.where(near, truth.labels[which], labels)
    scores = np.sort(np.round(rng.random(count), 3).astype(np.float32))[::-1].astype(np.float64)
    return Results(np.full(count, truth.image_id), labels + 1, boxes, scores)


def _boxes(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
    """Boxes (count, 4) x y w h, sides between 8 px and the image's, evenly on a logarithmic scale."""
    sides = np.exp(rng.uniform(np.log(8), np.log(size), (count, 2)))
    return np.concatenate([rng.random((count, 2)) * (size - sides), sides], axis=1)
