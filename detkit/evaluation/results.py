"""Detections of a whole data set in the data set's own terms, and the COCO results file.

Here the boxes leave the house: network-input pixels become pixels of the original image, labels become category ids.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from detkit.structures import Categories, Detections, ImageMeta, boxes
from detkit.structures.columns import each_field
from detkit.utils.files import atomic_write


@dataclass(frozen=True, slots=True)
class Results:
    """D detections as columns; those of one image stand together in the order in which the detector gave them.

    ``image_ids`` and ``category_ids`` (D,) int64 in the data set's own numbering; ``boxes`` (D, 4) float64 x y w h px
    of the original image; ``scores`` (D,) float64; ``landmarks``, of a detector that finds them, (D, L, 2) float64 x y
    px of the original image.
    """

    image_ids: np.ndarray
    category_ids: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    landmarks: np.ndarray | None = None

    def __post_init__(self) -> None:
        n = len(self.boxes)
        if self.boxes.shape != (n, 4):
            raise ValueError(f"boxes must be (D, 4), not {self.boxes.shape}")
        for name in ("image_ids", "category_ids", "scores"):
            if getattr(self, name).shape != (n,):
                raise ValueError(f"{n} boxes but {name} is {getattr(self, name).shape}")
        if self.landmarks is not None and (self.landmarks.ndim != 3 or self.landmarks.shape[::2] != (n, 2)):
            raise ValueError(f"{n} boxes but landmarks are {self.landmarks.shape}, not ({n}, L, 2)")

    def __len__(self) -> int:
        return len(self.boxes)

    def select(self, index: np.ndarray | slice) -> Results:
        """The detections that ``index`` (a bool mask or integers) names, in that order."""
        columns: list[Any] = [getattr(self, f.name) for f in fields(self)]
        chosen: list[Any] = [None if column is None else column[index] for column in columns]
        return Results(*chosen)

    def sort(self) -> Results:
        """The same by ascending image id; the order inside an image stays, since it decides between equal scores."""
        return self.select(np.argsort(self.image_ids, kind="stable"))

    @classmethod
    def empty(cls) -> Results:
        """No detections."""
        return cls(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0))

    @classmethod
    def join(cls, parts: Iterable[Results]) -> Results:
        """All detections of ``parts``, one part after the other; with landmarks where all that have any found have."""
        parts = [cls.empty(), *parts]
        points = [p.landmarks for p in parts if p.landmarks is not None]
        has_all = points and all(p.landmarks is not None for p in parts if len(p))
        return cls(
            np.concatenate([p.image_ids for p in parts]),
            np.concatenate([p.category_ids for p in parts]),
            np.concatenate([p.boxes for p in parts]),
            np.concatenate([p.scores for p in parts]),
            np.concatenate(points) if has_all else None,
        )


def restore(detections: Detections, meta: ImageMeta, categories: Categories) -> Results:
    """Bring the ``detections`` of one image from the network input back to the original image.

    Boxes go through the inverse of ``meta.affine`` in float64 and are clipped to ``meta.original_size``; landmarks go
    through it too, and stay where they are. A box that
    clipping leaves without area stays: pycocotools counts it like any other, as a detection that matches nothing.

    Raises:
        ValueError: a box or score is not finite, a box is reversed, a label is no class, or ``meta`` has no affine;
            the message names the image.
    """
    where = f"{meta.file} (image id {meta.image_id})"
    if meta.affine is None:
        raise ValueError(f"{where}: meta.affine is missing, so its detections cannot be brought back to the image")
    detections = each_field(detections, lambda column: column.detach().cpu())
    points = None if detections.landmarks is None else detections.landmarks.double()
    detections = replace(detections, boxes=detections.boxes.double(), landmarks=points)
    scores, labels = detections.scores.double().numpy(), detections.labels.numpy()
    _check(detections, len(categories), where)
    found = detections.undone(meta.affine, categories.mirror)
    corners = boxes.clip(found.boxes, meta.original_size)
    return Results(
        np.full(len(scores), meta.image_id, np.int64),
        np.asarray(categories.ids, np.int64)[labels],
        boxes.xyxy_to_xywh(corners).numpy(),
        scores,
        None if found.landmarks is None else found.landmarks.numpy(),
    )


def _check(found: Detections, num_classes: int, where: str) -> None:
    corners, scores, labels = found.boxes.numpy(), found.scores.double().numpy(), found.labels.numpy()
    lost = np.zeros(len(scores), bool) if found.landmarks is None else ~found.landmarks.isfinite().all(2).all(1).numpy()
    problems = (
        (~np.isfinite(corners).all(axis=1), "a box that is not finite"),
        (~np.isfinite(scores), "a score that is not finite"),
        (lost, "a landmark that is not finite"),
        ((corners[:, 2:] < corners[:, :2]).any(axis=1), "a reversed box"),
        ((labels < 0) | (labels >= num_classes), f"a label that is not in 0..{num_classes - 1}"),
    )
    for bad, what in problems:
        if bad.any():
            first = int(np.flatnonzero(bad)[0])
            raise ValueError(
                f"{where}: {int(bad.sum())} of {len(scores)} detections have {what}; the first is number {first}: "
                f"box {corners[first].tolist()}, score {scores[first]}, label {labels[first]}"
            )


def write_results(path: str | Path, results: Results) -> None:
    """Write ``results`` as a COCO results file, whole or not at all.

    Scores and boxes are written with all their digits, so that a reader gets the same bits.
    """
    columns = (results.image_ids, results.category_ids, results.boxes, results.scores)
    rows = [
        {"image_id": image, "category_id": category, "bbox": box, "score": score} | points
        for (image, category, box, score), points in zip(
            zip(*(c.tolist() for c in columns), strict=True), keypoint_rows(results), strict=True
        )
    ]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, json.dumps(rows, allow_nan=False))


def keypoint_rows(results: Results) -> list[dict[str, list[float]]]:
    """What each row of a COCO results file says of landmarks: ``keypoints``, x, y, 1 of each; nothing without any.

    The third number is not used, and 1 is what COCO recommends (https://cocodataset.org/#format-results).
    """
    if results.landmarks is None:
        return [{}] * len(results)
    marked = np.concatenate([results.landmarks, np.ones_like(results.landmarks[..., :1])], axis=2)
    return [{"keypoints": numbers} for numbers in marked.reshape(len(marked), -1).tolist()]


def read_results(path: str | Path) -> Results:
    """Read a COCO results file of boxes, ours or another tool's, in the order of the file.

    Raises:
        ValueError: it is no such file; the message names the file and the entry.
    """
    try:
        rows = json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path}: a results file is a list of detections, not {type(rows).__name__}")
    for number, row in enumerate(rows):
        if problem := _problem(row):
            raise ValueError(f"{path}: entry {number}: {problem}")
    return Results(
        np.array([r["image_id"] for r in rows], np.int64),
        np.array([r["category_id"] for r in rows], np.int64),
        np.array([r["bbox"] for r in rows], np.float64).reshape(-1, 4),
        np.array([r["score"] for r in rows], np.float64),
    )


def _problem(row: Any) -> str:
    """What keeps ``row`` from being a detection; empty when nothing does."""
    if not isinstance(row, dict):
        return f"must be an object, not {row!r}"
    for key in ("image_id", "category_id", "bbox", "score"):
        if key not in row:
            return f"has no {key!r}"
    for key in ("image_id", "category_id"):
        if not isinstance(row[key], int):
            return f"{key} must be a whole number, not {row[key]!r}"
    box, score = row["bbox"], row["score"]
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_finite, box)):
        return f"bbox must be four finite numbers, not {box!r}"
    return "" if _is_finite(score) else f"score must be a finite number, not {score!r}"


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and bool(np.isfinite(value))
