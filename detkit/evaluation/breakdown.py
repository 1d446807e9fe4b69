"""Found, missed and false alarms at one score threshold: by class, by size, and as a confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from detkit.evaluation.errors import POSITIVE_IOU, ImageErrors, average_precision, precision_recall
from detkit.evaluation.summary import SIZE_BOUNDS

#: Points of a curve that a report keeps.
_CURVE_POINTS = 200


def found(image: ImageErrors, threshold: float) -> np.ndarray:
    """(G,) bool: the objects that a detection with at least the score ``threshold`` found."""
    return (image.found_by >= 0) & (np.append(image.scores, -np.inf)[image.found_by] >= threshold)


def false_alarms(image: ImageErrors, threshold: float) -> np.ndarray:
    """(D,) bool: the detections with at least the score ``threshold`` that are errors."""
    return (image.scores >= threshold) & ~image.right & ~image.inside_crowd


def by_class(images: Sequence[ImageErrors], names: Sequence[str], threshold: float) -> list[dict[str, Any]]:
    """For each class: objects, found, false alarms, AP50, and the curve of precision over recall with its scores."""
    labels = np.concatenate([i.truth.labels[~i.truth.crowd] for i in images])
    hits = np.concatenate([found(i, threshold)[~i.truth.crowd] for i in images])
    counted = [~i.inside_crowd for i in images]
    scores, right, predicted, wrong = (
        np.concatenate(columns)
        for columns in (
            [i.scores[c] for i, c in zip(images, counted, strict=True)],
            [i.right[c] for i, c in zip(images, counted, strict=True)],
            [i.labels[c] for i, c in zip(images, counted, strict=True)],
            [false_alarms(i, threshold)[c] for i, c in zip(images, counted, strict=True)],
        )
    )
    rows = []
    for k, name in enumerate(names):
        mine, num_objects = predicted == k, int((labels == k).sum())
        row = {
            "name": name,
            "objects": num_objects,
            "found": int(hits[labels == k].sum()),
            "false_alarms": int(wrong[mine].sum()),
            "AP50": average_precision(scores[mine], right[mine], num_objects) if num_objects else None,
            "curve": _curve(scores[mine], right[mine], num_objects) if num_objects else None,
        }
        rows.append(row)
    return rows


def by_size(images: Sequence[ImageErrors], threshold: float) -> list[dict[str, Any]]:
    """For each of COCO's sizes: objects and found by the object's area, false alarms by the box's."""
    areas = np.concatenate([i.truth.area[~i.truth.crowd] for i in images])
    hits = np.concatenate([found(i, threshold)[~i.truth.crowd] for i in images])
    wrong = np.concatenate([i.boxes[false_alarms(i, threshold)] for i in images])
    wrong_areas = (wrong[:, 2] - wrong[:, 0]) * (wrong[:, 3] - wrong[:, 1])
    rows = []
    for name, (low, high) in SIZE_BOUNDS.items():
        inside = (areas >= low) & (areas < high)
        rows.append(
            {
                "name": name,
                "objects": int(inside.sum()),
                "found": int(hits[inside].sum()),
                "false_alarms": int(((wrong_areas >= low) & (wrong_areas < high)).sum()),
            }
        )
    return rows


def confusion_matrix(images: Sequence[ImageErrors], num_classes: int, threshold: float) -> np.ndarray:
    """(K + 1, K + 1) counts: what an object is (row) and what it was detected as (column).

    The last column counts missed objects, the last row false alarms on nothing. Detections that are right come first;
    those left and the objects left are paired by their overlap, from t_f on, whatever their class.
    """
    matrix = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    for image in images:
        hits, wrong = found(image, threshold), false_alarms(image, threshold)
        np.add.at(matrix, (image.truth.labels[hits], image.truth.labels[hits]), 1)
        left = image.iou * wrong[:, None] * (~hits & ~image.truth.crowd)
        while left.size and left.max() >= POSITIVE_IOU:
            i, j = np.unravel_index(left.argmax(), left.shape)
            matrix[image.truth.labels[j], image.labels[i]] += 1
            wrong[i], hits[j] = False, True
            left[i], left[:, j] = 0, 0
        missed = image.truth.labels[~hits & ~image.truth.crowd]
        matrix[:num_classes, num_classes] += np.bincount(missed, minlength=num_classes)
        matrix[num_classes, :num_classes] += np.bincount(image.labels[wrong], minlength=num_classes)
    return matrix


def _curve(scores: np.ndarray, right: np.ndarray, num_objects: int) -> dict[str, list[float]]:
    precision, recall = precision_recall(scores, right, num_objects)
    places = np.unique(np.linspace(0, len(scores) - 1, _CURVE_POINTS).round().astype(int)) if len(scores) else []
    ordered = np.sort(scores)[::-1]
    columns = {"recall": recall, "precision": precision, "score": ordered}
    return {name: [round(float(values[i]), 4) for i in places] for name, values in columns.items()}
