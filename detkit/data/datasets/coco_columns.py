"""COCO's JSON read straight into columns: a typed decoder for the files that have nothing odd in them."""

from __future__ import annotations

import json
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np

from detkit.data.datasets.coco_keypoints import points_of

_Whole = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_Side = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
_Text = Annotated[str, msgspec.Meta(pattern=r"\S")]
_Number = int | float

#: So many annotations are Python objects at a time: enough to cost nothing, few enough to take no memory.
_BLOCK = 20_000


class ImageEntry(msgspec.Struct, gc=False):
    """One of "images": ``height`` and ``width`` px, ``file_name`` relative to the folder of images."""

    id: _Whole
    file_name: _Text
    height: _Side
    width: _Side


class CategoryEntry(msgspec.Struct, gc=False):
    """One of "categories"; ``keypoints`` as the file has it."""

    id: _Whole
    name: _Text
    keypoints: Any = None


class AnnotationEntry(msgspec.Struct, gc=False):
    """One of "annotations": ``bbox`` x y w h px, ``area`` px^2; what else stands there (polygons) is passed over."""

    id: _Whole
    image_id: _Whole
    category_id: _Whole
    bbox: tuple[_Number, _Number, _Number, _Number]
    area: float | None = None
    iscrowd: bool | int = 0


class _PointsEntry(msgspec.Struct, gc=False):
    """The same of a file with landmarks, which alone pays for reading them: ``keypoints`` as it has them."""

    keypoints: Any = None


class _File(msgspec.Struct):
    """The whole; annotations stay the bytes that they are, so that not all are objects at once."""

    images: list[ImageEntry]
    annotations: list[msgspec.Raw]
    categories: list[CategoryEntry]


@dataclass(frozen=True, slots=True, eq=False)
class CocoColumns:
    """A COCO file's I images, K categories and M annotations, in the file's order.

    ``image_ids``, ``category_ids`` and ``ids`` (M,) int64; ``boxes`` (M, 4) float64 x y w h px; ``area`` (M,) float64
    px^2, NaN where there is none; ``crowd`` (M,) bool.
    """

    images: Sequence[ImageEntry]
    categories: Sequence[CategoryEntry]
    image_ids: np.ndarray
    category_ids: np.ndarray
    ids: np.ndarray
    boxes: np.ndarray
    area: np.ndarray
    crowd: np.ndarray
    _annotations: Sequence[msgspec.Raw]

    def points(self, num: int) -> np.ndarray:
        """(M, ``num``, 3): see :func:`~detkit.data.datasets.coco_keypoints.points_of`, block by block."""
        decode = msgspec.json.Decoder(_PointsEntry).decode
        starts = range(0, len(self._annotations), _BLOCK)
        blocks = [[decode(raw).keypoints for raw in self._annotations[i : i + _BLOCK]] for i in starts]
        return np.concatenate([np.zeros((0, num, 3)), *(points_of(block, num) for block in blocks)])

    def annotation(self, row: int) -> dict[str, Any]:
        """Annotation ``row`` with all of its keys, as it stands in the file."""
        return json.loads(bytes(self._annotations[row]))


def read_columns(path: Path) -> CocoColumns | None:
    """The columns of the file at ``path``; None where a key is missing or of another type, or it is no such file.

    The file is mapped, not read: its pages are given back once they are decoded. What is found here is what the careful
    reader in ``coco.py`` would find; what it must tell the user about, it finds itself.
    """
    try:
        with open(path, "rb") as stream:
            content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):  # ValueError: an empty file
        return None
    try:
        file = msgspec.json.decode(content, type=_File)
        blocks = _blocks(file.annotations)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError):  # the last: a number for no array
        return None
    if hasattr(mmap, "MADV_DONTNEED"):
        content.madvise(mmap.MADV_DONTNEED)
    crowd = blocks.pop("iscrowd")
    if not np.isin(crowd, (0, 1)).all():
        return None
    image_ids, category_ids, ids = (blocks[name] for name in ("image_id", "category_id", "id"))
    return CocoColumns(
        file.images, file.categories, image_ids, category_ids, ids, blocks["bbox"], blocks["area"],
        crowd.astype(bool), file.annotations,
    )  # fmt: skip


def _blocks(annotations: Sequence[msgspec.Raw]) -> dict[str, np.ndarray]:
    """Name -> column, filled block by block."""
    num = len(annotations)
    columns = {name: np.empty(num, np.int64) for name in ("id", "image_id", "category_id", "iscrowd")}
    columns |= {"bbox": np.empty((num, 4)), "area": np.empty(num)}
    decode = msgspec.json.Decoder(AnnotationEntry).decode
    for start in range(0, num, _BLOCK):
        entries = [decode(raw) for raw in annotations[start : start + _BLOCK]]
        for name, column in columns.items():
            values = [getattr(entry, name) for entry in entries]
            column[start : start + _BLOCK] = np.array(values, dtype=column.dtype)  # of None it makes NaN
    return columns
