"""How well landmarks are found: their normalised mean error, and COCO's object keypoint similarity."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from detkit.evaluation.errors import image_errors
from detkit.evaluation.results import Results
from detkit.evaluation.summary import UNDEFINED, Curves, mean
from detkit.structures import Categories, GroundTruth

#: Scores of landmarks, beside COCO's numbers of boxes.
LANDMARK_METRICS = ("NME", "NME_average_place", "landmarks_found", "OKS_AP", "OKS_AP50", "OKS_AP75", "OKS_AR")

#: Those of them that are errors: lower is better.
LANDMARK_ERRORS = ("NME", "NME_average_place")

#: COCO's sigmas of its 17 points of people (https://cocodataset.org/#keypoints-eval), and, where nobody says otherwise,
#: that of other points: between those of COCO's eyes (0.025) and shoulders (0.079).
COCO_SIGMAS = (
    0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072,
    0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089,
)  # fmt: skip
_SIGMA = 0.05


class LandmarkRule(NamedTuple):
    """``distance``: the two points whose distance is the measure of an error, None for the root of the box's area;
    ``sigmas`` (L,) of the object keypoint similarity."""

    distance: tuple[int, int] | None
    sigmas: tuple[float, ...]


def landmark_rule(
    names: Sequence[str], distance: tuple[str, str] | None, sigmas: Sequence[float] | None
) -> LandmarkRule:
    """What the options of an evaluator mean for the L points ``names``.

    Raises:
        ValueError: a point that there is not, or sigmas that are not one positive number for each point.
    """
    unknown = [name for name in distance or () if name not in names]
    if unknown or (distance is not None and distance[0] == distance[1]):
        raise ValueError(f"landmark_distance must be two of {', '.join(names)}, not {list(distance or ())}")
    if sigmas is None:
        sigmas = COCO_SIGMAS if len(names) == len(COCO_SIGMAS) else [_SIGMA] * len(names)
    if len(sigmas) != len(names) or not all(0 < s < np.inf for s in sigmas):
        raise ValueError(f"landmark_sigmas must be {len(names)} positive numbers, not {list(sigmas)}")
    between = None if distance is None else (names.index(distance[0]), names.index(distance[1]))
    return LandmarkRule(between, tuple(sigmas))


def with_landmarks(truths: Sequence[GroundTruth]) -> list[GroundTruth] | None:
    """``truths`` by image id; None where one of them has no landmarks."""
    ordered = sorted(truths, key=lambda truth: truth.image_id)
    return None if any(truth.landmarks is None for truth in ordered) else ordered


def normalised_errors(
    truths: Sequence[GroundTruth], found: Mapping[int, Results], categories: Categories, rule: LandmarkRule
) -> np.ndarray:
    """(N,) float64, of each object with a labelled point, crowds left out: the error of its points, nan if not found.

        e = (1 / V) sum_i |p_i - g_i| / d

    over its V labelled points, hidden ones too. The object is found by the best detection of its class with an IoU of
    at least 0.5, d is the distance of two of its points or the root of its box's area; where d is not known or 0 the
    object is left out.

    Args:
        found: detections by image id, which have landmarks.
    """
    parts = [_of_image(truth, found.get(truth.image_id, Results.empty()), categories, rule) for truth in truths]
    return np.array([error for part in parts for error in part])


def at_average_place(truths: Sequence[GroundTruth], found: Mapping[int, Results]) -> dict[int, Results]:
    """``found`` with each landmark where it lies on average in the boxes of ``truths``, all classes together.

    What a detector that knows boxes and nothing of landmarks would have, and one that has learnt some must beat.
    """
    shares = _average_shares(truths)
    return {
        image_id: replace(each, landmarks=each.boxes[:, None, :2] + shares * each.boxes[:, None, 2:])
        for image_id, each in found.items()
    }


def _average_shares(truths: Sequence[GroundTruth]) -> np.ndarray:
    """(L, 2): where the labelled points lie in their boxes, in shares of these; of a point without any 0.

    Crowds and boxes without an area are left out.
    """
    boxes = np.concatenate([truth.boxes for truth in truths])
    points = np.concatenate([truth.landmarks.points for truth in truths if truth.landmarks is not None])
    wanted = ~np.concatenate([truth.crowd for truth in truths]) & (boxes[:, 2:] > 0).all(axis=1)
    boxes, points = boxes[wanted], points[wanted]
    labelled = points[..., 2:] > 0
    places = (points[..., :2] - boxes[:, None, :2]) / boxes[:, None, 2:]
    return (places * labelled).sum(axis=0) / labelled.sum(axis=0).clip(min=1)


def mean_errors(errors: np.ndarray) -> dict[str, float]:
    """NME and landmarks_found of :func:`normalised_errors`, -1 where there is nothing to find, or nothing found."""
    is_found = np.isfinite(errors)
    return {
        "NME": float(errors[is_found].mean()) if is_found.any() else UNDEFINED,
        "landmarks_found": float(is_found.mean()) if len(errors) else UNDEFINED,
    }


def similarity_scores(curves: Curves) -> dict[str, float]:
    """AP and AR over COCO's ten thresholds of similarity, and AP at the first and the sixth, 0.5 and 0.75."""
    return {
        "OKS_AP": mean(curves.precision[..., 0, 0]),
        "OKS_AP50": mean(curves.precision[0, ..., 0, 0]),
        "OKS_AP75": mean(curves.precision[5, ..., 0, 0]),
        "OKS_AR": mean(curves.recall[..., 0, 0]),
    }


def _of_image(truth: GroundTruth, found: Results, categories: Categories, rule: LandmarkRule) -> Iterator[float]:
    if truth.landmarks is None:
        return
    labelled = truth.landmarks.is_labelled
    found_by = image_errors(truth, found, categories).found_by
    best_first = np.argsort(-found.scores, kind="stable")
    for k in np.flatnonzero(labelled.any(axis=1) & ~truth.crowd):
        measure = _measure(truth, int(k), rule)
        if not measure > 0:
            continue
        if found_by[k] < 0 or found.landmarks is None:
            yield np.nan
            continue
        points = found.landmarks[best_first[found_by[k]]]
        off = np.linalg.norm(points - truth.landmarks.points[k, :, :2], axis=1)
        yield float(off[labelled[k]].mean() / measure)


def _measure(truth: GroundTruth, k: int, rule: LandmarkRule) -> float:
    """What the error of object ``k`` is divided by, px; nan where a point that it needs is not labelled."""
    if rule.distance is None:
        return float(np.sqrt(truth.boxes[k, 2:].clip(0).prod()))
    assert truth.landmarks is not None
    one, other = truth.landmarks.points[k, list(rule.distance)]
    return float(np.linalg.norm(one[:2] - other[:2])) if one[2] and other[2] else np.nan
