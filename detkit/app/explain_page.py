"""The page of ``tools/explain.py``: numbers, advice, and pictures by cause."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np

from detkit.app.page import (
    Bar,
    advice,
    bars,
    curves,
    legend,
    matrix,
    page,
    pair,
    pictures,
    section,
    table,
    tiles,
)
from detkit.data.datasets.base import DetectionDataset
from detkit.evaluation.breakdown import by_class, by_size, confusion_matrix, false_alarms
from detkit.evaluation.causes import FALSE_ALARMS, Cause, Missed, ScoredBox, describe
from detkit.evaluation.errors import ErrorKind, ImageErrors
from detkit.structures.draw import class_color, draw_boxes

if TYPE_CHECKING:
    from detkit.app.explain import Explanation

_ADVICE = {
    ErrorKind.CLASS: "Look at the confusion matrix: pairs that are confused need more or cleaner examples.",
    ErrorKind.LOCATION: "Boxes are loose: a loss that follows the IoU (loss@...box_loss=GIoULoss), a larger input, or "
    "finer strides; and see in the pictures how tightly the objects are annotated.",
    ErrorKind.BOTH: "Half seen, half guessed: mostly small or covered objects; a larger input or longer training.",
    ErrorKind.DUPLICATE: "One object, several boxes: a lower nms_iou of the head removes them.",
    ErrorKind.BACKGROUND: "Look whether the pictures show objects that nobody annotated; if not, train longer, or on "
    "more images without objects.",
    ErrorKind.MISSED: "See why objects were missed, below.",
}
_REMEDY = {
    Cause.NEVER_PROPOSED: "No reference of the head reaches them: tools/audit.py tells which sizes.",
    Cause.CUT: "More candidates must enter NMS: num_before_nms.",
    Cause.TOO_SMALL: "The head's min_size removes them.",
    Cause.SUPPRESSED: "Objects stand close together: a higher nms_iou keeps neighbours apart.",
    Cause.OVER_LIMIT: "More may come out: max_detections, or num_proposals of the first stage.",
    Cause.LOW_SCORE: "They are seen, but not believed: train longer, or show more by a lower score_threshold.",
    Cause.WRONG_CLASS: "They are found under another name: see the confusion matrix.",
    Cause.BADLY_PLACED: "They are found, but by boxes that overlap them by less than half.",
    Cause.SHARED: "One box covers two objects: a larger input or finer strides separate them.",
    Cause.NOT_TRACED: "This detector does not tell what becomes of its candidates.",
}

#: Roles of boxes in pictures; their colours are those of classes 2, 0 and 1.
_OBJECT, _DETECTION, _CANDIDATE = 2, 0, 1
_ROLES = {"object": _OBJECT, "detection, or what suppressed it": _DETECTION, "lost candidate": _CANDIDATE}

#: Pictures are shown at about half this size (px), so lines and letters are drawn twice as large.
_PICTURE_SIDE, _BOLD = 320, 2.0


Corners = tuple[float, float, float, float]


class _Shot(NamedTuple):
    """A picture to take: which image, the boxes with role and tag, and how much it is worth seeing."""

    image: int
    boxes: list[tuple[Corners, int, str]]
    caption: str
    rank: float


def explanation_page(explanation: Explanation, dataset: DetectionDataset, source: str, num_pictures: int) -> str:
    """The HTML page; ``num_pictures`` of each cause."""
    names = explanation.categories.names
    missed, alarms = explanation.missed_by_cause(), explanation.false_alarms_by_cause()
    num_found, num_alarms = explanation.num_right, sum(alarms.values())
    parts = [
        tiles(
            {
                "AP50": f"{explanation.ap50:.3f}",
                f"of {explanation.num_objects} objects found": str(num_found),
                "objects missed": str(sum(missed.values())),
                "false alarms": str(num_alarms),
                "precision": f"{num_found / max(num_found + num_alarms, 1):.1%}",
            }
        ),
        section("What to fix first", advice(_first_steps(explanation))),
        section(
            "What each kind of error costs",
            bars([Bar(_words(k), v, f"{100 * v:.1f} points") for k, v in explanation.costs.items()]),
            note="Rise of AP50, in hundredths, if all errors of the kind were corrected (TIDE, Bolya et al. 2020).",
        ),
        pair(
            section("Why objects were missed", bars([Bar(k, v, str(v)) for k, v in missed.items()], "var(--bad)")),
            section("What the false alarms are", bars([Bar(k, v, str(v)) for k, v in alarms.items()], "var(--bad)")),
        ),
        *_albums(explanation, dataset, num_pictures),
        *_tables(explanation, names),
    ]
    subtitle = (
        f"{source}: {len(explanation.images)} images; detections count from score {explanation.threshold:.3f} on, "
        "an object is found from IoU 0.5 on"
    )
    return page("Why objects are missed", subtitle, parts)


def _words(kind: ErrorKind) -> str:
    return FALSE_ALARMS.get(kind, "missed altogether")


def _first_steps(explanation: Explanation) -> list[tuple[str, str]]:
    ranked = sorted(explanation.costs.items(), key=lambda item: -item[1])
    lines = []
    for kind, cost in ranked[:3]:
        if cost > 0:
            lines.append((f"{_words(kind).capitalize()} ({100 * cost:.1f} points of AP50).", _ADVICE[kind]))
    counts: dict[Cause, int] = defaultdict(int)
    for missed in (m for each in explanation.missed for m in each):
        counts[missed.cause] += 1
    for cause, count in sorted(counts.items(), key=lambda item: -item[1])[:2]:
        share = count / sum(counts.values())
        lines.append((f"{share:.0%} of what is missed: {cause.value}.", _REMEDY[cause]))
    return lines or [("Nothing.", "Every object was found, and nothing else.")]


def _tables(explanation: Explanation, names: Sequence[str]) -> list[str]:
    classes = by_class(explanation.images, names, explanation.threshold)
    rows = [
        [r["name"], str(r["objects"]), str(r["found"]), _share(r["found"], r["objects"]), str(r["false_alarms"]),
         "-" if r["AP50"] is None else f"{r['AP50']:.3f}"]
        for r in classes
    ]  # fmt: skip
    sizes = [
        [r["name"], str(r["objects"]), str(r["found"]), _share(r["found"], r["objects"]), str(r["false_alarms"])]
        for r in by_size(explanation.images, explanation.threshold)
    ]
    lines = {r["name"]: (r["curve"]["recall"], r["curve"]["precision"]) for r in classes if r["curve"] is not None}
    counts = confusion_matrix(explanation.images, len(names), explanation.threshold)
    return [
        pair(
            section("By class", table(["class", "objects", "found", "recall", "false alarms", "AP50"], rows)),
            section(
                "By size", table(["size", "objects", "found", "recall", "false alarms"], sizes),
                note="COCO's sizes: small below 32 x 32 px, large from 96 x 96 px on, in the original image.",
            ),
        ),
        pair(
            section(
                "Confusion", matrix(counts, [*names, "nothing"], [*names, "missed"]),
                note="What an object is (row), and what it was detected as (column).",
            ),
            section("Precision over recall", curves(lines, "recall", "precision"), note="At IoU 0.5."),
        ),
    ]  # fmt: skip


def _albums(explanation: Explanation, dataset: DetectionDataset, count: int) -> list[str]:
    """A section of pictures for each cause."""
    if count == 0:
        return []
    rows = {truth.image_id: i for i, truth in enumerate(dataset.truths)}
    shots: dict[str, list[_Shot]] = defaultdict(list)
    for image, missed in zip(explanation.images, explanation.missed, strict=True):
        row = rows[image.truth.image_id]
        for one in missed:
            shots[f"Missed: {one.cause.value}"].append(_missed_shot(image, row, one, explanation))
        for i in np.flatnonzero(false_alarms(image, explanation.threshold)).tolist():
            shots[f"False alarm: {FALSE_ALARMS[image.kinds[i]]}"].append(_alarm_shot(image, row, i, explanation))
    colors = {role: class_color(number) for role, number in _ROLES.items()}
    albums = []
    for cause, taken in sorted(shots.items(), key=lambda item: (item[0][0] == "F", -len(item[1]))):
        best = _of_different_images(sorted(taken, key=lambda s: -s.rank), count)
        images = [(_take(shot, dataset), shot.caption) for shot in best]
        albums.append(section(f"{cause} ({len(taken)})", legend(colors), pictures(images)))
    return albums


def _missed_shot(image: ImageErrors, row: int, missed: Missed, explanation: Explanation) -> _Shot:
    names, truth = explanation.categories.names, image.truth
    box = _corners(truth.boxes[missed.index])
    boxes = [(box, _OBJECT, names[truth.labels[missed.index]])]
    score = 0.0
    for extra, role in ((missed.candidate, _CANDIDATE), (missed.other, _DETECTION)):
        if extra is not None:
            boxes.append((extra.box, role, _tag(extra, names)))
            score = max(score, extra.score)
    where = f"{Path(truth.file).name}, id {truth.image_id}, annotation {truth.annotation_ids[missed.index]}"
    # the largest first where no candidate has a score
    area = float((box[2] - box[0]) * (box[3] - box[1]) / (truth.size[0] * truth.size[1]))
    return _Shot(row, boxes, f"{where}: {describe(missed, names)}", score + 1e-3 * area)


def _alarm_shot(image: ImageErrors, row: int, i: int, explanation: Explanation) -> _Shot:
    names, truth, about = explanation.categories.names, image.truth, int(image.objects[i])
    x1, y1, x2, y2 = image.boxes[i].tolist()
    found = ScoredBox((x1, y1, x2, y2), int(image.labels[i]), float(image.scores[i]))
    boxes: list[tuple[Corners, int, str]] = [(found.box, _DETECTION, _tag(found, names))]
    caption = f"{Path(truth.file).name}, id {truth.image_id}: {_tag(found, names)}"
    if about >= 0:
        boxes.insert(0, (_corners(truth.boxes[about]), _OBJECT, names[truth.labels[about]]))
        caption += f", annotation {truth.annotation_ids[about]}, IoU {image.iou[i, about]:.2f}"
    return _Shot(row, boxes, caption, found.score)


def _take(shot: _Shot, dataset: DetectionDataset) -> np.ndarray:
    """A square crop around the boxes of ``shot`` with as much again around them, drawn."""
    image = dataset.read(shot.image)
    h, w = image.shape[:2]
    boxes = np.array([box for box, _, _ in shot.boxes])
    low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    side = float(np.clip((high - low).max() * 2, 48, max(h, w)))
    x, y = ((low + high) / 2 - side / 2).round().astype(int)
    x, y = int(np.clip(x, 0, max(w - side, 0))), int(np.clip(y, 0, max(h - side, 0)))
    crop = image[y : y + round(side), x : x + round(side)]
    ratio = _PICTURE_SIDE / max(crop.shape[:2])
    crop = cv2.resize(crop, None, fx=ratio, fy=ratio, interpolation=cv2.INTER_AREA if ratio < 1 else cv2.INTER_CUBIC)
    names = [""] * len(_ROLES)
    shifted = (boxes - [x, y, x, y]) * ratio
    for box, (_, role, tag) in zip(shifted, shot.boxes, strict=True):
        names[role] = tag
        crop = draw_boxes(crop, box[None], [role], names, bold=_BOLD)
    return crop


def _of_different_images(shots: Sequence[_Shot], count: int) -> list[_Shot]:
    """The first ``count``, those of images that are shown already after all others."""
    first: dict[int, _Shot] = {}
    for shot in shots:
        first.setdefault(shot.image, shot)
    chosen = list(first.values())
    return (chosen + [s for s in shots if s is not first[s.image]])[:count]


def _corners(xywh: np.ndarray) -> Corners:
    x, y, w, h = xywh.tolist()
    return x, y, x + w, y + h


def _tag(box: ScoredBox, names: Sequence[str]) -> str:
    return f"{'proposal' if box.label < 0 else names[box.label]} {box.score:.2f}"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"
