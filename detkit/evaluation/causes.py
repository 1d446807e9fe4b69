"""Why an object was missed: at which stage its last candidate went, and what stood in its way."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

import numpy as np
import torch

from detkit.evaluation.errors import BACKGROUND_IOU, POSITIVE_IOU, ErrorKind, ImageErrors
from detkit.matching.trace import NO_CLASS, Fate, Selection
from detkit.structures import Affine, GroundTruth
from detkit.structures.boxes import pairwise_iou, xywh_to_xyxy


class Cause(StrEnum):
    """Why an object was missed."""

    NEVER_PROPOSED = "never proposed"
    CUT = "cut by top-k"
    TOO_SMALL = "box too small"
    SUPPRESSED = "removed by NMS"
    OVER_LIMIT = "over the limit"
    MERGED = "lost in the merge of views"
    LOW_SCORE = "below threshold"
    WRONG_CLASS = "wrong class"
    BADLY_PLACED = "badly placed"
    SHARED = "one detection for two objects"
    NOT_TRACED = "not traced"


#: The same for false alarms: TIDE's kinds in words.
FALSE_ALARMS = {
    ErrorKind.CLASS: "wrong class",
    ErrorKind.LOCATION: "badly placed",
    ErrorKind.BOTH: "wrong class and badly placed",
    ErrorKind.DUPLICATE: "duplicate",
    ErrorKind.BACKGROUND: "background",
}

_CAUSE_OF = {
    Fate.LOW_SCORE: Cause.LOW_SCORE,
    Fate.CUT: Cause.CUT,
    Fate.TOO_SMALL: Cause.TOO_SMALL,
    Fate.SUPPRESSED: Cause.SUPPRESSED,
    Fate.OVER_LIMIT: Cause.OVER_LIMIT,
    Fate.MERGED: Cause.MERGED,
}


class ScoredBox(NamedTuple):
    """``box`` x1 y1 x2 y2 px of the original image; ``label`` NO_CLASS for a proposal."""

    box: tuple[float, float, float, float]
    label: int
    score: float


class Trail(NamedTuple):
    """Of the candidates that overlap an object by t_f or more and have its class, or none yet, the best with one fate.

    ``suppressor``: the candidate that removed it, where NMS did. ``stage``: where in a detector of many stages.
    """

    is_proposal: bool
    fate: Fate
    candidate: ScoredBox
    iou: float
    suppressor: ScoredBox | None
    stage: str = ""


class Missed(NamedTuple):
    """An object that was not found.

    ``index``: its row in the GroundTruth. ``candidate``: what came nearest to finding it, and its ``iou`` with it.
    ``other``: what stood in its way: the box that suppressed the candidate, or the detection that is wrong about it.
    ``at_proposals``: whether it went in the first stage of two. ``stage``: of a cascade, always, the stage in which it
    went: the first where no window was near it, the last where a detection is wrong about it.
    """

    index: int
    cause: Cause
    at_proposals: bool = False
    candidate: ScoredBox | None = None
    iou: float | None = None
    other: ScoredBox | None = None
    stage: str = ""


def find_trails(selections: Sequence[Selection], truth: GroundTruth, affine: Affine) -> list[list[Trail]]:
    """For each annotation of one image, what became of the candidates near it.

    Args:
        selections: the trace of this image, px of the network input.
        truth: its annotations, G of them; crowds get no trail.
        affine: from the original image to the network input.

    Returns:
        G lists.
    """
    corners = xywh_to_xyxy(torch.from_numpy(truth.boxes.reshape(-1, 4)))
    objects = affine.apply(corners).float()
    labels = torch.from_numpy(truth.labels)
    trails: list[list[Trail]] = [[] for _ in range(len(truth))]
    for selection in selections:
        near = pairwise_iou(selection.boxes.float().cpu(), objects)
        mine = selection.labels.cpu()[:, None]
        fits = (near >= POSITIVE_IOU) & ((mine == labels) | (mine == NO_CLASS)) & ~torch.from_numpy(truth.crowd)
        for j in fits.any(dim=0).nonzero().squeeze(1).tolist():
            rows = fits[:, j].nonzero().squeeze(1)
            trails[j] += _best_of_each_fate(selection, rows, near[:, j], affine)
    return trails


def stages_of(selections: Sequence[Selection]) -> tuple[str, ...]:
    """The stages of the cascade that left ``selections``, in their order; none of a detector that names none."""
    return tuple(dict.fromkeys(s.stage for s in selections if s.stage))


def explain_missed(
    image: ImageErrors, trails: Sequence[Sequence[Trail]] | None, threshold: float, stages: Sequence[str] = ()
) -> list[Missed]:
    """Each object that no detection with at least the score ``threshold`` found, with the cause.

    Of a cascade each has the stage too, by ``stages``: :func:`stages_of` the image's trace.

    The first that holds is the cause:

    1. a shown detection of its class overlaps it, and was counted for another object;
    2. a candidate of its class that would have been shown was removed: by the merge of views, by the limit, by NMS, by
       its size, by top-k;
    3. a shown detection that is no hit overlaps it but has another class;
    4. a shown detection of its class that is no hit lies nearest to it, but not near enough;
    5. a candidate of its class scored less than ``threshold``, or than the head's own;
    6. no candidate of its class overlaps it, but a proposal does: moved away afterwards, or removed in an earlier
       stage, the last that had one;
    7. nothing did: never proposed; or not traced, where ``trails`` is None.
    """
    shown = image.scores >= threshold
    missed = []
    for j in np.flatnonzero(~image.truth.crowd).tolist():
        finder = image.found_by[j]
        if finder < 0 or not shown[finder]:
            cause = _explain(image, j, None if trails is None else trails[j], shown, threshold)
            has_stage = stages and cause.cause != Cause.MERGED  # the merge of views comes after all of them
            missed.append(cause._replace(stage=cause.stage or _stage_of(cause, stages)) if has_stage else cause)
    return missed


def _stage_of(missed: Missed, stages: Sequence[str]) -> str:
    """Where no candidate tells it: all windows are the first stage's, all detections the last one's."""
    return stages[0] if missed.cause == Cause.NEVER_PROPOSED else stages[-1]


def _explain(image: ImageErrors, j: int, trails: Sequence[Trail] | None, shown: np.ndarray, threshold: float) -> Missed:
    same_class = image.labels == image.truth.labels[j]
    overlaps = image.iou[:, j] >= POSITIVE_IOU
    final = [t for t in trails or () if not t.is_proposal]
    wrong = shown & ~image.right & ~image.inside_crowd

    if (shared := shown & same_class & overlaps).any():
        return _by_detection(image, j, Cause.SHARED, shared)
    removed = [t for t in final if t.candidate.score >= threshold and Fate.LOW_SCORE < t.fate < Fate.KEPT]
    if removed:
        return _by_trail(j, max(removed, key=lambda t: (t.fate, t.candidate.score)))
    if (other_class := wrong & ~same_class & overlaps).any():
        return _by_detection(image, j, Cause.WRONG_CLASS, other_class)
    own = image.iou * (image.labels[:, None] == image.truth.labels)
    nearest = own.argmax(axis=1) == j
    if (loose := wrong & same_class & ~overlaps & nearest & (image.iou[:, j] >= BACKGROUND_IOU)).any():
        return _by_detection(image, j, Cause.BADLY_PLACED, loose)
    if final:
        best = max(final, key=lambda t: t.candidate.score)
        return Missed(j, Cause.LOW_SCORE, False, best.candidate, best.iou, stage=best.stage)
    if trails:
        order = list(dict.fromkeys(t.stage for t in trails))  # of a cascade, the stages in which something was near it
        return _by_trail(j, max(trails, key=lambda t: (order.index(t.stage), t.fate, t.candidate.score)))
    return Missed(j, Cause.NOT_TRACED if trails is None else Cause.NEVER_PROPOSED)


def _by_detection(image: ImageErrors, j: int, cause: Cause, which: np.ndarray) -> Missed:
    """By the detection among ``which`` (D,) that scores most."""
    i = int(np.flatnonzero(which)[0])
    x1, y1, x2, y2 = image.boxes[i].tolist()
    box = ScoredBox((x1, y1, x2, y2), int(image.labels[i]), float(image.scores[i]))
    return Missed(j, cause, False, None, float(image.iou[i, j]), box)


def _by_trail(j: int, trail: Trail) -> Missed:
    # a proposal that was kept overlapped the object, and the second stage then moved it away
    cause = Cause.BADLY_PLACED if trail.fate == Fate.KEPT else _CAUSE_OF[trail.fate]
    at_proposals = trail.is_proposal and trail.fate != Fate.KEPT
    return Missed(j, cause, at_proposals, trail.candidate, trail.iou, trail.suppressor, trail.stage)


def _best_of_each_fate(selection: Selection, rows: torch.Tensor, iou: torch.Tensor, affine: Affine) -> list[Trail]:
    trails = []
    fates, scores = selection.fates[rows], selection.scores[rows]
    for fate in fates.unique().tolist():
        best = int(rows[scores.masked_fill(fates != fate, -torch.inf).argmax()])
        by = int(selection.suppressors[best])
        suppressor = _scored_box(selection, by, affine) if by >= 0 else None
        candidate = _scored_box(selection, best, affine)
        is_proposal = candidate.label == NO_CLASS
        trails.append(Trail(is_proposal, Fate(fate), candidate, float(iou[best]), suppressor, selection.stage))
    return trails


def _scored_box(selection: Selection, row: int, affine: Affine) -> ScoredBox:
    x1, y1, x2, y2 = affine.undo(selection.boxes[row : row + 1].double().cpu())[0].tolist()
    return ScoredBox((x1, y1, x2, y2), int(selection.labels[row]), float(selection.scores[row]))


def describe(missed: Missed, names: Sequence[str]) -> str:
    """One clause for a reader: the cause with the scores and boxes that it speaks of."""

    def called(box: ScoredBox) -> str:
        what = "proposal" if box.label == NO_CLASS else names[box.label]
        return f"{what} {box.score:.2f}"

    where = f" in {missed.stage}" if missed.stage else " among the proposals" if missed.at_proposals else ""
    words = [missed.cause + where]
    if missed.cause == Cause.NEVER_PROPOSED and missed.stage:
        words.append(f"no window has an IoU of {POSITIVE_IOU:g} with it")
    if missed.candidate is not None:
        words.append(f"its best candidate was {called(missed.candidate)} (IoU {missed.iou:.2f})")
    if missed.other is not None:
        took_its_place = missed.cause in (Cause.SUPPRESSED, Cause.MERGED)
        by = "suppressed by" if missed.cause == Cause.SUPPRESSED else "instead"
        where = "" if took_its_place else f" (IoU {missed.iou:.2f})"
        words.append(f"{by} {called(missed.other)}{where}")
    return ", ".join(words)
