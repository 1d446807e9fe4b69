"""Annotations and detections of a data set as plain columns: what every scoring library is fed with.

Images and categories are numbered 1, 2, ... in ascending order of their original ids. Scores depend on that order
alone, and ids of 0, gaps and ids that no float64 holds then cannot trouble a library.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from detkit.evaluation.results import Results
from detkit.structures import Categories, GroundTruth
from detkit.utils.log import logger


class TruthColumns(NamedTuple):
    """G annotated objects of I images and K categories.

    ``image_ids`` (I,) and ``category_ids`` (K,): the original ids, ascending. ``images`` and ``categories`` (G,): which
    of them, counted from 1. ``boxes`` (G, 4) float64 x y w h px, ``areas`` (G,) px^2, ``crowd`` (G,) bool.
    ``ids`` (G,): 1, 2, ..., but 0 for the annotation whose own id is 0 (see :attr:`has_zero_id`).
    """

    image_ids: np.ndarray
    category_ids: np.ndarray
    images: np.ndarray
    categories: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    ids: np.ndarray

    @property
    def has_zero_id(self) -> bool:
        """Whether one annotation has id 0, which pycocotools' matching mistakes for "no match"."""
        return bool((self.ids == 0).any())

    def of_one_class(self) -> TruthColumns:
        """The same objects, all of one category, whose id is 1."""
        return self._replace(category_ids=np.array([1]), categories=np.ones_like(self.categories))


class DetectionColumns(NamedTuple):
    """D detections.

    ``images`` and ``categories`` (D,) counted from 1; ``boxes`` (D, 4) float64 x y w h px; ``scores`` (D,) float64.
    """

    images: np.ndarray
    categories: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray


def truth_columns(truths: Sequence[GroundTruth], categories: Categories) -> TruthColumns:
    """The columns of ``truths``, by ascending image id; inside an image the order of the record stays.

    Raises:
        ValueError: there is no image, two have the same id, a box or an area is not finite, or a label is no class; the
            message names file and annotation.
    """
    if not truths:
        raise ValueError("the data set has no images to evaluate on")
    truths = sorted(truths, key=lambda t: t.image_id)
    for one, other in pairwise(truths):
        if one.image_id == other.image_id:
            raise ValueError(f"image id {one.image_id} belongs to two images: {one.file} and {other.file}")
    for truth in truths:
        _check(truth, len(categories))
    category_ids = np.sort(np.asarray(categories.ids, np.int64))
    order = np.searchsorted(category_ids, np.asarray(categories.ids, np.int64))
    labels = np.concatenate([t.labels for t in truths]).astype(np.int64)
    return TruthColumns(
        image_ids=np.array([t.image_id for t in truths], np.int64),
        category_ids=category_ids,
        images=np.repeat(np.arange(1, len(truths) + 1), [len(t) for t in truths]),
        categories=order[labels] + 1,
        boxes=np.concatenate([t.boxes for t in truths]).astype(np.float64),
        areas=np.concatenate([t.area for t in truths]).astype(np.float64),
        crowd=np.concatenate([t.crowd for t in truths]).astype(bool),
        ids=_number(truths),
    )


def detection_columns(results: Results, truth: TruthColumns) -> DetectionColumns:
    """The columns of ``results``.

    Raises:
        ValueError: an image or category id that the ground truth does not have.
    """
    return DetectionColumns(
        images=_rank(results.image_ids, truth.image_ids, "image"),
        categories=_rank(results.category_ids, truth.category_ids, "category"),
        boxes=results.boxes,
        scores=results.scores,
    )


def _rank(ids: np.ndarray, known: np.ndarray, what: str) -> np.ndarray:
    """Where each of ``ids`` (D,) stands in ``known``, ascending, counted from 1."""
    place = np.minimum(np.searchsorted(known, ids), len(known) - 1)
    strange = ids[known[place] != ids]
    if len(strange):
        raise ValueError(f"detections name {what} id {strange[0]}, which the ground truth does not have")
    return place + 1


def _number(truths: Sequence[GroundTruth]) -> np.ndarray:
    own = np.concatenate([t.annotation_ids for t in truths])
    fresh = np.arange(1, len(own) + 1)
    if len(np.unique(own)) < len(own):
        logger.warning("annotation ids occur more than once: each annotation is scored as one of its own")
        return fresh
    if (own == 0).any():
        file = next(t.file for t in truths if (t.annotation_ids == 0).any())
        logger.warning(
            "%s: an annotation has id 0, which pycocotools takes for 'no match', so that this object counts as missed "
            "whatever is detected; number the annotations from 1",
            file,
        )
    return np.where(own == 0, 0, fresh)


def _check(truth: GroundTruth, num_classes: int) -> None:
    finite = np.isfinite(truth.boxes).all(axis=1) & np.isfinite(truth.area)
    known = (truth.labels >= 0) & (truth.labels < num_classes)
    for good, what in ((finite, "a box or area that is not finite"), (known, f"a label not in 0..{num_classes - 1}")):
        if not good.all():
            first = int(np.flatnonzero(~good)[0])
            raise ValueError(
                f"{truth.file}: annotation {truth.annotation_ids[first]} has {what}: "
                f"box {truth.boxes[first].tolist()}, area {truth.area[first]}, label {truth.labels[first]}"
            )
