"""COCO's JSON: images, annotations, categories."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detkit.config import DATASETS
from detkit.data.datasets.base import DetectionDataset
from detkit.data.datasets.checks import Findings, ImageRecord, Policy, RawAnnotations, check_annotations
from detkit.data.decode import read_image
from detkit.structures import Categories

Record = Mapping[str, Any]


@DATASETS
class CocoDataset(DetectionDataset):
    """A data set in COCO layout: one JSON file for each split, and a folder of images.

    Every category of the file is a class, in the order of the ids, whether it occurs or not; ids may have gaps.
    Boxes stay as the file gives them: what pycocotools would read is what the evaluator scores against.

    Args:
        root: folder of the data set.
        annotations: the JSON file, relative to ``root``.
        images: the folder to which ``file_name`` is relative, itself relative to ``root``.
        on_missing: what to do about images whose file is not there: "error", or "skip" them (counted).
        on_bad_annotation: what to do about records that no one can use (NaN, an unknown category or image, an id given
            twice): "error", or "skip" them (counted).

    Raises:
        ValueError: the file is not COCO (naming the missing key), the data set is empty, or a record is refused.
    """

    def __init__(
        self,
        *,
        root: str,
        annotations: str = "train.json",
        images: str = "images",
        on_missing: Policy = "error",
        on_bad_annotation: Policy = "error",
    ) -> None:
        path = Path(root) / annotations
        images_json, annotations_json, categories_json = _read_json(path)
        self.categories = _parse_categories(path, categories_json)
        records = _parse_images(path, images_json, Path(root) / images)
        raw = _parse_annotations(path, annotations_json, records, self.categories)
        self.truths, self.report = check_annotations(
            Findings(str(path)), records, raw, [str(i) for i in self.categories.ids], on_missing, on_bad_annotation
        )

    def read(self, index: int) -> np.ndarray:
        truth = self.truths[index]
        return read_image(truth.file, truth.size)


def _read_json(path: Path) -> tuple[list[Record], list[Record], list[Record]]:
    try:
        with open(path, encoding="utf-8") as stream:
            content = json.load(stream)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not a COCO file: an object with images, annotations and categories is needed")
    parts = []
    for key in ("images", "annotations", "categories"):
        if key not in content:
            raise ValueError(f"{path}: not a COCO file: it has no {key!r}, only {sorted(content)}")
        part = content[key]
        if not isinstance(part, list) or not all(isinstance(record, dict) for record in part):
            raise ValueError(f"{path}: not a COCO file: {key!r} must be a list of objects")
        parts.append(part)
    return parts[0], parts[1], parts[2]


def _parse_categories(path: Path, records: Sequence[Record]) -> Categories:
    ids = _whole_numbers(path, "categories", records, "id")
    names = _column(path, "categories", records, "name")
    pairs = sorted(zip(ids.tolist(), map(str, names), strict=True))
    try:
        return Categories(tuple(name for _, name in pairs), tuple(i for i, _ in pairs))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _parse_images(path: Path, records: Sequence[Record], folder: Path) -> list[ImageRecord]:
    ids = _whole_numbers(path, "images", records, "id").tolist()
    names = _column(path, "images", records, "file_name")
    heights = _whole_numbers(path, "images", records, "height").tolist()
    widths = _whole_numbers(path, "images", records, "width").tolist()
    found = []
    for i, name, h, w in zip(ids, names, heights, widths, strict=True):
        if h < 1 or w < 1:
            raise ValueError(f"{path}: image {name!r}: width {w} and height {h} must be positive")
        found.append(ImageRecord(i, str(name), str(folder / str(name)), (h, w)))
    return found


def _parse_annotations(
    path: Path, records: Sequence[Record], images: Sequence[ImageRecord], categories: Categories
) -> RawAnnotations:
    image_ids = _whole_numbers(path, "annotations", records, "image_id").tolist()
    category_ids = _column(path, "annotations", records, "category_id")
    place = {image.image_id: i for i, image in enumerate(images)}
    label = {category: k for k, category in enumerate(categories.ids)}

    def describe(row: int) -> str:
        image = place.get(image_ids[row])
        name = f"image id {image_ids[row]}" if image is None else images[image].name
        box, category = records[row]["bbox"], category_ids[row]
        return f"annotation {records[row]['id']} of {name}: category {category}, box {box}"

    return RawAnnotations(
        image=np.array([place.get(i, -1) for i in image_ids], dtype=np.int64),
        boxes=_boxes(_column(path, "annotations", records, "bbox")),
        labels=np.array([_lookup(label, c) for c in category_ids], dtype=np.int64),
        area=np.array([_number(r.get("area")) for r in records], dtype=np.float64),
        crowd=np.array([bool(r.get("iscrowd", 0)) for r in records], dtype=bool),
        ids=_whole_numbers(path, "annotations", records, "id"),
        describe=describe,
    )


def _column(path: Path, part: str, records: Sequence[Record], key: str) -> list[Any]:
    try:
        return [record[key] for record in records]
    except KeyError:
        row = next(i for i, record in enumerate(records) if key not in record)
        raise ValueError(f"{path}: not a COCO file: {part}[{row}] has no {key!r}") from None


def _whole_numbers(path: Path, part: str, records: Sequence[Record], key: str) -> np.ndarray:
    values = _column(path, part, records, key)
    for row, value in enumerate(values):
        if not _is_whole(value):
            raise ValueError(f"{path}: {part}[{row}]: {key!r} must be a whole number, not {value!r}")
    return np.array(values, dtype=np.int64)


def _is_whole(value: Any) -> bool:
    if isinstance(value, float):
        return value.is_integer() and abs(value) < 2**53
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _lookup(labels: Mapping[Any, int], category: Any) -> int:
    return labels.get(category, -1) if isinstance(category, (int, float)) else -1


def _boxes(values: Sequence[Any]) -> np.ndarray:
    """(M, 4) float64, NaN in the rows that are not four numbers."""
    found = np.full((len(values), 4), np.nan)
    for row, value in enumerate(values):
        if isinstance(value, list) and len(value) == 4:
            found[row] = [_number(number) for number in value]
    return found


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else np.nan
