"""Pascal VOC's layout: one XML file for each image, and text files that name the images of a split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from detkit.config import DATASETS
from detkit.data.datasets.base import DetectionDataset
from detkit.data.datasets.checks import Findings, ImageRecord, Policy, RawAnnotations, check_annotations
from detkit.data.datasets.files import list_images, read_sizes
from detkit.data.decode import read_image
from detkit.structures import Categories

Size = tuple[int, int]


@DATASETS
class VocDataset(DetectionDataset):
    """A data set in Pascal VOC's layout: Annotations/*.xml, JPEGImages/, ImageSets/Main/<split>.txt.

    Objects marked difficult become crowd: ignored in training, passed to the evaluator. Images get the ids 1, 2, ... in
    the order of their names, annotations in the order of the files, classes in the order of their names. An XML file
    without a size is no mistake; the picture then tells it.

    Args:
        root: folder of one year (VOCdevkit/VOC2007).
        split: name of the list in ImageSets/Main, without ".txt".
        classes: names of the classes; null takes all that occur in Annotations, of whatever split.
        inclusive: VOC counts pixels from 1 and names the last pixel inside, so that a box covers [xmin - 1, xmax).
            False takes the numbers as continuous coordinates instead, [xmin, xmax): what most converters to XML write.
        on_missing: what to do about images of the list whose picture or XML is not there: "error", or "skip" (counted).
        on_bad_annotation: what to do about objects that no one can use (no four finite corners, a class not in
            ``classes``) and about names that the list has twice: "error", or "skip" (counted).

    Raises:
        ValueError: a list or XML file is missing or broken, the data set is empty, or a record is refused.
    """

    def __init__(
        self,
        *,
        root: str,
        split: str = "train",
        classes: tuple[str, ...] | None = None,
        inclusive: bool = True,
        on_missing: Policy = "error",
        on_bad_annotation: Policy = "error",
    ) -> None:
        base = Path(root)
        list_file = base / "ImageSets" / "Main" / f"{split}.txt"
        self.looked_in = (str(base / "Annotations"),)
        findings = Findings(str(list_file))
        xml_files = {path.stem: path for path in sorted((base / "Annotations").glob("*.xml"))}
        stems = _with_xml(findings, _read_list(list_file), xml_files, base / "Annotations", on_missing)
        parsed = {stem: _parse_xml(xml_files[stem]) for stem in (xml_files if classes is None else set(stems))}
        names = classes or tuple(sorted({o.name for file in parsed.values() for o in file.objects}))
        if not names:
            raise ValueError(f"{base / 'Annotations'}: no XML file has an object, so there are no classes")
        self.categories = Categories(names, tuple(range(1, len(names) + 1)))
        records = _records(findings, stems, parsed, list_images(base / "JPEGImages"), base, on_missing)
        raw = _raw_annotations([(r.name, parsed[r.name].objects) for r in records], names, inclusive)
        self.truths, self.report = check_annotations(findings, records, raw, names, on_missing, on_bad_annotation)

    def read(self, index: int) -> np.ndarray:
        truth = self.truths[index]
        return read_image(truth.file, truth.size)


class _Object(NamedTuple):
    """One ``<object>``: its class, its corners as in the file (NaN where there is no number), whether difficult."""

    name: str
    corners: tuple[float, float, float, float]
    difficult: bool


class _File(NamedTuple):
    size: Size | None
    objects: list[_Object]


def _read_list(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.txt"))) or "none"
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{path}: {reason}; lists in that folder: {known}") from error
    # The lists of single classes have a second column, 1 or -1; the first is the image in all of them.
    return sorted(line.split()[0] for line in lines if line.strip())


def _with_xml(
    findings: Findings, stems: Sequence[str], xml_files: Mapping[str, Path], folder: Path, policy: Policy
) -> list[str]:
    missing = [str(folder / f"{stem}.xml") for stem in stems if stem not in xml_files]
    findings.refuse(
        "missing annotation files", range(len(missing)), missing.__getitem__, policy=policy, option="on_missing"
    )
    return [stem for stem in stems if stem in xml_files]


def _parse_xml(path: Path) -> _File:
    try:
        tree = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise ValueError(f"{path}: not XML: {error}") from error
    h, w = (_number(tree.findtext(f"size/{side}")) for side in ("height", "width"))
    size = (int(h), int(w)) if h >= 1 and w >= 1 else None
    objects = []
    for node in tree.findall("object"):
        name = node.findtext("name")
        if name is None:
            raise ValueError(f"{path}: object {len(objects) + 1} has no <name>")
        corners = tuple(_number(node.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax"))
        difficult = (node.findtext("difficult") or "0").strip() == "1"
        objects.append(_Object(name.strip(), corners, difficult))  # pyright: ignore[reportArgumentType]
    return _File(size, objects)


def _number(text: str | None) -> float:
    """The finite number that ``text`` is, or NaN."""
    try:
        value = float(text or "nan")
    except ValueError:
        return np.nan
    return value if np.isfinite(value) else np.nan


def _records(
    findings: Findings,
    stems: Sequence[str],
    parsed: Mapping[str, _File],
    pictures: Mapping[str, Path],
    base: Path,
    policy: Policy,
) -> list[ImageRecord]:
    unsized = [pictures[s] for s in dict.fromkeys(stems) if parsed[s].size is None and s in pictures]
    findings.note("XML files without a size", "the picture's is taken", range(len(unsized)), lambda i: unsized[i].stem)
    sizes = read_sizes(findings, unsized, policy)
    image_ids = {stem: i for i, stem in enumerate(dict.fromkeys(stems), start=1)}
    records = []
    for stem in stems:
        # A picture that is not there gets the name that VOC would give it; the check then counts it as missing.
        file = pictures.get(stem, base / "JPEGImages" / f"{stem}.jpg")
        size = parsed[stem].size or (sizes.get(file) if stem in pictures else (0, 0))
        if size is not None:
            records.append(ImageRecord(image_ids[stem], stem, str(file), size))
    return records


def _raw_annotations(
    files: Sequence[tuple[str, Sequence[_Object]]], names: Sequence[str], inclusive: bool
) -> RawAnnotations:
    objects = [o for _, found in files for o in found]
    owners = [i for i, (_, found) in enumerate(files) for _ in found]
    numbers = [n for _, found in files for n in range(1, len(found) + 1)]
    label = {name: k for k, name in enumerate(names)}
    corners = np.array([o.corners for o in objects], dtype=np.float64).reshape(-1, 4)
    corners[:, :2] -= float(inclusive)

    def describe(row: int) -> str:
        o = objects[row]
        return f"object {numbers[row]} of {files[owners[row]][0]}: class {o.name!r}, corners {list(o.corners)}"

    return RawAnnotations(
        image=np.array(owners, dtype=np.int64),
        boxes=np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1),
        labels=np.array([label.get(o.name, -1) for o in objects], dtype=np.int64),
        area=np.prod(corners[:, 2:] - corners[:, :2], axis=1),
        crowd=np.array([o.difficult for o in objects], dtype=bool),
        ids=np.arange(1, len(objects) + 1, dtype=np.int64),
        describe=describe,
    )
