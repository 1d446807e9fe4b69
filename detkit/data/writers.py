"""Data sets written in the layouts that detkit reads, and what each of them cannot hold."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args
from xml.etree import ElementTree

import numpy as np
import yaml

from detkit.data.coco_keys import OtherKeys
from detkit.data.datasets.base import DetectionDataset
from detkit.data.datasets.coco_keypoints import keypoints
from detkit.data.datasets.files import IMAGE_ENDINGS, normal_name
from detkit.data.datasets.table import clipped_corners, is_usable
from detkit.data.decode import ImageError, orientation_left_out, turned_corners
from detkit.structures import GroundTruth

Layout = Literal["coco", "voc", "yolo"]
LAYOUTS = get_args(Layout)

#: What XML 1.0 has no way to write, and a carriage return, which is read as another sign.
_NOT_IN_XML = re.compile("[^\\t\\n\\x20-\\ud7ff\\ue000-\\ufffd\\U00010000-\\U0010ffff]")

#: Decimals of YOLO's shares: with six a corner is exact to a thousandth of a pixel in pictures of up to 1300 px.
DECIMALS = 6


@dataclass
class Losses:
    """What a layout could not hold: ``counts`` of what happened, ``moved`` the most that a corner moved (px)."""

    counts: Counter[str] = field(default_factory=Counter)
    moved: float = 0.0

    def describe(self) -> list[str]:
        """A line for each kind."""
        lines = [f"{what}: {count}" for what, count in self.counts.items() if count]
        return lines + ([f"corners moved by up to {self.moved:.2g} px, as the format rounds"] if self.moved else [])


def relative_names(dataset: DetectionDataset) -> list[str]:
    """The path of each picture below the folder that all are in, with slashes."""
    files = [os.path.abspath(truth.file) for truth in dataset.truths]
    folder = os.path.commonpath([os.path.dirname(file) for file in files])
    return [normal_name(os.path.relpath(file, folder)) for file in files]


def write(
    dataset: DetectionDataset,
    layout: Layout,
    parts: Mapping[str, Sequence[int]],
    folder: Path,
    is_linked: bool,
    coco_files: Mapping[str, str | None] | None = None,
    names: Sequence[str] | None = None,
) -> Losses:
    """Write ``dataset`` into the empty ``folder``, as ``data=<layout> data.root=<folder>`` reads it.

    - "coco" holds all: ids, boxes, areas and landmarks stay what they are, and so do the other keys of ``coco_files``.
    - "voc" counts whole pixels: corners are rounded to the nearest, and boxes cut at the border of their image. Crowds
      become difficult.
    - "yolo" has shares with six decimals, boxes cut at the border, and no crowds: they are left out. Boxes that count
      the pixels as they lie are turned by the file's EXIF orientation, which every reader of YOLO's applies.

    In the latter two ids are not kept, nor the areas of masks nor landmarks, and boxes without area inside their image
    are left out.

    Args:
        dataset: what to write.
        parts: name -> places of its images in ``dataset``.
        is_linked: pictures become symbolic links to the old ones, not copies.
        coco_files: name of a part -> the file that it was read from, if its layout is COCO's.
        names: the path of each picture below the folder of pictures; by default as in :func:`relative_names`.

    Raises:
        ValueError: two pictures would be one file or have the same annotation file, a picture would not be found, or
            XML cannot hold a name or tell two apart.
        OSError: something cannot be written.
    """
    names = relative_names(dataset) if names is None else names
    everything = [i for places in parts.values() for i in places]
    for places in parts.values() if layout == "yolo" else [everything]:  # YOLO's parts have folders of their own
        _check_files(dataset, names, places)
        if layout != "coco":
            _check_stems(names, places)
    if layout != "coco":
        _check_found(names, layout)
    losses = Losses()
    if layout == "voc":
        _check_xml(dataset, names, losses)
    files = coco_files or {}
    keys = {file: OtherKeys(file) for file in {None, *files.values()}}
    write_coco = partial(_write_coco, {part: keys[files.get(part)] for part in parts})
    write_part = write_coco if layout == "coco" else _WRITERS[layout]
    for part, places in parts.items():
        write_part(dataset, names, part, places, folder, losses)
        for i in places:
            target = folder / _PICTURES[layout].format(part=part) / names[i]
            target.parent.mkdir(parents=True, exist_ok=True)
            if os.path.lexists(target):
                continue  # another image of the same file
            if is_linked:
                target.symlink_to(os.path.abspath(dataset.truths[i].file))
            else:
                shutil.copyfile(dataset.truths[i].file, target)
    if layout == "yolo":
        _write_names(dataset, parts, folder)
    elif layout == "voc":
        used = {int(k) for places in parts.values() for i in places for k in dataset.truths[i].labels}
        losses.counts["classes without a box lost: no list names them"] = len(dataset.categories) - len(used)
    return losses


def _check_files(dataset: DetectionDataset, names: Sequence[str], places: Sequence[int]) -> None:
    """Refuse two pictures that differ in the form of their names alone: one would be written over the other."""
    first: dict[str, str] = {}
    for file, name in ((dataset.truths[i].file, names[i]) for i in places):
        if first.setdefault(name, file) != file:
            raise ValueError(f"{first[name]!a} and {file!a} would be one file: {name}; rename one of them")


def _check_found(names: Sequence[str], layout: Layout) -> None:
    """Refuse pictures that readers of the layout, which look into folders, would leave out."""
    for name in names:
        stem, ending = os.path.splitext(name)
        if ending.lower() not in IMAGE_ENDINGS:
            reason = f"has none of the endings {', '.join(IMAGE_ENDINGS)}"
        elif any(part.startswith(".") for part in PurePosixPath(name).parts[:-1]):
            reason = "lies in a hidden folder"
        elif layout == "voc" and stem != stem.strip():
            reason = "has a blank at an end of its name"
        else:
            continue
        raise ValueError(f"{name!r} {reason}, so {layout} would not find it; to=coco can hold it")


def _check_stems(names: Sequence[str], places: Sequence[int]) -> None:
    seen: dict[str, str] = {}
    for name in (names[i] for i in places):
        stem = os.path.splitext(name)[0]
        if stem in seen:
            raise ValueError(f"{seen[stem]} and {name} would have the same annotation file; to=coco can hold both")
        seen[stem] = name


def _check_xml(dataset: DetectionDataset, names: Sequence[str], losses: Losses) -> None:
    """Refuse names of pictures and classes that XML cannot hold, and those of classes that it cannot tell apart."""
    if bad := next((name for name in names if _NOT_IN_XML.search(name) or "\n" in name), None):
        raise ValueError(f"{bad!r}: the picture's name has a character that VOC's files cannot hold; to=coco can")
    used = sorted({int(k) for truth in dataset.truths for k in truth.labels})
    read: dict[str, str] = {}
    for name in (dataset.categories.names[k] for k in used):
        way_out = f"merge={{NAME: [{name!r}]}} gives it another name, and to=coco can hold it"
        if _NOT_IN_XML.search(name):
            raise ValueError(f"class {name!r}: has a character that XML cannot hold; {way_out}")
        other = read.setdefault(name.strip(), name)
        if other != name:
            raise ValueError(
                f"classes {other!r} and {name!r} would be one, as VOC's files have no blanks around a name: "
                f"merge={{{name.strip()}: [{other!r}, {name!r}]}} makes them one, and to=coco can hold both"
            )
        losses.counts["names of classes without the blanks around them"] += name != name.strip()


def _write_coco(
    keys: Mapping[str, OtherKeys],
    dataset: DetectionDataset,
    names: Sequence[str],
    part: str,
    places: Sequence[int],
    folder: Path,
    _: Losses,
) -> None:
    content = keys[part].beside(coco_content(dataset, names, places))
    (folder / f"{part}.json").write_text(json.dumps(content))


def coco_content(dataset: DetectionDataset, names: Sequence[str], places: Sequence[int]) -> dict[str, Any]:
    """COCO's JSON of the images at ``places``; ``names``: the file name of each image of ``dataset``."""
    images, annotations = [], []
    for i in places:
        truth = dataset.truths[i]
        h, w = truth.size
        images.append({"id": truth.image_id, "file_name": names[i], "width": w, "height": h})
        rows = zip(truth.annotation_ids, truth.labels, truth.boxes, truth.area, truth.crowd, strict=True)
        points = [{}] * len(truth) if truth.landmarks is None else [keypoints(p) for p in truth.landmarks.points]
        annotations += [
            {
                "id": int(annotation_id), "image_id": truth.image_id, "category_id": dataset.categories.ids[label],
                "bbox": box.tolist(), "area": float(area), "iscrowd": int(crowd),
            } | of_points
            for (annotation_id, label, box, area, crowd), of_points in zip(rows, points, strict=True)
        ]  # fmt: skip
    named = {"keypoints": list(dataset.categories.landmarks), "skeleton": []} if dataset.categories.landmarks else {}
    pairs = zip(dataset.categories.ids, dataset.categories.names, strict=True)
    categories = [{"id": i, "name": n} | named for i, n in pairs]
    return {"images": images, "annotations": annotations, "categories": categories}


def _write_voc(
    dataset: DetectionDataset, names: Sequence[str], part: str, places: Sequence[int], folder: Path, losses: Losses
) -> None:
    lists = folder / "ImageSets" / "Main"
    lists.mkdir(parents=True, exist_ok=True)
    stems = [os.path.splitext(names[i])[0] for i in places]
    (lists / f"{part}.txt").write_text("".join(f"{stem}\n" for stem in stems), encoding="utf-8")
    for i, stem in zip(places, stems, strict=True):
        truth = dataset.truths[i]
        corners, kept = _inside(truth, losses)
        first = np.minimum(corners[:, :2].round(), np.array(truth.size)[::-1] - 1)  # a pixel at least remains
        pixels = np.concatenate([first + 1, np.maximum(corners[:, 2:].round(), first + 1)], axis=1)
        losses.moved = max(losses.moved, float(np.abs(pixels - [1, 1, 0, 0] - corners).max(initial=0.0)))
        losses.counts["crowds written as difficult"] += int(truth.crowd[kept].sum())
        path = folder / "Annotations" / f"{stem}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        objects = zip(truth.labels[kept], pixels.astype(int).tolist(), truth.crowd[kept], strict=True)
        tree = _voc_tree(names[i], truth.size, [(dataset.categories.names[k], box, crowd) for k, box, crowd in objects])
        tree.write(path, encoding="utf-8")


def _voc_tree(
    name: str, size: tuple[int, int], objects: Sequence[tuple[str, Sequence[int], bool]]
) -> ElementTree.ElementTree:
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = PurePosixPath(name).name
    _add(ElementTree.SubElement(root, "size"), width=size[1], height=size[0], depth=3)
    for category, (xmin, ymin, xmax, ymax), crowd in objects:
        node = ElementTree.SubElement(root, "object")
        _add(node, name=category, difficult=int(crowd))
        _add(ElementTree.SubElement(node, "bndbox"), xmin=xmin, ymin=ymin, xmax=xmax, ymax=ymax)
    ElementTree.indent(root)
    return ElementTree.ElementTree(root)


def _add(node: ElementTree.Element, **values: object) -> None:
    for name, value in values.items():
        ElementTree.SubElement(node, name).text = str(value)


def _write_yolo(
    dataset: DetectionDataset, names: Sequence[str], part: str, places: Sequence[int], folder: Path, losses: Losses
) -> None:
    for i in places:
        truth = dataset.truths[i]
        corners, kept = _inside(truth, losses)
        crowd = truth.crowd[kept]
        losses.counts["crowds left out: the format has none"] += int(crowd.sum())
        corners, (h, w) = _as_shown(truth, corners, losses)
        scale = np.array([w, h, w, h])
        shares = np.concatenate([corners[:, :2] + corners[:, 2:], 2 * (corners[:, 2:] - corners[:, :2])], axis=1)
        shares = (shares[~crowd] / 2 / scale).round(DECIMALS)
        back = np.concatenate([shares[:, :2] - shares[:, 2:] / 2, shares[:, :2] + shares[:, 2:] / 2], axis=1) * scale
        losses.moved = max(losses.moved, float(np.abs(back - corners[~crowd]).max(initial=0.0)))
        path = folder / "labels" / part / f"{os.path.splitext(names[i])[0]}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = zip(truth.labels[kept][~crowd], shares.tolist(), strict=True)
        path.write_text("".join(f"{k} {' '.join(f'{s:.{DECIMALS}f}' for s in box)}\n" for k, box in rows))


def _as_shown(truth: GroundTruth, corners: np.ndarray, losses: Losses) -> tuple[np.ndarray, tuple[int, int]]:
    """``corners`` (n, 4) px in the frame of the image as it is shown, the only one that labels in shares can be of, and
    its (h, w)."""
    try:
        orientation = orientation_left_out(truth.file, truth.size)
    except ImageError:  # what no reader can open has no frame; it is copied as it is
        orientation = 1
    if orientation == 1:
        return corners, truth.size
    losses.counts["images whose boxes were turned as their EXIF orientation says"] += 1
    return turned_corners(corners, truth.size, orientation), (truth.size[1], truth.size[0])


def _write_names(dataset: DetectionDataset, parts: Mapping[str, Sequence[int]], folder: Path) -> None:
    content = {part: f"images/{part}" for part in parts} | {"names": dict(enumerate(dataset.categories.names))}
    (folder / "data.yaml").write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _inside(truth: GroundTruth, losses: Losses) -> tuple[np.ndarray, np.ndarray]:
    """The corners (n, 4) px of the boxes that have an area inside the image, cut at its border; (N,) bool, which."""
    corners = clipped_corners(truth.boxes, np.array(truth.size))
    kept = is_usable(corners)
    whole = np.concatenate([truth.boxes[:, :2], truth.boxes[:, :2] + truth.boxes[:, 2:]], axis=1)
    cut = np.abs(whole - corners)[kept].max(axis=1, initial=0.0) > 1e-6
    losses.counts["boxes cut at the border of their image"] += int(cut.sum())
    losses.counts["boxes without area inside their image left out"] += int((~kept).sum())
    points = 0 if truth.landmarks is None else int(truth.landmarks.is_labelled[kept].any(axis=1).sum())
    losses.counts["objects whose landmarks are lost: the format has none"] += points
    losses.counts["areas of masks lost: the format has none"] += int(
        (np.abs(truth.area - truth.boxes[:, 2] * truth.boxes[:, 3])[kept] > 1e-3).sum()
    )
    return corners[kept], kept


_WRITERS = {"voc": _write_voc, "yolo": _write_yolo}
_PICTURES = {"coco": "images", "voc": "JPEGImages", "yolo": "images/{part}"}
