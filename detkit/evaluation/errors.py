"""What kind of mistake each detection is, and what each kind costs (TIDE: Bolya et al. ECCV 2020, sections 3.1, 3.2).

A detection is right when it overlaps an object of its class, which no better detection has taken, by an IoU of at least
t_f = 0.5. Every other one is an error of one kind, the first that fits:

- Loc, badly placed: its greatest IoU with an object of its class is in [t_b, t_f], t_b = 0.1;
- Cls, wrong class: its greatest IoU with an object of another class is at least t_f;
- Dupe, duplicate: it overlaps an object of its class by t_f or more, and a better detection has taken that object;
- Bkg, background: it overlaps no object by more than t_b;
- Both: wrong class and badly placed.

An object that was not found is missed (Miss), unless a Cls or Loc error is about it. What a kind costs is how much AP50
rises when an oracle corrects all errors of that kind (their table 1).

The numbers are those of the authors' tidecv 1.0.1, but for COCO's habits, so that the AP50 is the evaluator's: classes
without an object do not count, and a detection inside a crowd region is no error.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import torch

from detkit.evaluation.results import Results
from detkit.evaluation.summary import RECALL_THRESHOLDS
from detkit.structures import Categories, GroundTruth
from detkit.structures.boxes import pairwise_cover, pairwise_iou, xywh_to_xyxy

#: t_f and t_b of the paper.
POSITIVE_IOU = 0.5
BACKGROUND_IOU = 0.1


class ErrorKind(StrEnum):
    """TIDE's main error types, under the names of its tables and in their order."""

    CLASS = "Cls"
    LOCATION = "Loc"
    BOTH = "Both"
    DUPLICATE = "Dupe"
    BACKGROUND = "Bkg"
    MISSED = "Miss"


@dataclass(frozen=True, slots=True)
class ImageErrors:
    """D detections of one image against its G annotations.

    ``boxes`` (D, 4) float64 x1 y1 x2 y2 px of the original image, ``scores`` and ``labels`` (D,): the detections, best
    first. ``right`` and ``inside_crowd`` (D,) bool: found an object; is neither right nor wrong. ``kinds`` (D,): an
    ErrorKind for all others, else None. ``objects`` (D,): the annotation that was found or that the error is about, -1
    for background. ``iou`` (D, G), 0 for crowds. ``found_by`` (G,): the detection that found an object, -1 where none
    did and for crowds. ``missed`` (G,) bool: TIDE's Miss.
    """

    truth: GroundTruth
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    right: np.ndarray
    inside_crowd: np.ndarray
    kinds: np.ndarray
    objects: np.ndarray
    iou: np.ndarray
    found_by: np.ndarray
    missed: np.ndarray


def image_errors(truth: GroundTruth, results: Results, categories: Categories) -> ImageErrors:
    """Judge the detections of one image, ``results``, against its annotations."""
    order = np.argsort(-results.scores, kind="stable")
    label_of = {category_id: label for label, category_id in enumerate(categories.ids)}
    labels = np.array([label_of[c] for c in results.category_ids[order].tolist()], np.int64)
    boxes = xywh_to_xyxy(torch.from_numpy(results.boxes[order])).numpy().reshape(-1, 4)
    iou, cover = _overlaps(boxes, truth)
    same_class = labels[:, None] == truth.labels[None, :]
    taken = _match(iou * same_class)
    inside_crowd = (taken < 0) & (cover * same_class >= POSITIVE_IOU).any(axis=1)
    found_by = np.full(len(truth), -1)
    found_by[taken[taken >= 0]] = np.flatnonzero(taken >= 0)
    kinds, objects = _classify(iou, same_class, found_by >= 0)
    kinds[(taken >= 0) | inside_crowd] = None
    objects = np.where(taken >= 0, taken, np.where(inside_crowd, -1, objects))
    covered = np.isin(np.arange(len(truth)), objects[(kinds == ErrorKind.CLASS) | (kinds == ErrorKind.LOCATION)])
    missed = (found_by < 0) & ~truth.crowd & ~covered
    return ImageErrors(
        truth, boxes, results.scores[order], labels, taken >= 0, inside_crowd, kinds, objects, iou, found_by, missed
    )


def error_costs(images: Sequence[ImageErrors], num_classes: int) -> tuple[float, dict[ErrorKind, float]]:
    """AP50 in [0, 1], and the gain in AP50 when all errors of a kind are corrected; never below 0, as in tidecv.

    A Cls or Loc error becomes right, unless its object is found already or another error about it scores more; it then
    vanishes, as Both, Dupe and Bkg errors do. A missed object is taken off the objects to find.
    """
    columns = _columns(images)
    counts = columns.object_counts(num_classes)
    ap = _mean_ap(columns.scores, columns.labels, columns.right, counts, counts > 0)
    costs = {}
    for kind in ErrorKind:
        of_kind = columns.kinds == kind
        becomes_right = of_kind & columns.is_best
        keep = ~of_kind | becomes_right
        labels = np.where(becomes_right, columns.object_labels, columns.labels)
        left = counts - np.bincount(columns.missed, minlength=num_classes) * (kind == ErrorKind.MISSED)
        fixed = _mean_ap(columns.scores[keep], labels[keep], (columns.right | becomes_right)[keep], left, counts > 0)
        costs[kind] = max(fixed - ap, 0.0)
    return ap, costs


def average_precision(scores: np.ndarray, right: np.ndarray, num_objects: int) -> float:
    """COCO's AP of one class at one IoU: the mean over 101 recalls of the best precision at that recall or a greater.

    Args:
        scores: (D,).
        right: (D,) bool.
        num_objects: at least 1.
    """
    precision, recall = precision_recall(scores, right, num_objects)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(recall, RECALL_THRESHOLDS, side="left")
    return float(np.append(best, 0.0)[places].mean())


def precision_recall(scores: np.ndarray, right: np.ndarray, num_objects: int) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall (D,) of the best 1, 2, ..., D detections."""
    hits = np.cumsum(right[np.argsort(-scores, kind="stable")])
    return hits / np.arange(1, len(hits) + 1), hits / num_objects


def best_threshold(images: Iterable[ImageErrors]) -> float:
    """The score from which on detections have the greatest F1, over all classes; 0 where none is right."""
    columns = _columns(images)
    order = np.argsort(-columns.scores, kind="stable")
    scores, hits = columns.scores[order], np.cumsum(columns.right[order])
    # f1 = 2 hits / (detections + objects); only at the last of equal scores do all of them count
    f1 = 2 * hits / (np.arange(1, len(hits) + 1) + max(len(columns.objects), 1))
    last = np.append(scores[1:] != scores[:-1], True)[: len(scores)]
    if not hits.any():
        return 0.0
    return float(scores[last][f1[last].argmax()])


@dataclass(frozen=True, slots=True)
class _Columns:
    """All images in turn: D detections outside crowds, and the labels of the objects and of the missed ones."""

    scores: np.ndarray
    labels: np.ndarray
    right: np.ndarray
    kinds: np.ndarray
    object_labels: np.ndarray
    is_best: np.ndarray  # the Cls or Loc error that scores most among those about an object that was not found
    objects: np.ndarray
    missed: np.ndarray

    def object_counts(self, num_classes: int) -> np.ndarray:
        return np.bincount(self.objects, minlength=num_classes)


def _columns(images: Iterable[ImageErrors]) -> _Columns:
    parts: list[tuple[np.ndarray, ...]] = []
    for image in images:
        counted = ~image.inside_crowd
        labels = np.append(image.truth.labels, -1)[image.objects]
        parts.append(
            (
                image.scores[counted],
                image.labels[counted],
                image.right[counted],
                image.kinds[counted],
                labels[counted],
                _best_errors(image)[counted],
                image.truth.labels[~image.truth.crowd],
                image.truth.labels[image.missed],
            )
        )
    return _Columns(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _best_errors(image: ImageErrors) -> np.ndarray:
    chosen = np.zeros(len(image.scores), bool)
    seen: set[int] = set()
    for i in np.flatnonzero((image.kinds == ErrorKind.CLASS) | (image.kinds == ErrorKind.LOCATION)).tolist():
        about = int(image.objects[i])  # detections come best first
        if image.found_by[about] < 0 and about not in seen:
            chosen[i] = True
            seen.add(about)
    return chosen


def _mean_ap(
    scores: np.ndarray, labels: np.ndarray, right: np.ndarray, num_objects: np.ndarray, classes: np.ndarray
) -> float:
    """Over ``classes`` (K,) bool; one that an oracle left with neither objects nor detections does not count."""
    values = []
    for k in np.flatnonzero(classes):
        mine = labels == k
        if num_objects[k]:
            values.append(average_precision(scores[mine], right[mine], int(num_objects[k])))
        elif mine.any():
            values.append(0.0)
    return float(np.mean(values)) if values else 0.0


def _overlaps(boxes: np.ndarray, truth: GroundTruth) -> tuple[np.ndarray, np.ndarray]:
    """IoU (D, G) with objects, and the share of each detection inside each crowd; 0 for the other sort."""
    found = torch.from_numpy(boxes)
    wanted = xywh_to_xyxy(torch.from_numpy(truth.boxes.reshape(-1, 4)))
    return pairwise_iou(found, wanted).numpy() * ~truth.crowd, pairwise_cover(found, wanted).numpy() * truth.crowd


def _match(iou: np.ndarray) -> np.ndarray:
    """The object (D,) that each detection takes, -1 for none: the best first, each the nearest that is left.

    Of equally near ones the last, as in pycocotools: a box around two objects of one size overlaps them alike.
    """
    left = iou.copy()
    taken = np.full(len(iou), -1)
    if iou.shape[1] == 0:
        return taken
    for i in range(len(iou)):
        nearest = iou.shape[1] - 1 - int(left[i, ::-1].argmax())
        if left[i, nearest] >= POSITIVE_IOU:
            taken[i] = nearest
            left[:, nearest] = 0
    return taken


def _classify(iou: np.ndarray, same_class: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The kind of each detection as if it were an error, and the object it is about."""
    kinds = np.full(len(iou), ErrorKind.BACKGROUND, dtype=object)
    objects = np.full(len(iou), -1)
    if iou.shape[1] == 0:
        return kinds, objects
    own, other = iou * same_class, iou * ~same_class
    own_best, other_best, taken_best, best = (x.max(axis=1) for x in (own, other, own * found, iou))
    rules = (  # the first that holds decides, so the last is written first
        (ErrorKind.BOTH, best > BACKGROUND_IOU, iou),
        (ErrorKind.DUPLICATE, taken_best >= POSITIVE_IOU, own * found),
        (ErrorKind.CLASS, other_best >= POSITIVE_IOU, other),
        (ErrorKind.LOCATION, (own_best >= BACKGROUND_IOU) & (own_best <= POSITIVE_IOU), own),
    )
    for kind, holds, overlap in rules:
        kinds[holds] = kind
        objects[holds] = overlap.argmax(axis=1)[holds]
    return kinds, objects
