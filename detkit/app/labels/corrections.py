"""Findings as a table that a person edits, and COCO's file with those that were accepted."""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from detkit.config import ConfigError
from detkit.evaluation.label_errors import Kind

#: What a person may write into the column ``accept``; anything but these is refused, and nothing is no.
YES, NO = ("yes", "y", "1", "true", "x"), ("", "no", "n", "0", "false")

#: Boxes of the table are rounded: a proposed one that differs from the label's by more, px, has been moved.
_ROUNDING = 0.02

#: Under this key the corrected file says of an annotation what was changed, and how sure it is.
NOTE = "detkit"

_BOX, _PROPOSED = ("x", "y", "w", "h"), ("new_x", "new_y", "new_w", "new_h")
COLUMNS = (
    "accept", "kind", "certainty", "loss_gain", "objectlab", "file", "image_id", "annotation_id", "class", *_BOX,
    "new_class", *_PROPOSED,
)  # fmt: skip

Box = tuple[float, float, float, float]


class Correction(NamedTuple):
    """One finding, in the file's own terms: boxes are x y w h px.

    ``annotation_id``, ``name`` and ``box``: the label as it is; None of an object without one. ``new_name`` and
    ``new_box``: the label as proposed; None of a box that is to go. ``objectlab``: the baseline's score of the same,
    low where it is suspicious; None where it has none. ``where`` it stands, for messages: a table and its line.
    """

    kind: Kind
    certainty: float
    loss_gain: float | None
    objectlab: float | None
    file: str
    image_id: int
    annotation_id: int | None
    name: str | None
    box: Box | None
    new_name: str | None
    new_box: Box | None
    where: str = "apply"

    @property
    def is_moved(self) -> bool:
        """Whether the proposed box is another one: that of a wrong class is the label's, unless a person moved it."""
        if self.box is None or self.new_box is None:
            return self.kind is Kind.MISPLACED
        if self.kind is Kind.MISPLACED:
            return self.new_box != self.box
        return max(abs(a - b) for a, b in zip(self.box, self.new_box, strict=True)) > _ROUNDING

    def row(self) -> list[str]:
        """Under ``COLUMNS``, nothing accepted."""
        numbers = [_number(value, 4) for value in (self.certainty, self.loss_gain, self.objectlab)]
        whose = [self.file, str(self.image_id), "" if self.annotation_id is None else str(self.annotation_id)]
        boxes = [[_number(v, 2) for v in box or (None,) * 4] for box in (self.box, self.new_box)]
        return ["", self.kind.value, *numbers, *whose, self.name or "", *boxes[0], self.new_name or "", *boxes[1]]


def as_csv(corrections: Iterable[Correction]) -> str:
    """The table, with the byte order mark by which spreadsheets know UTF-8."""
    out = io.StringIO()
    out.write("\ufeff")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(one.row() for one in corrections)
    return out.getvalue()


def read_accepted(path: Path) -> tuple[list[Correction], int]:
    """The accepted rows of the table in ``path``, and how many there are in all.

    Raises:
        ConfigError: it is no such table, a cell is none, or two rows add the same box; the message names the line and
            the column.
    """
    rows = _read_rows(path)
    accepted = []
    for number, row in rows:
        word = _decision(row)
        if word not in YES + NO:
            allowed = ", ".join((*YES, *filter(None, NO)))
            raise ConfigError(f"apply: {path}, line {number}: accept must be one of {allowed} or empty, not {word!r}")
        if word in YES:
            accepted.append(_parse(row, f"apply: {path}, line {number}"))
    _check_twice(accepted)
    return accepted, len(rows)


def _check_twice(accepted: Iterable[Correction]) -> None:
    """Refuse one new box in two rows: a line was pasted twice.

    Raises:
        ConfigError: as it says; the message names both.
    """
    seen: dict[Any, str] = {}
    for one in accepted:
        new = one.image_id, one.new_name, one.new_box
        if one.annotation_id is None and (before := seen.setdefault(new, one.where)) != one.where:
            raise ConfigError(
                f"{one.where}: the new {one.new_name} of image {one.image_id} is that of {before.rpartition(', ')[2]}"
            )


def num_decided(path: Path) -> int:
    """In how many rows of the table in ``path`` a person has written something into the column ``accept``.

    Raises:
        ConfigError: as :func:`read_accepted`.
    """
    return sum(bool(_decision(row)) for _, row in _read_rows(path))


def _read_rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """The rows that hold something, with the line that each ends in."""
    try:
        with path.open("rb") as file:
            is_wide = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # a spreadsheet's "Unicode text"
        text = path.read_text(encoding="utf-16" if is_wide else "utf-8-sig")
    except OSError as error:
        raise ConfigError(f"apply: {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"apply: {path}: is not in UTF-8: let the spreadsheet save it as CSV UTF-8") from error
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    reader = csv.DictReader(io.StringIO(text), delimiter=delimiter, restval="")
    if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
        raise ConfigError(f"apply: {path}: has no column {', '.join(missing)}")
    rows = [(reader.line_num, row) for row in reader]
    return [(number, row) for number, row in rows if any(row[name].strip() for name in COLUMNS)]


def _decision(row: Mapping[str, str]) -> str:
    return row["accept"].strip().lower()


def correct(content: Mapping[str, Any], corrections: Sequence[Correction], scored: bool = False) -> dict[str, Any]:
    """COCO's ``content`` with ``corrections`` made; whatever none of them is about stays as it is.

    A box that is moved loses its segmentation and keypoints, which were about another outline; its area is that of the
    box. New annotations get the next ids.

    Args:
        scored: each annotation that is changed says what was and how sure it is, under ``NOTE``, and those that go are
            listed under the file's own ``NOTE``.

    Raises:
        ConfigError: a correction is about an annotation, image or class that the file does not have, or contradicts
            another.
    """
    known = {one["id"]: one for one in content["annotations"]}
    category = {one["name"]: one["id"] for one in content["categories"]}
    images = {one["id"]: one for one in content["images"]}
    changed: dict[int, dict[str, Any]] = {}
    removed: dict[int, dict[str, Any]] = {}
    new: list[dict[str, Any]] = []
    for one in corrections:
        _check(one, known, removed, category, images)
        note = {NOTE: {"kind": one.kind.value, "certainty": round(one.certainty, 4)}} if scored else {}
        if one.annotation_id is None:
            head = {"id": max(known, default=0) + 1 + len(new), "image_id": one.image_id}
            new.append({**head, **_placed({}, one.new_box, category, one.new_name), "iscrowd": 0, **note})
            continue
        before: Mapping[str, Any] = changed.get(one.annotation_id) or known[one.annotation_id]
        if one.new_box is None:
            if one.annotation_id in changed:
                raise ConfigError(_CONTRADICTION.format(one.where, one.annotation_id))
            removed[one.annotation_id] = {**before, **note}
        else:
            if scored:
                note[NOTE]["was"] = {key: before.get(key) for key in ("bbox", "category_id")}
            moved = one.new_box if one.is_moved else None
            name = one.new_name if one.new_name != one.name else None
            changed[one.annotation_id] = {**_placed(before, moved, category, name), **note}
    kept = [changed.get(one["id"], one) for one in content["annotations"] if one["id"] not in removed]
    told = {NOTE: {"removed": list(removed.values())}} if scored and removed else {}
    return {**content, "annotations": kept + new, **told}


#: Why two rows about one annotation cannot both be accepted.
_CONTRADICTION = "{}: annotation {} is to go by one row and to stay by another"


def _placed(
    annotation: Mapping[str, Any], box: Box | None, category: Mapping[str, int], name: str | None
) -> dict[str, Any]:
    """``annotation`` with another class and another box, where they are given."""
    new = dict(annotation) if name is None else {**annotation, "category_id": category[name]}
    if box is None:
        return new
    kept = {key: value for key, value in new.items() if key not in ("segmentation", "keypoints", "num_keypoints")}
    return {**kept, "bbox": list(box), "area": box[2] * box[3]}


def _check(
    one: Correction,
    known: Mapping[int, Any],
    removed: Mapping[int, Any],
    category: Mapping[str, int],
    images: Mapping[int, Mapping[str, Any]],
) -> None:
    _check_whose(one, known, category)
    where = one.where
    if one.annotation_id in removed:
        raise ConfigError(_CONTRADICTION.format(where, one.annotation_id))
    if one.annotation_id is not None and one.annotation_id not in known:
        raise ConfigError(f"{where}: the annotation file has no annotation {one.annotation_id}")
    if one.image_id not in images:
        raise ConfigError(f"{where}: the annotation file has no image {one.image_id}")
    if one.new_name is not None and one.new_name not in category:
        raise ConfigError(f"{where}: the annotation file has no class {one.new_name!r}, only {', '.join(category)}")
    w, h = images[one.image_id]["width"], images[one.image_id]["height"]
    is_another = one.is_moved or one.annotation_id is None  # the label's own may lie anywhere
    if is_another and one.new_box is not None and not _is_inside(one.new_box, w, h):
        box = ", ".join(f"{v:g}" for v in one.new_box)
        raise ConfigError(f"{where}: {', '.join(_PROPOSED)}: {box} lie outside of image {one.image_id}, {w} x {h} px")


def _is_inside(box: Box, width: int, height: int) -> bool:
    """Whether a part of ``box`` is."""
    x, y, w, h = box
    return x < width and y < height and x + w > 0 and y + h > 0


def _check_whose(one: Correction, known: Mapping[int, Any], category: Mapping[str, int]) -> None:
    """Refuse a row that speaks of another label than its annotation: one column was sorted without the others."""
    label = known.get(one.annotation_id) if one.annotation_id is not None else None
    if label is None:
        return
    is_other = one.name is not None and category.get(one.name) != label["category_id"]
    if is_other or label["image_id"] != one.image_id:
        raise ConfigError(
            f"{one.where}: annotation {one.annotation_id} is no {one.name} of image {one.image_id}: the cells of "
            "that row do not belong together"
        )


def _parse(row: Mapping[str, str], where: str) -> Correction:
    kinds = [kind.value for kind in Kind]
    if row["kind"] not in kinds:
        raise ConfigError(f"{where}: kind must be one of {', '.join(kinds)}, not {row['kind']!r}")
    numbers = {name: _parse_number(row, name, where) for name in ("certainty", "loss_gain", "objectlab")}
    ids = [_parse_id(row, name, where) for name in ("image_id", "annotation_id")]
    box = _parse_box(row, where)
    kind, image_id, annotation_id = Kind(row["kind"]), *ids
    if image_id is None or (annotation_id is None) != (kind is Kind.MISSING):
        raise ConfigError(f"{where}: {kind.value} needs image_id{'' if kind is Kind.MISSING else ' and annotation_id'}")
    new_name, new_box = _parse_proposal(row, kind, box, where)
    return Correction(
        kind=kind,
        certainty=numbers["certainty"] or 0.0,
        loss_gain=numbers["loss_gain"],
        objectlab=numbers["objectlab"],
        file=row["file"],
        image_id=image_id,
        annotation_id=annotation_id,
        name=row["class"] or None,
        box=box,
        new_name=new_name,
        new_box=new_box,
        where=where,
    )


def _parse_proposal(row: Mapping[str, str], kind: Kind, box: Box | None, where: str) -> tuple[str | None, Box | None]:
    """Class and box that the label shall have, what is empty from the label with its ``box``; None of one that goes."""
    name = row["new_class"] if row["new_class"].strip() else None
    values = [_parse_number(row, column, where) for column in _PROPOSED]
    is_empty = name is None and all(value is None for value in values)
    if is_empty and kind in (Kind.SPURIOUS, Kind.DUPLICATE):
        return None, None
    if box is None and kind is not Kind.MISSING:
        raise ConfigError(f"{where}: {kind.value} needs {', '.join(_BOX)}, as the table had them")
    name = name or row["class"] or None
    x, y, w, h = (own if value is None else value for value, own in zip(values, box or (None,) * 4, strict=True))
    if is_empty or name is None or x is None or y is None or w is None or h is None:
        raise ConfigError(f"{where}: {kind.value} needs new_class, {', '.join(_PROPOSED)}")
    if (x, y, w, h) != box and min(w, h) <= 0:
        raise ConfigError(f"{where}: {_PROPOSED[2]} and {_PROPOSED[3]} must be above 0, not {w:g} and {h:g}")
    return name, (x, y, w, h)


def _parse_box(row: Mapping[str, str], where: str) -> Box | None:
    """The label's own box, whatever its sides are: a bad one is among what is corrected."""
    x, y, w, h = (_parse_number(row, name, where) for name in _BOX)
    return None if x is None or y is None or w is None or h is None else (x, y, w, h)


def _parse_id(row: Mapping[str, str], name: str, where: str) -> int | None:
    """The whole number, with no more than a spreadsheet's ``,0`` behind it: floats lack digits of large ones."""
    text = row[name].strip()
    found = re.fullmatch(r"([+-]?[0-9]{1,30})([.,]0*)?", text)
    if text and not found:
        raise ConfigError(f"{where}: {name} must be a whole number, with all its digits, not {row[name]!r}")
    return int(found[1]) if found else None


def _parse_number(row: Mapping[str, str], name: str, where: str) -> float | None:
    text = row[name].strip().replace(",", ".")  # a spreadsheet's own decimal comma
    try:
        value = float(text) if text else None
    except ValueError:
        value = math.nan
    if value is not None and not math.isfinite(value):
        raise ConfigError(f"{where}: {name} must be a number, not {row[name]!r}")
    return value


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{round(value, digits):g}" if digits == 4 else f"{value:.{digits}f}"


def read_coco(path: Path) -> dict[str, Any]:
    """COCO's JSON, which a data set has been read from.

    Raises:
        ConfigError: it is not there any more, or another file.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"apply: {path}: {getattr(error, 'strerror', None) or error}") from error
    if not isinstance(content, dict) or not {"images", "annotations", "categories"} <= content.keys():
        raise ConfigError(f"apply: {path}: has no images, annotations and categories")
    return content
