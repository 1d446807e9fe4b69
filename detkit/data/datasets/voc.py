"""Pascal VOC's layout: one XML file for each image, and text files that name the images of a split."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from detkit.config import DATASETS
from detkit.data.datasets.base import DetectionDataset
from detkit.data.datasets.checks import ImageRecord, Oddity, RawAnnotations, check_annotations, note_names
from detkit.data.datasets.fields import FLAG_VALUES
from detkit.data.datasets.files import (
    IMAGE_ENDINGS,
    list_files,
    normal_name,
    read_sizes,
    read_text,
    with_nearest,
)
from detkit.data.datasets.findings import Findings, Policy
from detkit.data.datasets.voc_xml import VocFile, VocObject, read_voc_xml
from detkit.data.decode import read_image
from detkit.structures import Categories

ZERO_ADVICE = (
    "so all boxes are probably a pixel off: zero_based=true counts from 0, inclusive=false takes plain corners"
)

#: The second column in the lists of single classes.
_WITH_FLAG = re.compile(r"(.*\S)\s+(?:-1|0|1)")


@DATASETS
class VocDataset(DetectionDataset):
    """A data set in Pascal VOC's layout: Annotations/*.xml, JPEGImages/, ImageSets/Main/<split>.txt.

    Objects marked difficult become crowd: ignored in training, passed to the evaluator. Images get the ids 1, 2, ... in
    the order of their names, annotations in the order of the files, classes in the order of their names. An XML file
    without a size is no mistake; the picture then tells it. Files may lie in subfolders, which are then part of the
    names: "cam1/000012".

    Args:
        root: folder of one year (VOCdevkit/VOC2007).
        split: name of the list in ImageSets/Main, without ".txt".
        classes: names of the classes; null takes all that occur in Annotations, of whatever split.
        inclusive: VOC counts pixels from 1 and names the last pixel inside, so that a box covers [xmin - 1, xmax).
            False takes the numbers as continuous coordinates instead, [xmin, xmax): what most converters to XML write.
        zero_based: the pixels count from 0, so that a box covers [xmin, xmax + 1); only where ``inclusive``.
        on_missing: what to do about images of the list whose picture or XML is not there: "error", or "skip" (counted).
        on_bad_annotation: what to do about objects that no one can use (no four finite corners, two boxes, a class
            not in ``classes``), names that the list has twice, and XML that cannot be read: "error", or "skip"
            (counted).

    Raises:
        ValueError: a list is missing or broken, ``zero_based`` contradicts ``inclusive``, the data set is empty, or a
            record is refused.
    """

    def __init__(
        self,
        *,
        root: str,
        split: str = "train",
        classes: tuple[str, ...] | None = None,
        inclusive: bool = True,
        zero_based: bool = False,
        on_missing: Policy = "error",
        on_bad_annotation: Policy = "error",
    ) -> None:
        if zero_based and not inclusive:
            raise ValueError("zero_based: inclusive=false takes the corners as they are, so no pixel is counted")
        base = Path(root)
        list_file = base / "ImageSets" / "Main" / f"{split}.txt"
        self.looked_in = (str(base / "Annotations"),)
        findings = Findings(str(list_file))
        xml_files = list_files(findings, base / "Annotations", (".xml",))
        pictures = list_files(findings, base / "JPEGImages", IMAGE_ENDINGS)
        stems = _with_xml(findings, _read_list(list_file, xml_files), xml_files, base / "Annotations", on_missing)
        needed = list(xml_files) if classes is None else [s for s in xml_files if s in set(stems)]
        parsed = _parse_all(findings, {stem: xml_files[stem] for stem in needed}, on_bad_annotation)
        stems = [stem for stem in stems if stem in parsed]
        names = classes or tuple(sorted({o.name for file in parsed.values() for o in file.objects}))
        if not names:
            findings.raise_refused()
            raise ValueError(f"{base / 'Annotations'}: no XML file has an object, so there are no classes")
        self.categories = Categories(names, tuple(range(1, len(names) + 1)))
        note_names(findings, names)
        records = _records(findings, stems, parsed, pictures, base, on_missing)
        raw = _raw_annotations([(r.name, parsed[r.name].objects) for r in records], names, inclusive, zero_based)
        self.truths, self.report = check_annotations(findings, records, raw, names, on_missing, on_bad_annotation)

    def read(self, index: int) -> np.ndarray:
        truth = self.truths[index]
        return read_image(truth.file, truth.size)


def _read_list(path: Path, xml_files: Mapping[str, Path]) -> list[str]:
    try:
        lines = read_text(path).split("\n")
    except ValueError as error:
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.txt"))) or "none"
        reason = str(error).removeprefix(f"{path}: ").removeprefix("cannot be read: ")
        raise ValueError(f"{path}: {reason}; lists in that folder: {known}") from error
    return sorted(_listed(normal_name(line.strip()), xml_files) for line in lines if line.strip())


def _listed(line: str, xml_files: Mapping[str, Path]) -> str:
    """The image of a line. A name may have spaces, and end in " 1" as the lists of single classes do."""
    flagged = None if line in xml_files else _WITH_FLAG.fullmatch(line)
    return flagged[1] if flagged else line


def _with_xml(
    findings: Findings, stems: Sequence[str], xml_files: Mapping[str, Path], folder: Path, policy: Policy
) -> list[str]:
    missing = [str(folder / f"{stem}.xml") for stem in stems if stem not in xml_files]
    findings.refuse(
        "missing annotation files",
        range(len(missing)),
        lambda i: with_nearest(missing[i]),
        policy=policy,
        option="on_missing",
    )
    return [stem for stem in stems if stem in xml_files]


def _parse_all(findings: Findings, files: Mapping[str, Path], policy: Policy) -> dict[str, VocFile]:
    parsed: dict[str, VocFile] = {}
    broken: list[str] = []
    for stem, path in files.items():
        try:
            parsed[stem] = read_voc_xml(path)
        except ValueError as error:
            broken.append(str(error))
    findings.refuse(
        "unreadable annotation files",
        range(len(broken)),
        broken.__getitem__,
        policy=policy,
        option="on_bad_annotation",
    )
    return parsed


def _records(
    findings: Findings,
    stems: Sequence[str],
    parsed: Mapping[str, VocFile],
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
    files: Sequence[tuple[str, Sequence[VocObject]]], names: Sequence[str], inclusive: bool, zero_based: bool
) -> RawAnnotations:
    objects = [o for _, found in files for o in found]
    owners = [i for i, (_, found) in enumerate(files) for _ in found]
    numbers = [n for _, found in files for n in range(1, len(found) + 1)]
    label = {name: k for k, name in enumerate(names)}
    corners = np.array([o.corners for o in objects], dtype=np.float64).reshape(-1, 4)
    has_zero = (corners[:, :2] == 0).any(axis=1)
    corners[:, :2] -= float(inclusive and not zero_based)
    corners[:, 2:] += float(zero_based)
    with np.errstate(over="ignore", invalid="ignore"):  # what is too large for a number is refused by the check
        sides = corners[:, 2:] - corners[:, :2]
        area = sides.prod(axis=1)

    def describe(row: int) -> str:
        o = objects[row]
        text = f"object {numbers[row]} of {files[owners[row]][0]}: class {o.name!r}, corners {list(o.corners)}"
        return text + o.repeated + (f", difficult {o.flag!r}" if o.difficult is None else "")

    return RawAnnotations(
        image=np.array(owners, dtype=np.int64),
        boxes=np.concatenate([corners[:, :2], sides], axis=1),
        labels=np.array([label.get(o.name, -1) for o in objects], dtype=np.int64),
        area=area,
        crowd=np.array([o.difficult for o in objects], dtype=bool),
        ids=np.arange(1, len(objects) + 1, dtype=np.int64),
        describe=describe,
        faults=(
            Oddity("objects that have an element twice", "", np.array([bool(o.repeated) for o in objects], dtype=bool)),
            Oddity(
                "<difficult> that is no flag",
                f"A flag is one of {FLAG_VALUES}. ",
                np.array([o.difficult is None for o in objects], dtype=bool),
            ),
        ),
        oddities=(Oddity("corners of 0, where VOC counts from 1", ZERO_ADVICE, has_zero & (inclusive > zero_based)),),
    )
