"""From Pascal VOC's XML files to one COCO JSON file."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from disk import FetchError

FLAGS = {"0": False, "1": True, "false": False, "true": True}


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


def _read_xml(path: Path) -> tuple[int, int, list[tuple[str, list[float], bool]]]:
    """Width, height and the objects of a picture: class, xmin, ymin, xmax, ymax as in the file, whether difficult."""
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ValueError, ElementTree.ParseError) as error:  # ValueError: an encoding of several bytes
        raise FetchError(f"{path}: not readable: {error}") from error
    width, height = (int(_number(path, root, f"size/{side}")) for side in ("width", "height"))
    if width < 1 or height < 1:
        raise FetchError(f"{path}: the size {width} x {height} is not one")
    objects = []
    for node in root.findall("object"):
        # Only the object's own box: VOC's person layout nests parts (head, hands) with boxes of theirs.
        corners = [_number(path, node, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
        if len(node.findall("bndbox")) > 1:
            raise FetchError(f"{path}: object {len(objects) + 1} has more than one <bndbox>")
        flag = node.findtext("difficult", default="0").strip().lower()
        if flag not in FLAGS:
            raise FetchError(f"{path}: <difficult> of object {len(objects) + 1} is {flag!r}, not 0, 1, true or false")
        difficult = FLAGS[flag]
        objects.append(((node.findtext("name") or "").strip(), corners, difficult))
    return width, height, objects


def _number(path: Path, node: ElementTree.Element, name: str) -> float:
    text = node.findtext(name)
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise FetchError(f"{path}: <{name}> of <{node.tag}> is {text!r}, not a number")
    return value


def _box(corners: Sequence[float], inclusive: bool) -> list[float]:
    """Corners of an XML file as COCO's x, y, width, height."""
    x1, y1, x2, y2 = corners
    shift = float(inclusive)
    return [x1 - shift, y1 - shift, x2 - x1 + shift, y2 - y1 + shift]
