"""Whether an imported detector finds what its own library found: numbers that were stored there, image by image."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_iou

from detkit.app.assemble.schema import PredictOptions
from detkit.app.assemble.stored import Stored
from detkit.app.use.predict import Detection
from detkit.config import ConfigError
from detkit.data.datasets.unlabelled import ImageFiles
from detkit.structures import Categories, Detections

#: Detections that score less are not asked for: many boxes there score nearly alike, and either may be left out.
LEAST_SCORE = 0.3

#: Of two detections that are the same: least overlap and largest change of score, with another library's resizing.
LEAST_IOU, MOST_SCORE = 0.95, 0.03


class DiffersError(ValueError):
    """The detector finds something else than its library did; nothing is written."""


@dataclass(frozen=True)
class Expected:
    """What the other library found in ``image``, boxes in px of the file."""

    image: Path
    found: Detections


@dataclass(frozen=True)
class Certificate:
    """All ``num`` detections of so many ``images`` that were compared were found again."""

    images: int
    num: int
    least_iou: float
    most_score: float

    def describe(self) -> str:
        """In one line."""
        return (
            f"certified: {self.num} detections of {self.images} images found again, IoU at least {self.least_iou:.4f}, "
            f"scores within {self.most_score:.4f}"
        )


def read_expected(path: Path, categories: Categories) -> list[Expected]:
    """The stored numbers: JSON, a list of ``{"image", "boxes": [[x1, y1, x2, y2]], "scores", "classes"}``.

    Raises:
        ConfigError: the file is not there or of another form, or names an image or class that there is not.
    """
    try:
        rows = json.loads(path.read_text())
        if not isinstance(rows, list):
            raise ValueError("it holds no list")
        return [_expected(row, number, path, categories) for number, row in enumerate(rows, start=1)]
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"certify: {path}: {error}") from error


def _expected(row: Any, number: int, path: Path, categories: Categories) -> Expected:
    columns = ("boxes", "scores", "classes")
    if not isinstance(row, dict) or not isinstance(row.get("image"), str):
        raise ValueError(f"row {number} names no image")
    if absent := [key for key in columns if not isinstance(row.get(key), list)]:
        raise ValueError(f"{row['image']}: {absent[0]!r} must be a list")
    image, (boxes, scores, classes) = path.parent / row["image"], (row[key] for key in columns)
    if not image.is_file():
        raise ValueError(f"there is no image {image}")
    if not len(boxes) == len(scores) == len(classes):
        raise ValueError(f"{row['image']}: {len(boxes)} boxes, {len(scores)} scores and {len(classes)} classes")
    for place, (box, score) in enumerate(zip(boxes, scores, strict=True), start=1):
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
            raise ValueError(f"{row['image']}: box {place} must be [x1, y1, x2, y2], not {reprlib.repr(box)}")
        if not _is_number(score):
            raise ValueError(f"{row['image']}: score {place} must be a number, not {reprlib.repr(score)}")
    if others := sorted({str(name) for name in classes} - set(categories.names)):
        raise ValueError(f"{row['image']}: no class is called {', '.join(others)}")
    labels = torch.tensor([categories.names.index(str(name)) for name in classes], dtype=torch.int64)
    corners = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)  # four also where there are none
    return Expected(image, Detections(corners, torch.tensor(scores, dtype=torch.float32), labels))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def certified(stored: Stored, expected: Sequence[Expected]) -> Certificate:
    """Look at the images and find what is ``expected`` in each, and nothing else that scores as much.

    Raises:
        DiffersError: the message names the image, and the detection that is not there or that is another.
        ConfigError: nothing is expected that scores enough, or an image cannot be read.
    """
    least, most, num = 1.0, 0.0, 0
    for one, found in zip(expected, _found(stored, [one.image for one in expected]), strict=True):
        again = list(_matches(one.found, found, one.image, stored))
        for iou, change in [*again, *_matches(found, one.found, one.image, stored)]:
            least, most = min(least, iou), max(most, change)
        num += len(again)
    if num == 0:
        least_compared = LEAST_SCORE + MOST_SCORE
        raise ConfigError(
            f"certify: no detection of {len(expected)} images scores {least_compared:.2f}: that proves nothing"
        )
    return Certificate(len(expected), num, least, most)


def _matches(wanted: Detections, there: Detections, image: Path, stored: Stored) -> Iterator[tuple[float, float]]:
    """IoU and change of score of each of ``wanted`` that scores enough with its like among ``there``."""
    # one side may lie below the threshold by as much as scores may change
    for i in (wanted.scores >= LEAST_SCORE + MOST_SCORE).nonzero().flatten().tolist():
        same = there.labels == wanted.labels[i]
        ious = box_iou(wanted.boxes[i : i + 1], there.boxes)[0].where(same, torch.zeros(()))
        changes = (there.scores - wanted.scores[i]).abs()
        like = (ious >= LEAST_IOU) & (changes <= MOST_SCORE)
        if not bool(like.any()):
            raise DiffersError(_difference(wanted, i, ious, changes, image, stored))
        best = int(ious.where(like, torch.zeros(())).argmax())
        yield float(ious[best]), float(changes[best])


def _difference(wanted: Detections, number: int, ious: Tensor, changes: Tensor, image: Path, stored: Stored) -> str:
    name = stored.checkpoint.categories.names[int(wanted.labels[number])]
    nearest = int(ious.argmax()) if len(ious) else None
    seen = "there is none of that class" if nearest is None or ious[nearest] == 0 else (
        f"the nearest has IoU {float(ious[nearest]):.3f} and another score by {float(changes[nearest]):.3f}"
    )  # fmt: skip
    box = ", ".join(f"{value:.1f}" for value in wanted.boxes[number].tolist())
    return (
        f"{image}: only one of both libraries finds {name} {float(wanted.scores[number]):.3f} at [{box}]; {seen}. "
        "Another style or other settings? Nothing was written"
    )


def _found(stored: Stored, images: Sequence[Path]) -> Iterator[Detections]:
    """What the detector finds in each of ``images``, boxes in px of the file."""
    faults: list[str] = []
    detection = Detection(stored, PredictOptions(checkpoint="", input="", precision="fp32", batch_size=1), faults)
    for image in images:
        files = ImageFiles(str(image))
        for found in detection.of(files):
            assert found.meta.affine is not None
            boxes = found.meta.affine.undo(found.detections.boxes.double()).float()
            yield Detections(boxes, found.detections.scores, found.detections.labels)
        if unread := [*files.faults, *faults]:
            raise ConfigError(f"certify: {'; '.join(unread)}")
