"""From Pascal VOC's XML files to one COCO JSON file."""

from __future__ import annotations

import functools
import math
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from disk import FetchError


@dataclass(frozen=True)
class Picture:
    """One picture to convert: its id, its path relative to the folder of images, its XML file."""

    image_id: int
    file_name: str
    xml: Path


@dataclass
class Counts:
    """What a conversion met. ``dropped`` names each box that was left out, with its file."""

    num_images: int = 0
    num_boxes: int = 0
    num_difficult: int = 0
    num_zero: int = 0
    dropped: list[str] = field(default_factory=list)

    def describe(self) -> str:
        text = f"{self.num_images} images, {self.num_boxes} boxes ({self.num_difficult} difficult, as crowd)"
        if self.dropped:
            text += f"; {len(self.dropped)} boxes without area dropped: {'; '.join(self.dropped)}"
        if self.num_zero:
            text += f"; {self.num_zero} boxes with a corner of 0, where VOC counts from 1"
        return text


def to_coco(
    pictures: Iterable[Picture], classes: Sequence[str], *, inclusive: bool, description: str, first_id: int = 1
) -> tuple[dict[str, Any], Counts]:
    """The content of a COCO file, categories 1, 2, ... in the order of ``classes``, and what was met on the way.

    Difficult objects become ``iscrowd`` 1: not trained on, and detections of them not counted as false. Boxes without
    area are dropped and counted; boxes over the border stay as they are.

    Args:
        inclusive: VOC counts pixels from 1 and names the last one inside, so that a box covers [xmin - 1, xmax) in
            COCO's continuous coordinates, and its width is xmax - xmin + 1. False takes the corners as continuous
            coordinates: the width is xmax - xmin.
        first_id: of the annotations.

    Raises:
        FetchError: an XML file is missing or broken, or has an object of no known class.
    """
    counts = Counts()
    category_ids = {name: k for k, name in enumerate(classes, start=1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for picture in pictures:
        width, height, objects = _read_xml(picture.xml)
        images.append({"id": picture.image_id, "file_name": picture.file_name, "width": width, "height": height})
        for name, corners, difficult in objects:
            if name not in category_ids:
                raise FetchError(f"{picture.xml}: unknown class {name!r}; known are {', '.join(classes)}")
            box = _box(corners, inclusive)
            if box[2] <= 0 or box[3] <= 0:
                counts.dropped.append(f"{picture.xml.name}: {name} {[*corners]}")
                continue
            counts.num_difficult += difficult
            counts.num_zero += inclusive and 0 in corners[:2]
            annotations.append(
                {
                    "id": first_id + len(annotations),
                    "image_id": picture.image_id,
                    "category_id": category_ids[name],
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": int(difficult),
                }
            )
    counts.num_images, counts.num_boxes = len(images), len(annotations)
    categories = [{"id": k, "name": name, "supercategory": "none"} for name, k in category_ids.items()]
    content = {"info": {"description": description}, "licenses": [], "images": images, "annotations": annotations}
    return {**content, "categories": categories}, counts


def read_list(path: Path) -> list[str]:
    """The names in one of ImageSets/Main's lists of images."""
    if not path.is_file():
        raise FetchError(f"{path}: missing: the archive does not have the layout it should have")
    # The lists of single classes have a second column, -1, 0 or 1; a name may have spaces.
    lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    return [re.sub(r"\s+(-1|0|1)$", "", line) for line in lines if line]


def _read_xml(path: Path) -> tuple[int, int, list[tuple[str, tuple[float, ...], bool]]]:
    """Width, height and the objects of a picture: class, xmin, ymin, xmax, ymax as in the file, whether difficult."""
    reader = _reader()
    try:
        file = reader.read_voc_xml(path)
    except ValueError as error:
        raise FetchError(str(error).replace(f"{path}: not XML: ", f"{path}: not readable: ")) from error
    width, height = (
        int(_number(path, f"<size/{side}> of <annotation>", text))
        for side, text in zip(("width", "height"), reversed(file.texts), strict=True)
    )
    if file.size is None:
        raise FetchError(f"{path}: the size {width} x {height} is not one")
    objects = []
    for i, found in enumerate(file.objects, start=1):
        if "<bndbox>" in found.repeated:
            raise FetchError(f"{path}: object {i} has more than one <bndbox>")
        if found.repeated:
            raise FetchError(f"{path}: object {i} has something twice{found.repeated}")
        if found.difficult is None:
            flag = found.flag.strip().lower()
            raise FetchError(f"{path}: <difficult> of object {i} is {flag!r}, not 0, 1, true or false")
        sides = zip(reader.SIDES, found.texts, strict=True)
        corners = tuple(_number(path, f"<bndbox/{side}> of <object>", text) for side, text in sides)
        objects.append((found.name, corners, found.difficult))
    return width, height, objects


@functools.cache
def _reader() -> ModuleType:
    """detkit's own: not imported above, since only conversions need detkit, and it brings torch."""
    sys.path.append(str(Path(__file__).resolve().parents[1]))  # it may lie there without being installed
    from detkit.data.datasets import voc_xml

    return voc_xml


def _number(path: Path, where: str, text: str | None) -> float:
    value = _reader().parse_finite(text)
    if math.isnan(value):
        raise FetchError(f"{path}: {where} is {text!r}, not a number")
    return value


def _box(corners: Sequence[float], inclusive: bool) -> list[float]:
    """Corners of an XML file as COCO's x, y, width, height."""
    x1, y1, x2, y2 = corners
    shift = float(inclusive)
    return [x1 - shift, y1 - shift, x2 - x1 + shift, y2 - y1 + shift]
