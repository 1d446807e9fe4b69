"""The page of ``tools/explain.py``: numbers, advice, and pictures by cause."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from detkit.app.explain.found import Explanation
from detkit.app.pages.crops import (
    CANDIDATE,
    DETECTION,
    OBJECT,
    Corners,
    Shot,
    album,
    best_shots,
    corners,
    place_of,
    typical_shots,
)
from detkit.app.pages.html import Bar, advice, bars, curves, matrix, page, pair, section, table, tiles
from detkit.data.datasets.base import DetectionDataset
from detkit.evaluation.breakdown import by_class, by_size, confusion_matrix, false_alarms
from detkit.evaluation.causes import FALSE_ALARMS, Cause, Missed, ScoredBox, describe
from detkit.evaluation.errors import ErrorKind, ImageErrors

#: Of a thousand classes the matrix would have a million cells, and curves could not be told apart.
_MOST_CONFUSED, _MOST_CURVES = 100, 20

_ADVICE = {
    ErrorKind.CLASS: "Look at the confusion matrix: pairs that are confused need more or cleaner examples.",
    ErrorKind.LOCATION: "Boxes are loose: a loss that follows the IoU (loss@...box_loss=GIoULoss), a larger input, or "
    "finer strides; and see in the pictures how tightly the objects are annotated.",
    ErrorKind.BOTH: "Half seen, half guessed: mostly small or covered objects; a larger input or longer training.",
    ErrorKind.DUPLICATE: "One object, several boxes: a lower nms_iou (sigma of a SoftSelector) removes them.",
    ErrorKind.BACKGROUND: "Look whether the pictures show objects that nobody annotated; if not, train longer, or on "
    "more images without objects.",
    ErrorKind.MISSED: "See why objects were missed, below.",
}
_REMEDY = {
    Cause.NEVER_PROPOSED: "No reference of the head reaches them: the audit tells which sizes.",
    Cause.CUT: "More candidates must enter NMS: num_before_nms.",
    Cause.TOO_SMALL: "The head's min_size removes them.",
    Cause.SUPPRESSED: "Objects stand close together: a higher nms_iou (sigma of a SoftSelector) keeps them.",
    Cause.OVER_LIMIT: "More may come out: max_detections, or num_proposals of the first stage.",
    Cause.MERGED: "A box of other views took their place, elsewhere or with a lower score: try another tta/merge.",
    Cause.LOW_SCORE: "They are seen, but not believed: train longer, or show more by a lower score_threshold.",
    Cause.WRONG_CLASS: "They are found under another name: see the confusion matrix.",
    Cause.BADLY_PLACED: "They are found, but by boxes that overlap them by less than half.",
    Cause.SHARED: "One box covers two objects: a larger input or finer strides separate them.",
    Cause.NOT_TRACED: "This detector does not tell what becomes of its candidates.",
}

_ROLES = {"object": OBJECT, "detection, or what suppressed it": DETECTION, "lost candidate": CANDIDATE}


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
            bars([Bar(_words(k), v, f"{100 * v:.1f} points") for k, v in _by_cost(explanation)]),
            note="Rise of AP50, in hundredths, if all errors of the kind were corrected (TIDE, Bolya et al. 2020).",
        ),
        pair(
            section("Why objects were missed", bars([Bar(k, v, str(v)) for k, v in missed.items()], "var(--bad)")),
            section("What the false alarms are", bars([Bar(k, v, str(v)) for k, v in alarms.items()], "var(--bad)")),
        ),
        *_tables(explanation, names),
        *_albums(explanation, dataset, num_pictures),
    ]
    subtitle = (
        f"{source}: {len(explanation.images)} images; detections count from score {explanation.threshold:.3f} on, "
        "an object is found from IoU 0.5 on"
    )
    return page("Why objects are missed", subtitle, parts)


def _by_cost(explanation: Explanation) -> list[tuple[ErrorKind, float]]:
    return sorted(explanation.costs.items(), key=lambda item: -item[1])


def _words(kind: ErrorKind) -> str:
    return FALSE_ALARMS.get(kind, "missed altogether")


def _first_steps(explanation: Explanation) -> list[tuple[str, str]]:
    lines = []
    for kind, cost in _by_cost(explanation)[:3]:
        if cost > 0:
            lines.append((f"{_words(kind).capitalize()} ({100 * cost:.1f} points of AP50).", _ADVICE[kind]))
    counts: dict[Cause, int] = defaultdict(int)
    for missed in (m for each in explanation.missed for m in each):
        counts[missed.cause] += 1
    for cause, count in sorted(counts.items(), key=lambda item: -item[1])[:2]:
        share = count / sum(counts.values())
        remedy = _REMEDY[cause] + (_how_low(explanation) if cause == Cause.LOW_SCORE else "")
        lines.append((f"{share:.0%} of what is missed: {cause.value}.", remedy))
    return lines or [("Nothing.", "Every object was found, and nothing else.")]


def _how_low(explanation: Explanation) -> str:
    scores = [m.candidate.score for each in explanation.missed for m in each
              if m.cause == Cause.LOW_SCORE and m.candidate is not None]  # fmt: skip
    return f" Half of them score {np.median(scores):.2f} or more, against the threshold {explanation.threshold:.2f}."


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
    return [
        pair(
            section("By class", table(["class", "objects", "found", "recall", "false alarms", "AP50"], rows)),
            section(
                "By size", table(["size", "objects", "found", "recall", "false alarms"], sizes),
                note="COCO's sizes: small below 32 x 32 px, large from 96 x 96 px on, in the original image.",
            ),
        ),
        pair(
            _confusion(confusion_matrix(explanation.images, len(names), explanation.threshold), names),
            _curves(classes),
        ),
    ]  # fmt: skip


def _confusion(counts: np.ndarray, names: Sequence[str]) -> str:
    """The section of ``counts`` (K + 1, K + 1); of many classes, those that are confused with others most."""
    note = "What an object is (row), and what it was detected as (column)."
    confused = counts[:-1, :-1] - np.diag(np.diag(counts)[:-1])
    most = np.argsort(-(confused.sum(axis=0) + confused.sum(axis=1)), kind="stable")[:_MOST_CONFUSED]
    if len(most) < len(names):
        note += f" The {len(most)} of {len(names)} classes that are confused most; explanation.json has all."
    kept = sorted(int(k) for k in most)
    rows, shown = [*kept, len(names)], [names[k] for k in kept]
    return section("Confusion", matrix(counts[np.ix_(rows, rows)], [*shown, "nothing"], [*shown, "missed"]), note=note)


def _curves(classes: Sequence[Mapping[str, Any]]) -> str:
    """The section of precision over recall; of many classes, those with most objects."""
    drawn = [r for r in classes if r["curve"] is not None]
    note = "At IoU 0.5."
    if len(drawn) > _MOST_CURVES:
        note += f" The {_MOST_CURVES} of {len(drawn)} classes with most objects; explanation.json has all."
        drawn = sorted(drawn, key=lambda r: -r["objects"])[:_MOST_CURVES]
    lines = {r["name"]: (r["curve"]["recall"], r["curve"]["precision"]) for r in drawn}
    return section("Precision over recall", curves(lines, "recall", "precision"), note=note)


def _albums(explanation: Explanation, dataset: DetectionDataset, count: int) -> list[str]:
    """A section of pictures for each cause."""
    if count == 0:
        return []
    rows = {truth.image_id: i for i, truth in enumerate(dataset.truths)}
    shots: dict[str, list[Shot]] = defaultdict(list)
    for image, missed in zip(explanation.images, explanation.missed, strict=True):
        row = rows[image.truth.image_id]
        for one in missed:
            shots[f"Missed: {one.cause.value}"].append(_missed_shot(image, row, one, explanation))
        for i in np.flatnonzero(false_alarms(image, explanation.threshold)).tolist():
            shots[f"False alarm: {FALSE_ALARMS[image.kinds[i]]}"].append(_alarm_shot(image, row, i, explanation))
    albums = []
    for cause, taken in sorted(shots.items(), key=lambda item: (item[0][0] == "F", -len(item[1]))):
        # those that score most would all lie just below the threshold
        is_low = cause.endswith(Cause.LOW_SCORE)
        chosen = typical_shots(taken, count) if is_low else best_shots(taken, count)
        albums.append(section(f"{cause} ({len(taken)})", album(chosen, dataset, _ROLES)))
    return albums


def _missed_shot(image: ImageErrors, row: int, missed: Missed, explanation: Explanation) -> Shot:
    names, truth = explanation.categories.names, image.truth
    box, label = corners(truth.boxes[missed.index]), int(truth.labels[missed.index])
    others = [(b, r) for b, r in ((missed.candidate, CANDIDATE), (missed.other, DETECTION)) if b is not None]
    # colours tell the object from the others; its name is needed where theirs is another
    tag = "" if others and all(b.label == label for b, _ in others) else names[label]
    boxes = [(box, OBJECT, tag), *((b.box, role, _tag(b, names)) for b, role in others)]
    # the largest first where no candidate has a score
    area = float((box[2] - box[0]) * (box[3] - box[1]) / (truth.size[0] * truth.size[1]))
    what = describe(missed, names).removeprefix(missed.cause.value).removeprefix(", ")
    where = place_of(truth.file, truth.image_id, int(truth.annotation_ids[missed.index]))
    rank = max((b.score for b, _ in others), default=0.0) + 1e-3 * area
    return Shot(row, boxes, (what or names[label]).strip(), where, rank)


def _alarm_shot(image: ImageErrors, row: int, i: int, explanation: Explanation) -> Shot:
    names, truth, about = explanation.categories.names, image.truth, int(image.objects[i])
    x1, y1, x2, y2 = image.boxes[i].tolist()
    found = ScoredBox((x1, y1, x2, y2), int(image.labels[i]), float(image.scores[i]))
    boxes: list[tuple[Corners, int, str]] = [(found.box, DETECTION, _tag(found, names))]
    what = _tag(found, names)
    if about >= 0:
        label = int(truth.labels[about])
        boxes.insert(0, (corners(truth.boxes[about]), OBJECT, "" if label == found.label else names[label]))
        what += f" on {names[label]}, IoU {image.iou[i, about]:.2f}"
    where = place_of(truth.file, truth.image_id, int(truth.annotation_ids[about]) if about >= 0 else None)
    return Shot(row, boxes, what, where, found.score)


def _tag(box: ScoredBox, names: Sequence[str]) -> str:
    return f"{'proposal' if box.label < 0 else names[box.label]} {box.score:.2f}"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"
