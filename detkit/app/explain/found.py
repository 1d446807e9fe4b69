"""What went wrong in a detector's results, error by error, and the counts of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.table import Table

from detkit.data.datasets.base import DetectionDataset
from detkit.engine.evaluation import to_device
from detkit.engine.precision import Precision, autocast, check_precision
from detkit.evaluation.breakdown import by_class, by_size, confusion_matrix, false_alarms
from detkit.evaluation.causes import FALSE_ALARMS, Missed, Trail, describe, explain_missed, find_trails, stages_of
from detkit.evaluation.errors import ErrorKind, ImageErrors, best_threshold, error_costs, image_errors
from detkit.evaluation.results import restore
from detkit.matching.trace import tracing
from detkit.models import Detector
from detkit.structures import Batch, Categories, Images
from detkit.utils.log import logger


@dataclass(frozen=True, slots=True)
class Examined:
    """One image: its detections judged, and the trails of its objects; None where the detector leaves none.

    ``stages``: of a cascade, in their order.
    """

    errors: ImageErrors
    trails: list[list[Trail]] | None
    stages: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Explanation:
    """The errors of a detector on a data set, at one score threshold.

    ``ap50`` and ``costs``: see :func:`~detkit.evaluation.errors.error_costs`; they do not depend on the threshold.
    ``missed``: for each image its missed objects.
    """

    categories: Categories
    images: Sequence[ImageErrors]
    missed: Sequence[Sequence[Missed]]
    threshold: float
    ap50: float
    costs: dict[ErrorKind, float]

    @property
    def num_objects(self) -> int:
        """How many objects there were to find, crowds left out."""
        return sum(int((~i.truth.crowd).sum()) for i in self.images)

    @property
    def num_right(self) -> int:
        """Detections that found an object, which is also the number of found objects."""
        return sum(int((i.right & (i.scores >= self.threshold)).sum()) for i in self.images)

    def missed_by_cause(self) -> dict[str, int]:
        """Counts of missed objects, the most frequent cause first."""
        return dict(Counter(cause_of(m) for missed in self.missed for m in missed).most_common())

    def false_alarms_by_cause(self) -> dict[str, int]:
        """Counts of false alarms, the most frequent kind first."""
        kinds = (k for i in self.images for k in i.kinds[false_alarms(i, self.threshold)])
        return dict(Counter(FALSE_ALARMS[kind] for kind in kinds).most_common())

    def to_dict(self, source: str) -> dict[str, Any]:
        """Plain values: all numbers, and every missed object and false alarm by file and id."""
        names = self.categories.names
        return {
            "source": source,
            "score_threshold": self.threshold,
            "AP50": self.ap50,
            "cost_in_AP50": {kind.value: cost for kind, cost in self.costs.items()},
            "images": len(self.images),
            "objects": self.num_objects,
            "found": self.num_right,
            "missed_by_cause": self.missed_by_cause(),
            "false_alarms_by_cause": self.false_alarms_by_cause(),
            "by_class": by_class(self.images, names, self.threshold),
            "by_size": by_size(self.images, self.threshold),
            "confusion": confusion_matrix(self.images, len(names), self.threshold).tolist(),
            "missed": [_missed_row(i, m, names) for i, ms in zip(self.images, self.missed, strict=True) for m in ms],
            "false_alarms": [row for i in self.images for row in _alarm_rows(i, self.threshold, names)],
        }

    def table(self) -> Table:
        """The causes, to be printed by rich."""
        missed, alarms = self.missed_by_cause(), self.false_alarms_by_cause()
        title = (
            f"AP50 {self.ap50:.3f}; from score {self.threshold:.2f} on: {self.num_right} of {self.num_objects} objects "
            f"found, {sum(alarms.values())} false alarms"
        )
        table = Table(title=title, title_justify="left")
        for heading in ("what", "cause", "count"):
            table.add_column(heading, justify="right" if heading == "count" else "left", no_wrap=True)
        for what, counts in (("missed object", missed), ("false alarm", alarms)):
            for cause, count in counts.items():
                table.add_row(what, cause, str(count))
        return table


def examine(
    detector: Detector,
    batches: Iterator[Batch],
    dataset: DetectionDataset,
    *,
    device: torch.device,
    precision: Precision,
) -> Iterator[Examined]:
    """Detect on every image with the trace on, and judge what was found.

    Images of a batch go through the detector one by one, padded as they are in it: a trace is of one image.
    """
    check_precision(precision, device)
    truths = {truth.image_id: truth for truth in dataset.truths}
    warned = False
    for batch in batches:
        batch = to_device(batch, device, channels_last=False)
        for i, meta in enumerate(batch.images.meta):
            one = Images(batch.images.pixels[i : i + 1], (meta,))
            with torch.no_grad(), autocast(device, precision), tracing() as trace:
                (found,) = detector(one)
            truth = truths[meta.image_id]
            errors = image_errors(truth, restore(found, meta, dataset.categories), dataset.categories)
            assert meta.affine is not None, "the loader refuses transforms without an inverse"
            if not trace.selections and not warned:
                warned = True
                logger.warning("the detector removes candidates elsewhere than in detkit.matching.select: not traced")
            trails = find_trails(trace.selections, truth, meta.affine) if trace.selections else None
            yield Examined(errors, trails, stages_of(trace.selections))


def explain(examined: Sequence[Examined], categories: Categories, threshold: float | None = None) -> Explanation:
    """Attribute every error; ``threshold`` None takes the score of the best F1."""
    images = [e.errors for e in examined]
    chosen = best_threshold(images) if threshold is None else threshold
    missed = [explain_missed(e.errors, e.trails, chosen, e.stages) for e in examined]
    ap50, costs = error_costs(images, len(categories))
    return Explanation(categories, images, missed, chosen, ap50, costs)


def cause_of(missed: Missed) -> str:
    """The cause by which a missed object is counted."""
    where = missed.stage or ("proposals" if missed.at_proposals else "")
    return missed.cause.value + (f" ({where})" if where else "")


def _missed_row(image: ImageErrors, missed: Missed, names: Sequence[str]) -> dict[str, Any]:
    truth, j = image.truth, missed.index
    return {
        "image_id": truth.image_id,
        "file": truth.file,
        "annotation_id": int(truth.annotation_ids[j]),
        "class": names[int(truth.labels[j])],
        "box": [round(v, 2) for v in truth.boxes[j].tolist()],
        "cause": cause_of(missed),
        "text": describe(missed, names),
    }


def _alarm_rows(image: ImageErrors, threshold: float, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    for i in np.flatnonzero(false_alarms(image, threshold)).tolist():
        x1, y1, x2, y2 = image.boxes[i].tolist()
        about = int(image.objects[i])
        yield {
            "image_id": image.truth.image_id,
            "file": image.truth.file,
            "class": names[int(image.labels[i])],
            "score": round(float(image.scores[i]), 4),
            "box": [round(v, 2) for v in (x1, y1, x2 - x1, y2 - y1)],
            "cause": FALSE_ALARMS[ErrorKind(image.kinds[i])],
            "annotation_id": int(image.truth.annotation_ids[about]) if about >= 0 else None,
        }
