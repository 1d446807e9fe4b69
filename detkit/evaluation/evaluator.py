"""What every evaluator does, and what it finds."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table
from rich.text import Text

from detkit.evaluation.results import Results
from detkit.evaluation.summary import AREAS, COCO_SETTINGS, FREQUENCIES, UNDEFINED, Curves, Metric, Settings
from detkit.structures import Detections, ImageMeta
from detkit.utils.files import atomic_write

#: Classes that a table shows; of more, as many of the best and the worst.
MOST_ROWS = 100


class EvaluatorState(NamedTuple):
    """What one process has seen: the ids (S,) of its images, also of those without detections, and their detections.

    Plain arrays, so that it can be pickled and gathered.
    """

    image_ids: np.ndarray
    results: Results


class Evaluator(ABC):
    """Takes detections batch by batch and scores them against the ground truth of the whole data set.

    ``metric_names``: of the scores that :meth:`compute` gives; empty where they are not known before.
    """

    metric_names: tuple[str, ...] = ()

    @abstractmethod
    def reset(self) -> None:
        """Forget all detections."""

    @abstractmethod
    def update(self, detections: Sequence[Detections], metas: Sequence[ImageMeta]) -> None:
        """Take the ``detections`` (px of the network input) of a batch of images; each image comes once."""

    @abstractmethod
    def compute(self, *, allow_missing: bool = False) -> Evaluation:
        """Score what has come since the last reset; ``allow_missing`` lets images be absent, as without detections."""

    @abstractmethod
    def state(self) -> EvaluatorState:
        """What has come since the last reset, to be sent to another process."""

    @abstractmethod
    def merge(self, states: Sequence[EvaluatorState]) -> None:
        """Replace what has come by that of all ``states``: the same numbers as from one process with all images."""


@dataclass(frozen=True, slots=True)
class ClassResult:
    """One class: AP, AP50 and AP75 over all areas at the largest limit of detections, and AR the same.

    ``num_gt`` counts the objects to find, so no crowds; ``num_det`` all detections. -1 where there is nothing to find.
    """

    name: str
    AP: float
    AP50: float
    AP75: float
    AR: float
    num_gt: int
    num_det: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The scores of a detector on a data set.

    ``metrics``: COCO's twelve numbers in pycocotools' order, and those of landmarks where there are any. A number that
    is not defined, because the ground truth has no such object, is -1 as in pycocotools; take :meth:`value` to compare
    checkpoints, for which it is nan.
    ``per_class``: one row for each class in label order. ``curves``: the arrays behind them, whose K axis follows
    ``category_ids``, ascending. ``max_detections``: the limits for each image and class. ``backend``: what computed it.
    ``settings``: thresholds and areas. ``frequency``: how frequent each class is in training, if known, in label order.
    ``beside``: numbers that are no scores (losses, and what the detector told with them), if any; none is undefined.
    """

    metrics: dict[str, float]
    per_class: tuple[ClassResult, ...]
    curves: Curves
    definitions: tuple[Metric, ...]
    category_ids: tuple[int, ...]
    max_detections: tuple[int, int, int]
    num_images: int
    num_detections: int
    backend: str
    settings: Settings = COCO_SETTINGS
    frequency: tuple[str, ...] | None = None
    beside: Mapping[str, float] = field(default_factory=dict)

    @property
    def precision(self) -> np.ndarray:
        """(T, R, K, A, M): see :class:`~detkit.evaluation.summary.Curves`."""
        return self.curves.precision

    @property
    def recall(self) -> np.ndarray:
        """(T, K, A, M): see :class:`~detkit.evaluation.summary.Curves`."""
        return self.curves.recall

    @property
    def scores(self) -> np.ndarray:
        """(T, R, K, A, M): see :class:`~detkit.evaluation.summary.Curves`."""
        return self.curves.scores

    def value(self, name: str) -> float:
        """The metric ``name``, or nan where it is not defined, so that it is never greater than another.

        Raises:
            ValueError: there is no such metric.
        """
        if name not in self.metrics:
            raise ValueError(f"no metric {name!r}; there are {', '.join(self.metrics)}")
        return math.nan if self.metrics[name] == UNDEFINED else self.metrics[name]

    def to_dict(self) -> dict[str, Any]:
        """All but the arrays, as plain values; None for a number beside the scores that is not finite."""
        beside = {name: value if math.isfinite(value) else None for name, value in self.beside.items()}
        return {
            "metrics": {**self.metrics, **beside},
            "per_class": [asdict(row) for row in self.per_class],
            "max_detections": list(self.max_detections),
            "num_images": self.num_images,
            "num_detections": self.num_detections,
            "backend": self.backend,
        } | ({} if self.frequency is None else {"frequency": list(self.frequency)})

    def to_json(self) -> str:
        """:meth:`to_dict` as JSON text; the numbers keep all their digits."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False, ensure_ascii=False) + "\n"

    def save(self, path: str | Path) -> None:
        """Write :meth:`to_json` to ``path``, whole or not at all."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, self.to_json())

    def table(self) -> Table:
        """The numbers, to be printed by rich."""
        table = Table(title=f"COCO metrics: {self.num_images} images, {self.num_detections} detections")
        for heading in ("metric", "IoU", "area"):
            table.add_column(heading)
        table.add_column("max detections", justify="right")
        table.add_column("value", justify="right")
        first, *_, last = (self.settings.iou_thresholds[0], *self.settings.iou_thresholds)
        for metric in self.definitions:
            iou = f"{first:.2f}:{last:.2f}" if metric.iou is None else f"{metric.iou:.2f}"
            limit = str(self.max_detections[metric.limit])
            area = metric.area if metric.classes is None else self._in_words(metric)
            table.add_row(metric.name, iou, area, limit, _shown(self.metrics[metric.name]))
        for name in [name for name in self.metrics if name not in {m.name for m in self.definitions}]:
            table.add_row(name, "", "", "", _shown(self.metrics[name]))
        for name, value in self.beside.items():
            table.add_row(name, "", "", "", f"{value:.4f}")
        return table

    def _in_words(self, metric: Metric) -> str:
        """Of which classes a metric is."""
        name = next(name for name in FREQUENCIES if metric.name == f"AP{name[0]}")
        return f"{name}, {len(metric.classes or ())} classes"

    def per_class_table(self) -> Table:
        """One row for each class, to be printed by rich; of many classes the best and the worst."""
        table = Table(title=f"by class: area {AREAS[0]}, at most {self.max_detections[-1]} detections")
        table.add_column("class")
        for heading in ("AP", "AP50", "AP75", "AR", "objects", "detections"):
            table.add_column(heading, justify="right")
        for row in self._shown_rows():
            if row is None:
                table.add_row("...")
                continue
            numbers = (_shown(v) for v in (row.AP, row.AP50, row.AP75, row.AR))
            table.add_row(Text(row.name), *numbers, str(row.num_gt), str(row.num_det))
        if len(self.per_class) > MOST_ROWS:
            table.caption = f"the best and worst of {len(self.per_class)} classes; evaluation.json has all"
        return table

    def _shown_rows(self) -> list[ClassResult | None]:
        """All classes in label order; of many, the best and the worst, with None for those between."""
        if len(self.per_class) <= MOST_ROWS:
            return list(self.per_class)
        ordered = sorted((row for row in self.per_class if row.AP != UNDEFINED), key=lambda row: -row.AP)
        half = MOST_ROWS // 2
        return [*ordered] if len(ordered) <= MOST_ROWS else [*ordered[:half], None, *ordered[-half:]]


def _shown(value: float) -> str:
    return "-" if value == UNDEFINED else f"{value:.3f}"
