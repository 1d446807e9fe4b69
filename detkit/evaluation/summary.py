"""COCO's twelve numbers out of the precision and recall arrays, added up in pycocotools' order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


class Settings(NamedTuple):
    """What is averaged over: COCO's own by default.

    ``iou_thresholds`` (T,) and ``recall_thresholds`` (R,) ascending; ``areas``: names with bounds in px^2, "all" first.
    """

    iou_thresholds: tuple[float, ...] = tuple(IOU_THRESHOLDS.tolist())
    recall_thresholds: tuple[float, ...] = tuple(RECALL_THRESHOLDS.tolist())
    areas: tuple[tuple[str, float, float], ...] = (("all", 0.0, 1e10), *((n, *b) for n, b in SIZE_BOUNDS.items()))


COCO_SETTINGS = Settings()

#: How frequent a class is in training, LVIS's words; its first letter stands behind AP.
FREQUENCIES = ("rare", "common", "frequent")


class Metric(NamedTuple):
    """One of the numbers: the mean of which part of the arrays. ``iou`` None: over all thresholds.

    ``t`` and ``a``: where its threshold and area stand in the arrays. ``classes``: the categories that it is about, by
    their place in the K axis; None for all.
    """

    name: str
    is_recall: bool
    iou: float | None
    area: str
    limit: int
    t: int | None = None
    a: int = 0
    classes: tuple[int, ...] | None = None

    def select(self, curves: Curves, k: int | slice = slice(None)) -> np.ndarray:
        """The entries that this number is the mean of, for category index ``k`` or for all."""
        values = curves.recall if self.is_recall else curves.precision
        values = values[slice(None) if self.t is None else self.t][..., self.a, self.limit]
        return values[..., k if self.classes is None else list(self.classes)]


def coco_metrics(
    max_detections: tuple[int, int, int],
    settings: Settings = COCO_SETTINGS,
    groups: Mapping[str, tuple[int, ...]] | None = None,
) -> tuple[Metric, ...]:
    """The twelve in pycocotools' order; then, for each of ``groups`` of categories, the AP of these alone.

    pycocotools fixes the limit of the first one, AP, at 100, and reports -1 for it when 100 is not among the limits.
    Here AP takes the largest limit like the five after it, which is the same thing for the usual (1, 10, 100). Of other
    settings there are AP50 and AP75 if these thresholds are among them, and an AP and AR of each area.
    """
    at = {threshold: t for t, threshold in enumerate(settings.iou_thresholds)}
    areas = [(name, a, _suffix(name, settings)) for a, (name, *_) in enumerate(settings.areas) if a > 0]
    return (
        Metric("AP", False, None, "all", 2),
        *(Metric(f"AP{100 * iou:.0f}", False, iou, "all", 2, at[iou]) for iou in (0.5, 0.75) if iou in at),
        *(Metric(f"AP{suffix}", False, None, area, 2, a=a) for area, a, suffix in areas),
        *(Metric(f"AR{count}", True, None, "all", m) for m, count in enumerate(max_detections)),
        *(Metric(f"AR{suffix}", True, None, area, 2, a=a) for area, a, suffix in areas),
        *(Metric(f"AP{name[0]}", False, None, "all", 2, classes=classes) for name, classes in (groups or {}).items()),
    )


def _suffix(area: str, settings: Settings) -> str:
    """What stands behind AP for an area: its first letter, or all of it where it is not COCO's."""
    return area[0] if settings.areas == COCO_SETTINGS.areas else f"_{area}"


def is_score(metric: str) -> bool:
    """Whether ``metric`` of an evaluation is of its detections, for which -1 stands for "not defined": the others are
    "val_loss", its terms, "val_loss/NAME", and what the detector told with them, "stat/NAME"."""
    return metric != "val_loss" and "/" not in metric


def with_nan(values: np.ndarray) -> np.ndarray:
    """Scores with nan where they are not defined: what is to be added up, compared or drawn."""
    return np.where(values == UNDEFINED, np.nan, values)


def mean(values: np.ndarray) -> float:
    """The mean of the defined entries, or -1 where there is none."""
    defined = values[values > -1]
    return float(np.mean(defined)) if len(defined) else UNDEFINED


def summarize(curves: Curves, definitions: Sequence[Metric]) -> dict[str, float]:
    """The numbers by name, to pycocotools' last bit."""
    return {metric.name: mean(metric.select(curves)) for metric in definitions}
