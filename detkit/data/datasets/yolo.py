"""YOLO's layout: for each image a text file with one line per object, "class cx cy w h" relative to the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from detkit.config import DATASETS
from detkit.data.datasets.base import DetectionDataset
from detkit.data.datasets.checks import Findings, ImageRecord, Policy, RawAnnotations, check_annotations
from detkit.data.datasets.files import list_images, read_sizes
from detkit.data.decode import read_image
from detkit.structures import Categories

#: Where the class names are looked for, in this order, when the config does not give them.
NAME_FILES = ("data.yaml", "classes.txt", "obj.names")


@DATASETS
class YoloDataset(DetectionDataset):
    """A data set in YOLO's layout: a folder of images, and a folder of text files with the same names.

    An image without a text file, or with an empty one, has no objects. Class n of the files is label n. Images get the
    ids 1, 2, ... in the order of their names, annotations in the order of the files. Sizes come from the pictures'
    headers, with EXIF orientation applied, as the tools that write this format do.

    Args:
        root: folder of the data set.
        images: folder of the images, relative to ``root``.
        labels: folder of the text files, relative to ``root``; null takes ``images`` with its last "images" replaced by
            "labels".
        classes: names of the classes; null reads data.yaml (its ``names``), classes.txt or obj.names in ``root``.
        on_missing: what to do about text files without an image and about images whose header cannot be read: "error",
            or "skip" them (counted).
        on_bad_annotation: what to do about lines that no one can use (not five numbers, an unknown class): "error", or
            "skip" them (counted).

    Raises:
        ValueError: a folder or the class names are missing, the data set is empty, or a record is refused.
    """

    def __init__(
        self,
        *,
        root: str,
        images: str = "images/train",
        labels: str | None = None,
        classes: tuple[str, ...] | None = None,
        on_missing: Policy = "error",
        on_bad_annotation: Policy = "error",
    ) -> None:
        base = Path(root)
        label_folder = base / (labels if labels is not None else _label_folder(images))
        self.looked_in = (str(label_folder),)
        names = classes or _read_names(base)
        self.categories = Categories(names, tuple(range(len(names))))
        findings = Findings(str(base / images))
        pictures = list_images(base / images)
        label_files = _label_files(findings, label_folder, pictures, on_missing)
        sizes = read_sizes(findings, list(pictures.values()), on_missing)
        records = [
            ImageRecord(i, stem, str(file), sizes[file])
            for i, (stem, file) in enumerate(pictures.items(), start=1)
            if file in sizes
        ]
        lines = [_read_lines(label_files[r.name]) if r.name in label_files else [] for r in records]
        raw = _raw_annotations(records, lines, len(names))
        known = [str(k) for k in range(len(names))]
        self.truths, self.report = check_annotations(findings, records, raw, known, on_missing, on_bad_annotation)

    def read(self, index: int) -> np.ndarray:
        truth = self.truths[index]
        return read_image(truth.file, truth.size)


class _Line(NamedTuple):
    """One line of a label file: where it stands, its text, the class, and cx cy w h (NaN where it is no box)."""

    number: int
    text: str
    category: int
    box: tuple[float, ...]


def _label_folder(images: str) -> str:
    parts = list(Path(images).parts)
    places = [i for i, part in enumerate(parts) if part == "images"]
    if not places:
        raise ValueError(f"images={images!r} has no part called 'images' to replace by 'labels'; give labels as well")
    parts[places[-1]] = "labels"
    return str(Path(*parts))


def _read_names(base: Path) -> tuple[str, ...]:
    path = next((base / name for name in NAME_FILES if (base / name).is_file()), None)
    if path is None:
        raise ValueError(f"{base}: none of {', '.join(NAME_FILES)} is there to tell the class names; give classes")
    try:
        text = path.read_text(encoding="utf-8")
        names = yaml.safe_load(text) if path.suffix == ".yaml" else text.split("\n")
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    found = _names_of_yaml(path, names) if path.suffix == ".yaml" else [n.strip() for n in names if n.strip()]
    if not found:
        raise ValueError(f"{path}: no class names")
    return tuple(found)


def _names_of_yaml(path: Path, content: Any) -> list[str]:
    names = content.get("names") if isinstance(content, Mapping) else None
    if isinstance(names, Mapping) and sorted(names) == list(range(len(names))):
        names = [names[k] for k in range(len(names))]
    if not isinstance(names, list):
        raise ValueError(f"{path}: 'names' must be a list of class names, or a mapping from 0, 1, ... to them")
    return [str(name) for name in names]


def _label_files(findings: Findings, folder: Path, pictures: Mapping[str, Path], policy: Policy) -> dict[str, Path]:
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder of label files")
    files = {path.stem: path for path in sorted(folder.glob("*.txt")) if path.name not in NAME_FILES}
    alone = [str(path) for stem, path in files.items() if stem not in pictures]
    findings.refuse(
        "label files without an image", range(len(alone)), alone.__getitem__, policy=policy, option="on_missing"
    )
    bare = [stem for stem in pictures if stem not in files]
    findings.note("images without a label file", "taken as empty", range(len(bare)), bare.__getitem__)
    return files


def _read_lines(path: Path) -> list[_Line]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    return [_parse_line(i, line.strip()) for i, line in enumerate(text.splitlines(), start=1) if line.strip()]


def _parse_line(number: int, text: str) -> _Line:
    try:
        category, *box = map(float, text.split())
    except ValueError:
        category, box = np.nan, []
    if len(box) != 4:
        box = [np.nan] * 4
    is_index = 0 <= category < 2**31 and float(category).is_integer()
    return _Line(number, text, int(category) if is_index else -1, tuple(box))


def _raw_annotations(
    records: Sequence[ImageRecord], lines: Sequence[Sequence[_Line]], num_classes: int
) -> RawAnnotations:
    found = [line for of_image in lines for line in of_image]
    owners = np.array([i for i, of_image in enumerate(lines) for _ in of_image], dtype=np.int64)
    sizes = np.array([r.size for r in records], dtype=np.float64).reshape(-1, 2)[owners]
    relative = np.array([line.box for line in found], dtype=np.float64).reshape(-1, 4)
    pixels = relative * np.concatenate([sizes[:, ::-1], sizes[:, ::-1]], axis=1)
    boxes = np.concatenate([pixels[:, :2] - pixels[:, 2:] / 2, pixels[:, 2:]], axis=1)
    categories = np.array([line.category for line in found], dtype=np.int64)

    def describe(row: int) -> str:
        return f"line {found[row].number} of {records[owners[row]].name}: {found[row].text[:80]!r}"

    return RawAnnotations(
        image=owners,
        boxes=boxes,
        labels=np.where((categories >= 0) & (categories < num_classes), categories, -1),
        area=boxes[:, 2] * boxes[:, 3],
        crowd=np.zeros(len(found), dtype=bool),
        ids=np.arange(1, len(found) + 1, dtype=np.int64),
        describe=describe,
    )
