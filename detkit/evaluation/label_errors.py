"""Labels that a detector which has not seen them speaks against: image by image, each label in one finding at most.

What counts at a place is not the detection alone but every candidate there, kept or removed: s_k is the best score of
class k among those that overlap the place by half, and s = 1 - prod_k (1 - s_k) says that there is an object, whatever
it is. Of an image that was looked at several times s_k is the mean over the looks. Detections and labelled boxes are
paired, whatever their classes, so that the sum of s times IoU is the greatest.

- A pair in which another class than the label's has the best s_k, at an IoU of at least 0.5: the class is wrong, by
  s_k (1 - s_l), with l the label's class.
- A pair: the box is misplaced, by s_l (1 - IoU), with the greatest IoU of the label's box with the detection and with
  what one of the looks has surest of class l there: a look that agrees with the label speaks for it. Of the two a label
  has the surer one.
- A detection without a partner: an object has no box, by s (1 - the greatest IoU with a label). One that overlaps a
  label or a detection that has one by half is a second opinion about that and no finding; of several at one place the
  surest is; in crowds none is.
- A box without a partner: there is no object, by 1 - s at its own place.
- Of two boxes of one class with an IoU of at least 0.7 the one without a partner is a duplicate, by their IoU times the
  s_l of the other's detection.

That a class is not seen which detectors often do not see says little: :func:`rarities`.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

import numpy as np
import torch

from detkit.evaluation.errors import BACKGROUND_IOU, POSITIVE_IOU
from detkit.structures import GroundTruth
from detkit.structures.boxes import pairwise_cover, pairwise_iou, xywh_to_xyxy

#: A class of which more than this share of the labels is not seen is hard for the detectors: labellers err less.
COMMON = 0.02

#: Two boxes of one class that overlap by this are taken for one object labelled twice.
DUPLICATE_IOU = 0.7


class Kind(StrEnum):
    """What may be wrong with a label."""

    MISSING = "missing"
    SPURIOUS = "no object"
    MISPLACED = "misplaced"
    WRONG_CLASS = "wrong class"
    DUPLICATE = "duplicate"


class Candidates(NamedTuple):
    """C scored boxes of one image: ``boxes`` (C, 4) float64 x1 y1 x2 y2 px of the original, ``labels`` (C,) int64 and
    ``scores`` (C,) float64."""

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray


class Suspicion(NamedTuple):
    """A label that is likely wrong.

    ``certainty`` in [0, 1]: how much speaks against it. ``index``: its row in the GroundTruth; None of an object
    without a box. ``detection``: the row of the detection that says so; None where none does. ``box`` (x1 y1 x2 y2 px)
    and ``label``: as they should be; None of a box that should go. ``other``: of a duplicate the row of the box that
    stays.
    """

    kind: Kind
    certainty: float
    index: int | None
    detection: int | None
    box: tuple[float, float, float, float] | None = None
    label: int | None = None
    other: int | None = None


class Judged(NamedTuple):
    """Of one image with G labels: the suspicions, the surest first, and ``is_unseen`` (G,) bool, in whose place the
    detector sees nothing; crowds are none of these."""

    suspicions: list[Suspicion]
    is_unseen: np.ndarray


def label_errors(truth: GroundTruth, found: Candidates, candidates: Sequence[Candidates], num_classes: int) -> Judged:
    """What speaks against the labels of one image.

    Args:
        truth: the labels; crowds are neither paired nor suspected.
        found: the detections.
        candidates: of each look at the image what detections were chosen from, or these where that is not known.
    """
    labels = _Boxes(xywh_to_xyxy(torch.from_numpy(truth.boxes.reshape(-1, 4))).numpy(), candidates, num_classes)
    detections = _Boxes(found.boxes, candidates, num_classes)
    iou = _overlap(found.boxes, labels.corners) * ~truth.crowd
    own = np.where(found.labels[:, None] == truth.labels, 1.0, 0.999)  # of two boxes at one place that of its class
    partner = _pair(detections.object[:, None] * iou * own * (iou >= BACKGROUND_IOU))
    paired = np.flatnonzero(partner >= 0)
    is_unseen = ~truth.crowd
    is_unseen[paired[iou[partner[paired], paired] >= POSITIVE_IOU]] = False
    suspicions = [
        *_of_pairs(truth, labels, detections, iou, partner, candidates),
        *_of_detections(truth, found, detections, iou, partner),
        *_of_boxes(truth, labels, detections, partner),
    ]
    return Judged(sorted(suspicions, key=lambda one: -one.certainty), is_unseen)


def rarities(labels: np.ndarray, is_unseen: np.ndarray, num_classes: int) -> np.ndarray:
    """(N,) in [0, 1], of N labels in whose place nothing may be seen: 1 where labels of their class are rarely unseen,
    and the less the more others of it are.

    Args:
        labels: (N,) int64, of all images together.
        is_unseen: (N,) bool, of which of them that is so.
    """
    unseen, every = (np.bincount(some, minlength=num_classes)[labels] for some in (labels[is_unseen], labels))
    others = (unseen - is_unseen) / every  # itself is no witness
    return np.minimum(1, COMMON / others.clip(min=COMMON))


class _Boxes:
    """N boxes, ``corners`` (N, 4), and what the candidates at their places say: ``scores`` (N, K), and of any
    ``object`` (N,)."""

    def __init__(self, corners: np.ndarray, candidates: Sequence[Candidates], num_classes: int) -> None:
        self.corners = corners
        self.scores = np.mean([_scores_at(corners, one, num_classes) for one in candidates], axis=0)
        self.object = 1 - (1 - self.scores).prod(axis=1)


def _scores_at(corners: np.ndarray, candidates: Candidates, num_classes: int) -> np.ndarray:
    """(N, K) best score of each class at the places ``corners`` (N, 4)."""
    best = np.zeros((len(corners), num_classes))
    near = _overlap(corners, candidates.boxes) >= POSITIVE_IOU
    for scores, at in zip(best, near, strict=True):
        np.maximum.at(scores, candidates.labels[at], candidates.scores[at])
    return best


def _pair(gain: np.ndarray) -> np.ndarray:
    """The detection (G,) of each labelled box, -1 for none, by the greatest sum of ``gain`` (D, G)."""
    from scipy.optimize import linear_sum_assignment

    partner = np.full(gain.shape[1], -1)
    rows, columns = linear_sum_assignment(gain, maximize=True)
    real = gain[rows, columns] > 0
    partner[columns[real]] = rows[real]
    return partner


def _of_pairs(
    truth: GroundTruth,
    labels: _Boxes,
    detections: _Boxes,
    iou: np.ndarray,
    partner: np.ndarray,
    looks: Sequence[Candidates],
) -> list[Suspicion]:
    suspicions = []
    for j in np.flatnonzero(partner >= 0).tolist():
        i, own = int(partner[j]), int(truth.labels[j])
        scores = detections.scores[i]
        best = int(scores.argmax())
        overlap = float(iou[i, j])
        nearest = max(overlap, _agreement(labels.corners[j], detections.corners[i], own, looks))
        misplaced = float(scores[own]) * (1 - nearest)
        wrong = float(scores[best] * (1 - scores[own])) if best != own and overlap >= POSITIVE_IOU else 0.0
        if wrong > misplaced:
            suspicions.append(Suspicion(Kind.WRONG_CLASS, wrong, j, i, _corners(labels.corners[j]), best))
        else:
            suspicions.append(Suspicion(Kind.MISPLACED, misplaced, j, i, _corners(detections.corners[i]), own))
    return suspicions


def _agreement(box: np.ndarray, place: np.ndarray, label: int, looks: Sequence[Candidates]) -> float:
    """The greatest IoU of ``box`` with what a look has surest of class ``label`` at ``place``; 0 where none has any."""
    agreements = [0.0]
    for look in looks:
        near = np.flatnonzero((look.labels == label) & (_overlap(place[None], look.boxes)[0] >= POSITIVE_IOU))
        if len(near):
            surest = near[look.scores[near].argmax()]
            agreements.append(_overlap(box[None], look.boxes[surest][None]).item())
    return max(agreements)


def _of_detections(
    truth: GroundTruth, found: Candidates, detections: _Boxes, iou: np.ndarray, partner: np.ndarray
) -> list[Suspicion]:
    nearest = iou.max(axis=1, initial=0)
    overlap = _overlap(found.boxes, found.boxes)
    told = overlap[:, partner[partner >= 0]].max(axis=1, initial=0) >= POSITIVE_IOU  # themselves too
    alone = ~told & (nearest < POSITIVE_IOU) & ~_in_crowds(found.boxes, truth)
    certainty = detections.object * (1 - nearest)
    kept: list[int] = []
    for i in sorted(np.flatnonzero(alone).tolist(), key=lambda i: (-certainty[i], -found.scores[i])):
        if not (overlap[i, kept] >= POSITIVE_IOU).any():
            kept.append(i)
    return [
        Suspicion(
            Kind.MISSING, float(certainty[i]), None, i, _corners(found.boxes[i]), int(detections.scores[i].argmax())
        )
        for i in kept
    ]


def _of_boxes(truth: GroundTruth, labels: _Boxes, detections: _Boxes, partner: np.ndarray) -> list[Suspicion]:
    overlap = _overlap(labels.corners, labels.corners)
    suspicions = []
    for j in np.flatnonzero((partner < 0) & ~truth.crowd).tolist():
        own = int(truth.labels[j])
        twins = (truth.labels == own) & (partner >= 0) & (overlap[j] >= DUPLICATE_IOU)
        if twins.any():
            other = int((overlap[j] * twins).argmax())
            certainty = float(overlap[j, other] * detections.scores[partner[other], own])
            suspicions.append(Suspicion(Kind.DUPLICATE, certainty, j, int(partner[other]), other=other))
        else:
            suspicions.append(Suspicion(Kind.SPURIOUS, 1 - float(labels.object[j]), j, None))
    return suspicions


def _corners(box: np.ndarray) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = box.tolist()
    return x1, y1, x2, y2


def _overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU (N, M) of boxes (N, 4) and (M, 4)."""
    return pairwise_iou(torch.from_numpy(a), torch.from_numpy(b)).numpy()


def _in_crowds(boxes: np.ndarray, truth: GroundTruth) -> np.ndarray:
    """(D,) bool: which boxes lie in a crowd by half."""
    crowds = xywh_to_xyxy(torch.from_numpy(truth.boxes.reshape(-1, 4)[truth.crowd]))
    return pairwise_cover(torch.from_numpy(boxes), crowds).numpy().max(axis=1, initial=0) >= POSITIVE_IOU
