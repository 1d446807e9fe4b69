"""All annotations of a data set in a few arrays, read image by image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, overload

import numpy as np

from detkit.structures import GroundTruth, Landmarks

#: A box must be at least this wide and high (px) inside its image to train on: below it, resizing and float32 can make
#: the two sides meet.
MIN_SIDE = 0.05


class Strings(Sequence[str]):
    """I strings in two arrays, so that no process copies pages for their reference counts.

    Args:
        letters: (B,) uint8, the UTF-8 of all strings, one after another.
        ends: (I,) int64, where in it each one ends.
    """

    __slots__ = ("ends", "letters")

    def __init__(self, letters: np.ndarray, ends: np.ndarray) -> None:
        self.letters = letters
        self.ends = ends

    @classmethod
    def of(cls, texts: Iterable[str]) -> Strings:
        """``texts`` in their order; names that are no Unicode keep their bytes."""
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        letters = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        return cls(letters, np.cumsum([len(text) for text in encoded], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        start = self.ends[index - 1] if index else 0
        return self.letters[start : self.ends[index]].tobytes().decode("utf-8", "surrogatepass")


class Place(Protocol):
    """Where a table lies on the disk."""

    def is_there(self) -> bool:
        """Whether it still does."""
        ...

    def open(self) -> TruthTable:
        """The table, from there."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class TruthTable(Sequence[GroundTruth]):
    """A sequence of GroundTruth, kept as columns: I images with M annotations.

    Lists of objects would be copied page by page into every worker as their reference counts are touched; arrays are
    shared, and checks run over all boxes at once. ``image_ids`` (I,) int64; ``files`` I paths; ``sizes`` (I, 2) int64
    (h, w) px; ``offsets`` (I + 1,) int64: image i has the rows from offsets[i] to offsets[i + 1]; ``boxes`` (M, 4)
    float64 x y w h px; ``labels``, ``area``, ``crowd`` and ``annotation_ids`` (M,) as in GroundTruth; ``landmarks`` of
    all M, where the file has any. ``stored``: the file that the arrays are mapped from, if they are; a process that the
    table is sent to then maps it as well.
    """

    image_ids: np.ndarray
    files: Strings
    sizes: np.ndarray
    offsets: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    area: np.ndarray
    crowd: np.ndarray
    annotation_ids: np.ndarray
    landmarks: Landmarks | None = None
    stored: Place | None = None

    def __len__(self) -> int:
        return len(self.files)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.stored is not None and self.stored.is_there():
            return self.stored.open, ()
        return TruthTable, tuple(getattr(self, f.name) for f in fields(self) if f.name != "stored")

    @overload
    def __getitem__(self, index: int) -> GroundTruth: ...
    @overload
    def __getitem__(self, index: slice) -> list[GroundTruth]: ...
    def __getitem__(self, index: int | slice) -> GroundTruth | list[GroundTruth]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        rows = slice(self.offsets[index], self.offsets[index + 1])
        return GroundTruth(
            image_id=int(self.image_ids[index]),
            file=self.files[index],
            size=(int(self.sizes[index, 0]), int(self.sizes[index, 1])),
            boxes=self.boxes[rows],
            labels=self.labels[rows],
            area=self.area[rows],
            crowd=self.crowd[rows],
            annotation_ids=self.annotation_ids[rows],
            landmarks=None if self.landmarks is None else self.landmarks.select(rows),
        )

    def __iter__(self) -> Iterator[GroundTruth]:
        return (self[i] for i in range(len(self)))

    def select(self, places: np.ndarray) -> TruthTable:
        """The images at ``places`` (S,), in that order."""
        rows = np.concatenate([np.zeros(0, np.int64), *(np.arange(*self.offsets[i : i + 2]) for i in places.tolist())])
        counts = np.diff(self.offsets)[places]
        return TruthTable(
            image_ids=self.image_ids[places],
            files=Strings.of(self.files[i] for i in places.tolist()),
            sizes=self.sizes[places],
            offsets=np.concatenate([[0], np.cumsum(counts)]),
            boxes=self.boxes[rows],
            labels=self.labels[rows],
            area=self.area[rows],
            crowd=self.crowd[rows],
            annotation_ids=self.annotation_ids[rows],
            landmarks=None if self.landmarks is None else self.landmarks.select(rows),
        )

    @property
    def owners(self) -> np.ndarray:
        """(M,) int64: the position of each annotation's image."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))


def find_wanted(truths: Sequence[GroundTruth]) -> np.ndarray:
    """(M,) bool: which objects, image after image, have an area to train on and are no crowd."""
    if isinstance(truths, TruthTable):  # all at once: COCO's take 3 s one by one
        return is_usable(clipped_corners(truths.boxes, truths.sizes[truths.owners])) & ~truths.crowd
    each = (is_usable(clipped_corners(t.boxes, np.array(t.size))) & ~t.crowd for t in truths)
    return np.concatenate([np.zeros(0, bool), *each])


def owners_of(truths: Sequence[GroundTruth]) -> np.ndarray:
    """(M,) int64: the position of each annotation's image."""
    if isinstance(truths, TruthTable):
        return truths.owners
    return np.repeat(np.arange(len(truths)), [len(t) for t in truths])


def count_wanted(truths: Sequence[GroundTruth]) -> np.ndarray:
    """(I,) int64: the objects of each image that have an area to train on and are no crowd."""
    return np.bincount(owners_of(truths)[find_wanted(truths)], minlength=len(truths))


def count_classes(truths: Sequence[GroundTruth], num_classes: int) -> tuple[int, ...]:
    """The objects of each class that are to be found, so no crowds."""
    if isinstance(truths, TruthTable):
        labels = truths.labels[~truths.crowd]
    else:
        labels = np.concatenate([t.labels[~t.crowd] for t in truths] or [np.zeros(0, np.int64)])
    return tuple(np.bincount(labels, minlength=num_classes).tolist())


def clipped_corners(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Boxes (M, 4) x y w h px as x1 y1 x2 y2, cut at the border of their images of ``sizes`` (M, 2) or (2,) (h, w)."""
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    w_h_w_h = np.concatenate([sizes[..., ::-1], sizes[..., ::-1]], axis=-1)
    return corners.clip(0, w_h_w_h)


def is_usable(corners: np.ndarray) -> np.ndarray:
    """(M,) bool: which of the clipped boxes (M, 4) have an area to train on."""
    return (corners[:, 2:] - corners[:, :2]).min(axis=1) >= MIN_SIDE
