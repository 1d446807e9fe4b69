"""YOLO's layout: for each image a text file with one line per object, "class cx cy w h" relative to the image."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import yaml

from detkit.config import DATASETS
from detkit.data.datasets.base import DetectionDataset
from detkit.data.datasets.checks import ImageRecord, Oddity, RawAnnotations, check_annotations, note_names
from detkit.data.datasets.files import IMAGE_ENDINGS, list_files, read_sizes, read_text
from detkit.data.datasets.findings import Findings, Policy
from detkit.data.decode import read_image
from detkit.structures import Categories

#: Where the class names are looked for, in this order, when the config does not give them.
NAME_FILES = ("data.yaml", "classes.txt", "obj.names")

#: What data.yaml calls the images of a split.
SPLITS = ("train", "val", "test")

#: A share of the image may lie a little over the border, but from here on it is a number of pixels.
MAX_SHARE = 2.0


@DATASETS
class YoloDataset(DetectionDataset):
    """A data set in YOLO's layout: a folder of images, and a folder of text files with the same names.

    Both are read with their subfolders, which are then part of the names. A line holds a class and "cx cy w h"; or the
    corners of a polygon, of which the box round it is taken, as ultralytics does (segments2boxes in utils/ops.py); or,
    where data.yaml has a ``kpt_shape``, a box and its keypoints, which are left out.

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
        on_bad_annotation: what to do about lines that no one can use (neither box nor polygon, an unknown class) and
            text files that cannot be read: "error", or "skip" them (counted).

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
        note_names(findings, names)
        _note_other_folders(findings, base, images)
        pictures = list_files(findings, base / images, IMAGE_ENDINGS)
        label_files = _label_files(findings, label_folder, pictures, on_missing)
        sizes = read_sizes(findings, list(pictures.values()), on_missing)
        records = [
            ImageRecord(i, stem, str(file), sizes[file])
            for i, (stem, file) in enumerate(pictures.items(), start=1)
            if file in sizes
        ]
        claimed = {r.name: label_files[r.name] for r in records if r.name in label_files}
        of_name = _read_all(findings, claimed, _num_keypoint_values(base), on_bad_annotation)
        lines = [of_name.get(r.name, []) for r in records]
        raw = _raw_annotations(records, lines, len(names))
        known = [str(k) for k in range(len(names))]
        self.truths, self.report = check_annotations(findings, records, raw, known, on_missing, on_bad_annotation)

    def read(self, index: int) -> np.ndarray:
        truth = self.truths[index]
        return read_image(truth.file, truth.size)


class _Line(NamedTuple):
    """One line of a label file: where it stands, its text, the class, and cx cy w h (NaN where it is no box).

    ``form`` says what the box was taken from; ``largest`` is the largest number that should be a share of the image.
    """

    number: int
    text: str
    category: int
    box: tuple[float, ...]
    form: Literal["box", "polygon", "keypoints"]
    largest: float


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
    names = _names_of_yaml(path) if path.suffix == ".yaml" else _names_of_text(path)
    if not names:
        raise ValueError(f"{path}: no class names")
    if not all(names):
        raise ValueError(f"{path}: the name of class {names.index('')} is empty")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{path}: class names given more than once: {', '.join(twice)}")
    said = _key_of_yaml(path, "nc") if path.suffix == ".yaml" else None
    if said is not None and said.value != str(len(names)):
        raise ValueError(f"{path}: 'nc' says {said.value}, and 'names' has {len(names)} classes: {', '.join(names)}")
    return tuple(names)


def _note_other_folders(findings: Findings, base: Path, images: str) -> None:
    """Count what data.yaml calls its images where none of it is what is read: it may be of another data set.

    What stands there is relative to its ``path``, to the file itself, or to a folder beside it, as its writers have it.
    """
    path = base / NAME_FILES[0]
    nodes = {key: _key_of_yaml(path, key) for key in ("path", *SPLITS)} if path.is_file() else {}
    said = {key: node.value for key, node in nodes.items() if isinstance(node, yaml.ScalarNode) and node.value}
    folders = {key: said[key] for key in SPLITS if key in said and not said[key].endswith(".txt")}
    wanted = os.path.abspath(base / images)
    starts = (base / said.get("path", ""), base, base / "folder")
    found = [f"{key}: {value}" for key, value in folders.items()]
    if not any(os.path.abspath(start / value) == wanted for start in starts for value in folders.values()):
        findings.note(
            f"data.yaml names other folders of images than {images}",
            "not followed: its names of classes are taken for what is read",
            range(len(found)),
            found.__getitem__,
        )


def _names_of_text(path: Path) -> list[str]:
    """A name on each line; empty lines at the end count for nothing, one in between would shift all that follow."""
    text = read_text(path).rstrip()
    return [line.strip() for line in text.split("\n")] if text else []


def _names_of_yaml(path: Path) -> list[str]:
    """The names as they stand in the file: not what YAML makes of yes, 007 or null."""
    node = _key_of_yaml(path, "names")
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value]
        by_key = {key: value for key, (_, value) in zip(keys, node.value, strict=True)}
        if sorted(keys) == sorted(map(str, range(len(keys)))):
            items = [by_key[str(k)] for k in range(len(keys))]
        else:
            items = None
    else:
        items = node.value if isinstance(node, yaml.SequenceNode) else None
    if items is None or not all(isinstance(item, yaml.ScalarNode) for item in items):
        raise ValueError(f"{path}: 'names' must be a list of class names, or a mapping from 0, 1, ... to them")
    return [item.value for item in items]


def _key_of_yaml(path: Path, key: str) -> yaml.Node | None:
    """The last node of ``key`` at the top of a YAML file, as it stands there."""
    try:
        content = yaml.compose(read_text(path), Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    pairs = content.value if isinstance(content, yaml.MappingNode) else []
    found = [value for name, value in pairs if name.value == key]
    if len(found) > 1:
        raise ValueError(f"{path}: {key!r} stands there {len(found)} times")
    return found[0] if found else None


def _num_keypoint_values(base: Path) -> int:
    """How many numbers follow the box on a line, by data.yaml's ``kpt_shape`` [points, 2 or 3]; 0 without one."""
    path = base / NAME_FILES[0]
    node = _key_of_yaml(path, "kpt_shape") if path.is_file() else None
    if node is None:
        return 0
    try:
        points, values = (int(item.value) for item in node.value)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: 'kpt_shape' must be two whole numbers") from error
    return points * values


def _label_files(findings: Findings, folder: Path, pictures: Mapping[str, Path], policy: Policy) -> dict[str, Path]:
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder of label files")
    found = list_files(findings, folder, (".txt",))
    files = {stem: path for stem, path in found.items() if stem in pictures or path.name not in NAME_FILES}
    alone = [str(path) for stem, path in files.items() if stem not in pictures]
    findings.refuse(
        "label files without an image", range(len(alone)), alone.__getitem__, policy=policy, option="on_missing"
    )
    bare = [stem for stem in pictures if stem not in files]
    findings.note("images without a label file", "taken as empty", range(len(bare)), bare.__getitem__)
    return files


def _read_all(
    findings: Findings, files: Mapping[str, Path], num_keypoint_values: int, policy: Policy
) -> dict[str, list[_Line]]:
    found: dict[str, list[_Line]] = {}
    broken: list[str] = []
    for name, path in files.items():
        try:
            lines = read_text(path).splitlines()
        except ValueError as error:
            broken.append(str(error))
            continue
        numbered = [(i, line.strip()) for i, line in enumerate(lines, start=1) if line.strip()]
        found[name] = [_parse_line(i, line, num_keypoint_values) for i, line in numbered]
    findings.refuse(
        "unreadable label files", range(len(broken)), broken.__getitem__, policy=policy, option="on_bad_annotation"
    )
    return found


def _parse_line(number: int, text: str, num_keypoint_values: int) -> _Line:
    try:
        category, *values = map(float, text.split())
    except ValueError:
        category, values = np.nan, []
    form = "box"
    if num_keypoint_values and len(values) == 4 + num_keypoint_values:
        form, values = "keypoints", values[:4]
    elif len(values) >= 6 and len(values) % 2 == 0:
        form = "polygon"
    largest = max(values, default=np.nan)
    box = _box_round(values) if form == "polygon" else values if len(values) == 4 else [np.nan] * 4
    is_index = 0 <= category < 2**31 and float(category).is_integer()
    return _Line(number, text, int(category) if is_index else -1, tuple(box), form, largest)


def _box_round(values: Sequence[float]) -> list[float]:
    """cx cy w h of the box round the corners x1 y1 x2 y2 ..."""
    points = np.array(values).reshape(-1, 2)
    low, high = points.min(axis=0), points.max(axis=0)
    return [*((low + high) / 2).tolist(), *(high - low).tolist()]


def _raw_annotations(
    records: Sequence[ImageRecord], lines: Sequence[Sequence[_Line]], num_classes: int
) -> RawAnnotations:
    found = [line for of_image in lines for line in of_image]
    owners = np.array([i for i, of_image in enumerate(lines) for _ in of_image], dtype=np.int64)
    sizes = np.array([r.size for r in records], dtype=np.float64).reshape(-1, 2)[owners]
    relative = np.array([line.box for line in found], dtype=np.float64).reshape(-1, 4)
    with np.errstate(over="ignore", invalid="ignore"):  # what is too large for a number is refused by the check
        pixels = relative * np.concatenate([sizes[:, ::-1], sizes[:, ::-1]], axis=1)
        boxes = np.concatenate([pixels[:, :2] - pixels[:, 2:] / 2, pixels[:, 2:]], axis=1)
        area = boxes[:, 2] * boxes[:, 3]
    form = np.array([line.form for line in found], dtype=str)
    in_px = np.array([line.largest > MAX_SHARE for line in found], dtype=bool)
    categories = np.array([line.category for line in found], dtype=np.int64)

    def describe(row: int) -> str:
        return f"line {found[row].number} of {records[owners[row]].name}: {found[row].text[:80]!r}"

    return RawAnnotations(
        image=owners,
        boxes=boxes,
        labels=np.where((categories >= 0) & (categories < num_classes), categories, -1),
        area=area,
        crowd=np.zeros(len(found), dtype=bool),
        ids=np.arange(1, len(found) + 1, dtype=np.int64),
        describe=describe,
        oddities=(
            Oddity("polygons", "the box round each is taken", form == "polygon"),
            Oddity("boxes with keypoints", "the box is taken, the keypoints are left out", form == "keypoints"),
            Oddity("numbers above 2, where shares of the image stand", "taken as shares: these look like px", in_px),
        ),
    )
