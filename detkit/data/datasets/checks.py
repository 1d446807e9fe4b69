"""The one check of all annotation formats: what is wrong is an error or counted, and nothing disappears silently."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from detkit.data.datasets.base import DataReport
from detkit.data.datasets.files import Listings, with_nearest
from detkit.data.datasets.findings import Findings, Policy
from detkit.data.datasets.table import Strings, TruthTable, clipped_corners, is_usable
from detkit.structures import Landmarks

#: Boxes may reach this far (px) over the border before it is worth a word: annotation tools round to the next pixel.
BORDER_TOLERANCE = 1.0

#: No picture has so many px on a side; the squares of larger numbers would be no numbers any more.
FURTHEST = 1e9

#: No mask covers more of its box than this, or less: a thin diagonal or two far parts have more (COCO's least: 3.7 %).
MAX_AREA_SHARE = 1.5
MIN_AREA_SHARE = 0.002


class ImageRecord(NamedTuple):
    """One image as its annotations describe it. ``name`` is for messages; ``file`` the path; ``size`` (h, w) px."""

    image_id: int
    name: str
    file: str
    size: tuple[int, int]


class Oddity(NamedTuple):
    """A thing that only one format knows: ``mask`` (M,) bool says which annotations have it.

    ``advice`` is what is done about it, or in a fault the hint that ends in ". ", if there is one.
    """

    problem: str
    advice: str
    mask: np.ndarray


@dataclass(frozen=True, slots=True)
class RawAnnotations:
    """M annotations as read, before any check.

    ``image`` (M,) int64 position in the list of images, -1 for none; ``boxes`` (M, 4) float64 x y w h px, NaN where the
    file has something else than four numbers; ``labels`` (M,) int64, -1 for an unknown category; ``area`` (M,) float64
    px^2, NaN where the file gives none; ``crowd`` (M,) bool; ``ids`` (M,) int64. ``describe(row)`` says what the file
    has in a row: "annotation 17 of a.jpg: category 99, box [1, 2, 3, 4]". ``faults`` make an annotation unusable,
    ``oddities`` are worth knowing. ``landmarks`` of all M, where the file has any.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    area: np.ndarray
    crowd: np.ndarray
    ids: np.ndarray
    describe: Callable[[int], str]
    faults: tuple[Oddity, ...] = ()
    oddities: tuple[Oddity, ...] = ()
    landmarks: Landmarks | None = None

    def select(self, rows: np.ndarray, image: np.ndarray) -> RawAnnotations:
        """The sound annotations ``rows`` (integers), with ``image`` as the new positions of all images' annotations."""
        describe = self.describe
        return RawAnnotations(
            *(column[rows] for column in (image, self.boxes, self.labels, self.area, self.crowd, self.ids)),
            describe=lambda row: describe(int(rows[row])),
            oddities=tuple(o._replace(mask=o.mask[rows]) for o in self.oddities),
            landmarks=None if self.landmarks is None else self.landmarks.select(rows),
        )


def note_names(findings: Findings, names: Sequence[str]) -> None:
    """Count the classes whose names are one but for case and blanks: slips of the keyboard, more often than not."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault("".join(name.split()).casefold(), []).append(name)
    several = [", ".join(repr(name) for name in group) for group in alike.values() if len(group) > 1]
    findings.note(
        "class names that differ by case or blanks alone",
        "kept as classes of their own; convert merge= joins them",
        range(len(several)),
        several.__getitem__,
    )


def check_annotations(
    findings: Findings,
    images: Sequence[ImageRecord],
    raw: RawAnnotations,
    known_categories: Sequence[str],
    on_missing: Policy,
    on_bad_annotation: Policy,
) -> tuple[TruthTable, DataReport]:
    """Check images and annotations once, and put what is kept into a table sorted by image id.

    Left out are only records that no one could use (see ``Findings.refuse``), and only where the policy allows it;
    boxes that merely cannot be trained on (no area inside the image) stay in the table, so that the evaluator sees the
    very annotations of the file.

    Args:
        known_categories: the K categories as the annotations of this format name them (ids or names), for messages.

    Raises:
        ValueError: the data set is empty, or has records that the policy does not allow to leave out, or the
            ``findings`` hold something to refuse it for.
    """
    if not images:
        findings.raise_refused()
        raise ValueError(f"{findings.source}: the data set is empty: no images")
    keep_image = _kept_images(findings, images, on_missing, on_bad_annotation)
    order = sorted(_rows(keep_image), key=lambda i: images[i].image_id)
    if not order:
        findings.raise_refused()
        raise ValueError(f"{findings.source}: the data set is empty: none of its {len(images)} images is there")
    place = np.full(len(images) + 1, -1)  # the last entry serves image == -1
    place[order] = np.arange(len(order))
    good = _good_rows(findings, raw, known_categories, on_bad_annotation)
    rows = np.flatnonzero(good & (place[raw.image] >= 0))
    rows = rows[np.argsort(place[raw.image[rows]], kind="stable")]
    raw = raw.select(rows, place[raw.image])
    table = _table([images[i] for i in order], raw)
    num_trainable = _count_remarkable(findings, table, raw, [images[i].name for i in order])
    findings.raise_refused()
    report = DataReport(
        findings.source, len(table), len(table.labels), num_trainable, len(known_categories), tuple(findings)
    )
    return table, report


def _kept_images(
    findings: Findings, images: Sequence[ImageRecord], on_missing: Policy, on_bad_annotation: Policy
) -> np.ndarray:
    twice = _has_successor(np.array([image.image_id for image in images]))
    findings.refuse(
        "duplicate image ids",
        _rows(twice),
        lambda i: f"id {images[i].image_id} ({images[i].name})",
        policy=on_bad_annotation,
        option="on_bad_annotation",
    )
    _note_same_files(findings, images, twice)
    listings = Listings()
    missing = np.array([image.file not in listings for image in images]) & ~twice
    findings.refuse(
        "missing image files",
        _rows(missing),
        lambda i: with_nearest(images[i].file),
        policy=on_missing,
        option="on_missing",
    )
    return ~(twice | missing)


def _note_same_files(findings: Findings, images: Sequence[ImageRecord], twice: np.ndarray) -> None:
    """Count the images whose file an earlier one has, which count twice in training and in every score."""
    first: dict[str, int] = {}
    again = [i for i in _rows(~twice) if first.setdefault(images[i].file, i) != i]

    def describe(row: int) -> str:
        return f"{images[row].name}: ids {images[first[images[row].file]].image_id} and {images[row].image_id}"

    findings.note("images with the file of another", "kept, each with its own boxes", again, describe)


def _good_rows(findings: Findings, raw: RawAnnotations, known_categories: Sequence[str], policy: Policy) -> np.ndarray:
    known = f"Known are {', '.join(known_categories[:10])}{', ...' if len(known_categories) > 10 else ''}. "
    good = np.ones(len(raw.ids), dtype=bool)
    for problem, hint, bad in (
        *raw.faults,
        ("annotations of an unknown image", "", raw.image < 0),
        ("boxes that are not four finite numbers", "", ~np.isfinite(raw.boxes).all(axis=1)),
        (f"boxes with a number beyond {FURTHEST:g} px", "", (np.abs(raw.boxes) > FURTHEST).any(axis=1)),
        ("annotations of an unknown category", known, raw.labels < 0),
        ("duplicate annotation ids", "", _has_successor(raw.ids)),
    ):
        rows = _rows(bad & good)
        findings.refuse(problem, rows, raw.describe, policy=policy, option="on_bad_annotation", hint=hint)
        good[rows] = False
    return good


def _has_successor(ids: np.ndarray) -> np.ndarray:
    """Which of ``ids`` (N,) occur again further on: of several records with one id pycocotools, too, takes the last."""
    again = np.ones(len(ids), dtype=bool)
    again[len(ids) - 1 - np.unique(ids[::-1], return_index=True)[1]] = False
    return again


def _rows(mask: np.ndarray) -> list[int]:
    return np.flatnonzero(mask).tolist()


def _table(images: Sequence[ImageRecord], raw: RawAnnotations) -> TruthTable:
    counts = np.bincount(raw.image, minlength=len(images))
    return TruthTable(
        image_ids=np.array([image.image_id for image in images], dtype=np.int64),
        files=Strings.of(image.file for image in images),
        sizes=np.array([image.size for image in images], dtype=np.int64),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes=raw.boxes,
        labels=raw.labels,
        area=np.where(np.isfinite(raw.area), raw.area, raw.boxes[:, 2] * raw.boxes[:, 3]),
        crowd=raw.crowd,
        annotation_ids=raw.ids,
        landmarks=raw.landmarks,
    )


def _count_remarkable(findings: Findings, table: TruthTable, raw: RawAnnotations, names: Sequence[str]) -> int:
    """Count what is kept but worth knowing; returns the number of boxes that can be trained on."""
    boxes, sizes = table.boxes, table.sizes[table.owners]
    corners = clipped_corners(boxes, sizes)
    usable = is_usable(corners)
    negative = boxes[:, 2:].min(axis=1) < 0
    flat = ~negative & ~is_usable(np.concatenate([boxes[:, :2] * 0, boxes[:, 2:]], axis=1))
    unclipped = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    over = usable & (np.abs(unclipped - corners).max(axis=1) > BORDER_TOLERANCE)

    def note_boxes(problem: str, consequence: str, mask: np.ndarray) -> None:
        findings.note(problem, consequence, _rows(mask), raw.describe)

    def with_area(row: int) -> str:
        return f"{raw.describe(row)}, area {table.area[row]:g}"

    def note_images(problem: str, consequence: str, mask: np.ndarray) -> None:
        findings.note(problem, consequence, _rows(mask), names.__getitem__)

    not_trained = "not in training targets, kept for evaluation"
    note_boxes("boxes with a negative width or height", not_trained, negative)
    note_boxes("boxes without area", not_trained, flat)
    note_boxes("boxes outside their image", not_trained, ~usable & ~negative & ~flat)
    note_boxes("boxes partly outside their image", "clipped for training, kept whole for evaluation", over)
    note_boxes("duplicate boxes", "kept", _repeated(table))
    note_boxes("boxes within the first pixel", "taken as px, though they look like shares of the image", _tiny(boxes))
    note_boxes("annotations without an area", "width times height is used", np.logical_not(np.isfinite(raw.area)))
    for problem, bad in (("negative areas", table.area < 0), ("areas that do not fit their box", _unfit(table))):
        findings.note(problem, "kept: COCO's metrics sort objects by it", _rows(bad), with_area)
    note_boxes("landmarks outside their image", not_trained, _astray(table))
    for oddity in raw.oddities:
        note_boxes(*oddity)
    note_boxes("crowd or difficult boxes", "ignored in training, passed to the evaluator", table.crowd)
    if findings.is_refused:
        return 0  # the boxes that images lack may be those that were refused
    num_all = np.diff(table.offsets)
    num_crowd = np.bincount(table.owners, weights=table.crowd, minlength=len(table)).astype(int)
    note_images("images without boxes", "kept", num_all == 0)
    note_images("images with crowd boxes only", "kept", (num_all > 0) & (num_all == num_crowd))
    return int(usable.sum())


def _astray(table: TruthTable) -> np.ndarray:
    """(M,) bool: objects with a labelled point that their image does not show."""
    if table.landmarks is None:
        return np.zeros(len(table.labels), bool)
    sizes = table.sizes[table.owners][:, None, ::-1]
    xy = table.landmarks.points[..., :2]
    beside = ((xy < 0) | (xy > sizes)).any(axis=-1)
    return np.asarray((beside & table.landmarks.is_labelled).any(axis=1))


def _tiny(boxes: np.ndarray) -> np.ndarray:
    """(M,) bool: boxes (M, 4) x y w h px that end where the first pixel does: no object does, but all of 0..1."""
    starts, sides = boxes[:, :2], boxes[:, 2:]
    return np.all((np.abs(starts) <= 1) & (sides > 0) & (np.minimum(sides, starts + sides) <= 1), axis=1)


def _unfit(table: TruthTable) -> np.ndarray:
    """(M,) bool: positive boxes whose area no mask inside them can have; 2 px are granted for rounding."""
    area, sides = table.area, table.boxes[:, 2:].clip(0)
    box_area = sides.prod(axis=1)
    too_large = (area > MAX_AREA_SHARE * box_area) & (area > (sides + 2).prod(axis=1))
    too_small = (area >= 0) & (area < MIN_AREA_SHARE * box_area)
    return (box_area > 0) & (too_large | too_small | ((area >= 0) & (area < 1) & (box_area > 16)))


def _repeated(table: TruthTable) -> np.ndarray:
    """(M,) bool: boxes that an earlier annotation of the same image and class has given already."""
    rows = np.column_stack([table.owners, table.labels, table.boxes])
    repeated = np.ones(len(rows), dtype=bool)
    if len(rows):
        repeated[np.unique(rows, axis=0, return_index=True)[1]] = False
    return repeated
