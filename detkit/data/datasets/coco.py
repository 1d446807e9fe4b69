"""COCO's JSON: images, annotations, categories."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detkit.config import DATASETS
from detkit.data.datasets.base import DetectionDataset
from detkit.data.datasets.checks import ImageRecord, Oddity, RawAnnotations, check_annotations, note_names
from detkit.data.datasets.coco_columns import CocoColumns, read_columns
from detkit.data.datasets.coco_keypoints import landmark_names, landmarks_of, points_of
from detkit.data.datasets.fields import FLAG_VALUES, is_whole, parse_flag, parse_number
from detkit.data.datasets.files import Listings
from detkit.data.datasets.findings import Findings, Policy
from detkit.data.datasets.stored import Opened, through_cache
from detkit.data.decode import read_image
from detkit.structures import Categories

Record = Mapping[str, Any]


@DATASETS
class CocoDataset(DetectionDataset):
    """A data set in COCO layout: one JSON file for each split, and a folder of images.

    Every category of the file is a class, in the order of the ids, whether it occurs or not; ids may have gaps.
    Boxes stay as the file gives them: what pycocotools would read is what the evaluator scores against. File names may
    be in another Unicode form than on the disk, or have back-slashes. ``iscrowd`` is 0, 1, true or false, or these as
    strings; ids are numbers, and names strings. What was made of a large file stays in the user's cache folder, see
    :mod:`detkit.data.datasets.stored`.

    Objects may have landmarks, COCO's ``keypoints``: numbers x, y, v for each of the points that the categories name,
    the same in all categories that have any. They are taken as they stand, in the frame of the boxes. Names that differ
    by left and right change places in a mirror image.

    Args:
        root: folder of the data set.
        annotations: the JSON file, relative to ``root``.
        images: the folder to which ``file_name`` is relative, itself relative to ``root``.
        on_missing: what to do about images whose file is not there: "error", or "skip" them (counted).
        on_bad_annotation: what to do about records that no one can use (NaN, an unknown category or image, an id given
            twice): "error", or "skip" them (counted).
        landmarks: names of the points of each object, in place of those that the categories give; [] to read none.

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
        landmarks: tuple[str, ...] | None = None,
    ) -> None:
        path = Path(Listings().find(str(Path(root) / annotations)))
        folder = Path(root) / images
        options = [str(folder), os.path.abspath(folder), on_missing, on_bad_annotation, json.dumps(landmarks)]
        opened = through_cache(path, options, lambda: _open(path, folder, on_missing, on_bad_annotation, landmarks))
        self.categories, self.truths, self.report = opened.categories, opened.truths, opened.report
        self.coco_file = str(path)

    def read(self, index: int) -> np.ndarray:
        truth = self.truths[index]
        return read_image(truth.file, truth.size)


def _open(
    path: Path, folder: Path, on_missing: Policy, on_bad_annotation: Policy, named: Sequence[str] | None
) -> Opened:
    findings, listings = Findings(str(path)), Listings()
    columns = read_columns(path)
    if columns is None:
        categories, records, raw = _read_carefully(findings, path, folder, listings, named)
    else:
        categories, records, raw = _from_columns(findings, columns, folder, listings, named)
    known = [str(i) for i in categories.ids]
    truths, report = check_annotations(findings, records, raw, known, on_missing, on_bad_annotation)
    is_exact = not listings.num_renamed and not report.count("missing image files")
    return Opened(categories, truths, report, is_exact)


def _from_columns(
    findings: Findings, columns: CocoColumns, folder: Path, listings: Listings, named: Sequence[str] | None
) -> tuple[Categories, list[ImageRecord], RawAnnotations]:
    names = landmark_names(findings, named, [(entry.name, entry.keypoints) for entry in columns.categories])
    categories = _categories(findings, [(entry.id, entry.name) for entry in columns.categories], names)
    prefix = str(folder)
    images = [
        ImageRecord(e.id, e.file_name, listings.find(_path(prefix, e.file_name)), (e.height, e.width))
        for e in columns.images
    ]
    place = {image.image_id: i for i, image in enumerate(images)}

    def describe(row: int) -> str:
        return _describe(columns.annotation(row), images, place)

    landmarks, oddities = landmarks_of(columns.points(len(names)) if names else None, names)
    raw = RawAnnotations(
        image=_look_up(place, columns.image_ids),
        boxes=columns.boxes,
        labels=_look_up({category: k for k, category in enumerate(categories.ids)}, columns.category_ids),
        area=columns.area,
        crowd=columns.crowd,
        ids=columns.ids,
        describe=describe,
        oddities=oddities,
        landmarks=landmarks,
    )
    return categories, images, raw


def _read_carefully(
    findings: Findings, path: Path, folder: Path, listings: Listings, named: Sequence[str] | None
) -> tuple[Categories, list[ImageRecord], RawAnnotations]:
    """What :func:`read_columns` does not take, entry by entry: with the file, entry and key of all that is wrong."""
    images_json, annotations_json, categories_json = _read_json(path)
    categories = _parse_categories(findings, categories_json, named)
    images, refused = _parse_images(findings, images_json, folder, listings)
    return categories, images, _parse_annotations(findings, annotations_json, images, refused, categories)


def _read_json(path: Path) -> tuple[list[Record], list[Record], list[Record]]:
    try:
        content = json.loads(path.read_bytes())  # of bytes it finds UTF-8, 16 or 32, with a byte order mark or without
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


def _parse_categories(findings: Findings, records: Sequence[Record], named: Sequence[str] | None) -> Categories:
    sound = _sound(findings, "categories", records, whole=("id",), text=("name",))
    names = landmark_names(findings, named, [(record["name"], record.get("keypoints")) for record in sound])
    return _categories(findings, [(int(record["id"]), record["name"]) for record in sound], names)


def _categories(findings: Findings, pairs: Sequence[tuple[int, str]], landmarks: Sequence[str]) -> Categories:
    """Of (id, name), in the order of the ids."""
    pairs = sorted(pairs)
    note_names(findings, [name for _, name in pairs])
    try:
        return Categories(tuple(name for _, name in pairs), tuple(i for i, _ in pairs), tuple(landmarks))
    except ValueError as error:
        findings.reject(str(error))
        # Stands in until all faults are found.
        ids = sorted({i for i, _ in pairs}) or [0]
        return Categories(tuple(map(str, ids)), tuple(ids))


def _parse_images(
    findings: Findings, records: Sequence[Record], folder: Path, listings: Listings
) -> tuple[list[ImageRecord], set[Any]]:
    """The images, and the ids of those that are refused."""
    sound = _sound(findings, "images", records, whole=("id", "height", "width"), text=("file_name",))
    empty = [record for record in sound if min(record["height"], record["width"]) < 1]
    if empty:
        name, w, h = (empty[0][key] for key in ("file_name", "width", "height"))
        findings.reject(f"image {name!r}: width {w} and height {h} must be positive{_more(empty)}")
    found = [
        ImageRecord(
            int(record["id"]),
            record["file_name"],
            listings.find(_path(str(folder), record["file_name"])),
            (int(record["height"]), int(record["width"])),
        )
        for record in sound
        if min(record["height"], record["width"]) >= 1
    ]
    if len(found) == len(records):
        return found, set()
    return found, {r["id"] for r in records if is_whole(r.get("id"))} - {image.image_id for image in found}


def _parse_annotations(
    findings: Findings,
    records: Sequence[Record],
    images: Sequence[ImageRecord],
    refused: set[Any],
    categories: Categories,
) -> RawAnnotations:
    whole = ("id", "image_id")
    records = _sound(findings, "annotations", records, whole=whole, other=("bbox", "category_id"))
    records = [r for r in records if r["image_id"] not in refused]
    place = {image.image_id: i for i, image in enumerate(images)}
    label = {category: k for k, category in enumerate(categories.ids)}
    flags = [parse_flag(record.get("iscrowd", 0)) for record in records]

    def describe(row: int) -> str:
        return _describe(records[row], images, place)

    area = np.array([parse_number(record.get("area")) for record in records], dtype=np.float64)
    num = len(categories.landmarks)
    points = points_of([record.get("keypoints") for record in records], num) if num else None
    landmarks, oddities = landmarks_of(points, categories.landmarks)
    no_flag = np.array([flag is None for flag in flags], dtype=bool)
    return RawAnnotations(
        image=np.array([place.get(r["image_id"], -1) for r in records], dtype=np.int64),
        boxes=_boxes([r["bbox"] for r in records]),
        labels=np.array([_lookup(label, r["category_id"]) for r in records], dtype=np.int64),
        area=area,
        crowd=np.array(flags, dtype=bool),
        ids=np.array([r["id"] for r in records], dtype=np.int64),
        describe=describe,
        faults=(Oddity("iscrowd that is no flag", f"A flag is one of {FLAG_VALUES}. ", no_flag),),
        oddities=oddities,
        landmarks=landmarks,
    )


def _describe(record: Record, images: Sequence[ImageRecord], place: Mapping[Any, int]) -> str:
    image = place.get(record["image_id"])
    name = f"image id {record['image_id']}" if image is None else images[image].name
    text = f"annotation {record['id']} of {name}: category {record['category_id']!r}, box {record['bbox']}"
    if parse_flag(record.get("iscrowd", 0)) is None:
        text += f", iscrowd {record['iscrowd']!r}"
    return f"{text}, area {record['area']!r}" if isinstance(record.get("area"), str) else text


def _sound(
    findings: Findings,
    part: str,
    records: Sequence[Record],
    *,
    whole: Sequence[str] = (),
    text: Sequence[str] = (),
    other: Sequence[str] = (),
) -> list[Record]:
    """The ``records`` that have all keys, whole numbers in ``whole`` and strings in ``text``; the rest is told."""
    good = np.ones(len(records), dtype=bool)
    for key in (*whole, *text, *other):
        missing = [row for row, record in enumerate(records) if key not in record]
        if missing:
            findings.reject(f"not a COCO file: {part}[{missing[0]}] has no {key!r}{_more(missing)}")
        kind, fits = ("a whole number", is_whole) if key in whole else ("text", _is_text)
        wrong = [] if key in other else [i for i, r in enumerate(records) if key in r and not fits(r[key])]
        if wrong:
            value = records[wrong[0]][key]
            findings.reject(f"{part}[{wrong[0]}]: {key!r} must be {kind}, not {value!r}{_more(wrong)}")
        good[missing + wrong] = False
    return [record for record, is_good in zip(records, good, strict=True) if is_good]


def _more(cases: Sequence[Any]) -> str:
    return f" (and {len(cases) - 1} more)" if len(cases) > 1 else ""


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _path(folder: str, name: str) -> str:
    """``folder`` / ``name`` as pathlib spells it, which costs a second for COCO's names and changes few."""
    is_plain = "/" not in name and "\\" not in name and name not in (".", "..")
    return os.path.join(folder, name) if is_plain and folder != "." else str(Path(folder) / name)


def _lookup(labels: Mapping[Any, int], category: Any) -> int:
    return labels.get(category, -1) if is_whole(category) else -1


def _look_up(numbers: Mapping[int, int], ids: np.ndarray) -> np.ndarray:
    """(M,) int64: the number of each of ``ids`` (M,), -1 for those that have none."""
    known = np.array(sorted(numbers), dtype=np.int64)
    if not len(known):
        return np.full(len(ids), -1)
    values = np.array([numbers[i] for i in known.tolist()], dtype=np.int64)
    place = np.searchsorted(known, ids).clip(max=len(known) - 1)
    return np.where(known[place] == ids, values[place], -1)


def _boxes(values: Sequence[Any]) -> np.ndarray:
    """(M, 4) float64, NaN in the rows that are not four numbers."""
    found = np.full((len(values), 4), np.nan)
    for row, value in enumerate(values):
        if isinstance(value, list) and len(value) == 4:
            found[row] = [parse_number(number) for number in value]
    return found
