"""Detections matched with objects once, and COCO's numbers of them for any weights of the images.

Resampling images leaves every match as it is: only how often each counts changes. So a bootstrap needs one matching,
pycocotools' own, and a cheap accumulation for each of its samples.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from detkit.evaluation.backends import pycocotools_evaluation
from detkit.evaluation.columns_file import ScoredSet
from detkit.evaluation.summary import COCO_SETTINGS, UNDEFINED, Metric, Settings, coco_metrics, mean

#: Numbers held at a time while samples are accumulated: 100 MB of float64.
_CHUNK = 12_500_000


@dataclass(frozen=True, slots=True)
class ClassMatches:
    """D detections of one category, judged for one range of areas, by falling score.

    ``images`` (D,): the index of each one's image; ``ranks`` (D,): how many of the same image and category score
    higher. ``hit`` (T, D) bool: it found an object at that IoU threshold. ``counted`` (T, D) bool: it is not ignored.
    ``num_objects`` (I,): those to find in each image.
    """

    images: np.ndarray
    ranks: np.ndarray
    hit: np.ndarray
    counted: np.ndarray
    num_objects: np.ndarray


@dataclass(frozen=True, slots=True)
class Matches:
    """All detections of a data set of I images: ``by_area[area]`` holds one :class:`ClassMatches` for each category."""

    by_area: dict[str, tuple[ClassMatches, ...]]
    max_detections: tuple[int, int, int]
    num_images: int
    settings: Settings = COCO_SETTINGS
    definitions: tuple[Metric, ...] = ()

    def metric(self, name: str) -> Metric:
        """The definition of one of COCO's numbers.

        Raises:
            ValueError: there is no such number.
        """
        metrics = {
            metric.name: metric for metric in self.definitions or coco_metrics(self.max_detections, self.settings)
        }
        if name not in metrics:
            raise ValueError(f"no metric {name!r}; there are {', '.join(metrics)}")
        return metrics[name]


def match(scored: ScoredSet) -> Matches:
    """Match detections with objects as pycocotools does."""
    evaluation = pycocotools_evaluation(scored.truth, scored.found, scored.max_detections, scored.settings)
    num_images = len(scored.truth.image_ids)
    rows = iter(evaluation.evalImgs)  # by category, then area, then image; None where an image has neither side
    by_area: dict[str, list[ClassMatches]] = {area: [] for area in evaluation.params.areaRngLbl}
    for _ in scored.truth.category_ids:
        for matches in by_area.values():
            matches.append(_class_matches([next(rows) for _ in range(num_images)], scored.settings))
    parts = {area: tuple(found) for area, found in by_area.items()}
    return Matches(parts, scored.max_detections, num_images, scored.settings, scored.definitions)


def accumulate(matches: Matches, metric: Metric, weights: np.ndarray) -> np.ndarray:
    """One of COCO's numbers for samples in which the images count more or less often.

    With weights of 1 it is pycocotools' to the last bit, and with whole numbers that of a data set in which each image
    stands so many times.

    Args:
        weights: (B, I), from 0 on.

    Returns:
        (B,) float64; -1 where a sample has no such object.
    """
    if weights.ndim != 2 or weights.shape[1] != matches.num_images:
        raise ValueError(f"weights must be (B, {matches.num_images}), not {weights.shape}")
    weights = weights.astype(np.float64)
    parts = matches.by_area[metric.area]
    if metric.classes is not None:
        parts = tuple(parts[k] for k in metric.classes)
    recalls = np.array(matches.settings.recall_thresholds)
    thresholds = range(len(matches.settings.iou_thresholds)) if metric.t is None else [metric.t]
    limit = matches.max_detections[metric.limit]
    longest = max([len(part.images) for part in parts] + [len(thresholds) * len(recalls) * len(parts)])
    step = max(1, _CHUNK // longest)
    curve = _recall if metric.is_recall else functools.partial(_precision, recalls=recalls)
    result = []
    for start in range(0, len(weights), step):
        chunk = weights[start : start + step]
        values = np.stack([curve(_up_to(part, limit), thresholds, chunk) for part in parts], axis=-1)
        result += [mean(sample) for sample in values]  # over thresholds, recalls and categories, in that order
    return np.array(result)


def _precision(
    part: ClassMatches, thresholds: range | list[int], weights: np.ndarray, recalls: np.ndarray
) -> np.ndarray:
    """(B, T, R): the interpolated precision at each recall.

    Recall grows at hits alone, and between two of them precision falls: the curve is wanted at hits only.
    """
    result = np.zeros((len(weights), len(thresholds), len(recalls)))
    to_find = weights @ part.num_objects
    of_detection = weights[:, part.images]
    seen_of_all = None
    for i, t in enumerate(thresholds):
        counted = part.counted[t]
        hits = np.flatnonzero(part.hit[t] & counted)
        if not len(hits):
            continue
        if counted.all():
            seen_of_all = of_detection.cumsum(axis=1) if seen_of_all is None else seen_of_all
            seen = seen_of_all[:, hits]
        else:
            seen = (of_detection * counted).cumsum(axis=1)[:, hits]
        found = of_detection[:, hits].cumsum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            recall = found / to_find[:, None]
        precision = found / ((seen - found) + found + np.spacing(1))  # the reference's very terms
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        for b in np.flatnonzero(to_find):
            place = np.searchsorted(recall[b], recalls, side="left")
            reached = place < len(hits)
            result[b, i, reached] = best[b, place[reached]]
    result[to_find == 0] = UNDEFINED
    return result


def _recall(part: ClassMatches, thresholds: range | list[int], weights: np.ndarray) -> np.ndarray:
    """(B, T): the recall that all detections together reach."""
    to_find = weights @ part.num_objects
    result = np.full((len(weights), len(thresholds)), UNDEFINED)
    defined = to_find > 0
    for i, t in enumerate(thresholds):
        found = weights[:, part.images[part.hit[t] & part.counted[t]]].sum(axis=1)
        result[defined, i] = found[defined] / to_find[defined]
    return result


def _up_to(part: ClassMatches, limit: int) -> ClassMatches:
    """The best ``limit`` detections of each image."""
    kept = part.ranks < limit
    if kept.all():
        return part
    return ClassMatches(part.images[kept], part.ranks[kept], part.hit[:, kept], part.counted[:, kept], part.num_objects)


def _class_matches(rows: list[dict | None], settings: Settings) -> ClassMatches:
    """What pycocotools found in each image, in one."""
    num_objects = np.array([0 if row is None else np.count_nonzero(row["gtIgnore"] == 0) for row in rows], np.float64)
    found = list(_with_detections(rows))
    if not found:
        none = np.zeros((len(settings.iou_thresholds), 0), bool)
        return ClassMatches(np.zeros(0, np.int64), np.zeros(0, np.int64), none, none, num_objects)
    order = np.argsort(-np.concatenate([row["dtScores"] for _, row in found]), kind="mergesort")
    return ClassMatches(
        images=np.concatenate([np.full(len(row["dtScores"]), i) for i, row in found])[order],
        ranks=np.concatenate([np.arange(len(row["dtScores"])) for _, row in found])[order],
        hit=np.concatenate([row["dtMatches"] for _, row in found], axis=1)[:, order] != 0,
        counted=np.concatenate([row["dtIgnore"] for _, row in found], axis=1)[:, order] == 0,
        num_objects=num_objects,
    )


def _with_detections(rows: list[dict | None]) -> Iterator[tuple[int, dict]]:
    for i, row in enumerate(rows):
        if row is not None and len(row["dtScores"]):
            yield i, row
