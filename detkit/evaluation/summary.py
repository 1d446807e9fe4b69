"""COCO's twelve numbers out of the precision and recall arrays, added up in pycocotools' order."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

#: The settings along the axes of the arrays, as pycocotools builds them: float32 thresholds would change the result.
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_THRESHOLDS = np.linspace(0.0, 1.0, 101)
AREAS = ("all", "small", "medium", "large")

#: COCO's bounds between small, medium and large objects: areas in px^2.
SIZE_BOUNDS = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, np.inf)}

#: What pycocotools writes where there is no object to find. No score: see :func:`with_nan`.
UNDEFINED = -1.0


class Curves(NamedTuple):
    """T IoU thresholds, R recall thresholds, K categories by ascending id, A areas, M limits of detections; float64.

    ``precision`` (T, R, K, A, M): the interpolated precision at each recall, 0 where that recall is not reached;
    ``recall`` (T, K, A, M): the largest recall; ``scores`` (T, R, K, A, M): the score at which each recall is reached.
    -1 where the ground truth has no object of that category and area.
    """

    precision: np.ndarray
    recall: np.ndarray
    scores: np.ndarray


class Metric(NamedTuple):
    """One of the twelve numbers: the mean of which part of the arrays. ``iou`` None: over all thresholds."""

    name: str
    is_recall: bool
    iou: float | None
    area: str
    limit: int

    def select(self, curves: Curves, k: int | slice = slice(None)) -> np.ndarray:
        """The entries that this number is the mean of, for category index ``k`` or for all."""
        t = slice(None) if self.iou is None else IOU_THRESHOLDS.tolist().index(self.iou)
        values = curves.recall if self.is_recall else curves.precision
        return values[t][..., k, AREAS.index(self.area), self.limit]


def coco_metrics(max_detections: tuple[int, int, int]) -> tuple[Metric, ...]:
    """The twelve in pycocotools' order.

    pycocotools fixes the limit of the first one, AP, at 100, and reports -1 for it when 100 is not among the limits.
    Here AP takes the largest limit like the five after it, which is the same thing for the usual (1, 10, 100).
    """
    areas = ("small", "medium", "large")
    return (
        Metric("AP", False, None, "all", 2),
        Metric("AP50", False, 0.5, "all", 2),
        Metric("AP75", False, 0.75, "all", 2),
        *(Metric(f"AP{area[0]}", False, None, area, 2) for area in areas),
        *(Metric(f"AR{count}", True, None, "all", m) for m, count in enumerate(max_detections)),
        *(Metric(f"AR{area[0]}", True, None, area, 2) for area in areas),
    )


def with_nan(values: np.ndarray) -> np.ndarray:
    """Scores with nan where they are not defined: what is to be added up, compared or drawn."""
    return np.where(values == UNDEFINED, np.nan, values)


def mean(values: np.ndarray) -> float:
    """The mean of the defined entries, or -1 where there is none."""
    defined = values[values > -1]
    return float(np.mean(defined)) if len(defined) else UNDEFINED


def summarize(curves: Curves, max_detections: tuple[int, int, int]) -> dict[str, float]:
    """The twelve numbers by name, to pycocotools' last bit."""
    return {metric.name: mean(metric.select(curves)) for metric in coco_metrics(max_detections)}
