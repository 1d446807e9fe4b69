"""What a calibration found: thresholds, what they reach on its images, and how far scores are from probabilities."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.table import Table

from detkit.data.datasets.base import DetectionDataset
from detkit.engine.evaluation import to_device
from detkit.engine.precision import Precision, autocast, check_precision
from detkit.evaluation.errors import ImageErrors, image_errors
from detkit.evaluation.reliability import Kind, ScoreMap, crossed, expected_calibration_error, fit
from detkit.evaluation.results import restore
from detkit.evaluation.risk_control import Judged, image_losses
from detkit.evaluation.thresholds import Aim, Thresholds, find_thresholds, judge
from detkit.evaluation.unknown import LeastCosines, least_cosines
from detkit.models import Detector
from detkit.models.cosine_regions import CosineRegions
from detkit.models.unknown import nearness
from detkit.structures import Batch, Detections, Images

#: Thresholds at which the page draws precision and recall.
_DRAWN = np.linspace(0.02, 0.98, 49)

#: Of a normal distribution, what 95 % lie within.
_WITHIN = 1.96


class Curve(NamedTuple):
    """The mean over images at each threshold ``x`` (P,): ``y`` (P,), and between what it lies, 95 % at each point."""

    x: np.ndarray
    y: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True, slots=True)
class Calibration:
    """``thresholds`` of each class, ``judged`` detections of the images that they were found on, and ``scores``: what
    makes scores probabilities, and ``unknown``: below which cosines nothing is known; None where nobody asked.
    ``views``: how each image was looked at, in words; None for the plain detector."""

    thresholds: Thresholds
    judged: Judged
    scores: ScoreMap | None
    unknown: LeastCosines | None = None
    views: str | None = None

    @classmethod
    def of(cls, judged: Judged, names: Sequence[str], aim: Aim, kind: Kind | None, seed: int) -> Calibration:
        """Find all of it.

        Raises:
            ValueError: the aim is not reached at any threshold, or there are too few images to prove it.
        """
        thresholds = find_thresholds(judged, names, aim, seed)
        return cls(thresholds, judged, None if kind is None else fit(kind, judged.scores, judged.right))

    def errors(self) -> tuple[float, float | None]:
        """The expected calibration error of the detector's scores, and of mapped ones: those of a fifth of the images
        each by what the other four give, since the map itself has seen all of them. None without a map, or where one
        image has all detections."""
        scores, right = self.judged.scores, self.judged.right
        mapped = None if self.scores is None else crossed(self.scores.kind, scores, right, self.judged.images)
        after = None if mapped is None else expected_calibration_error(mapped, right)
        return expected_calibration_error(scores, right), after

    def reached(self, label: int) -> tuple[float, float]:
        """Precision and recall of class ``label`` at its threshold, of all detections and objects here; nan of none."""
        j, threshold = self.judged, self.thresholds.rows[label].threshold
        shown = (j.labels == label) & (j.scores >= threshold)
        objects = j.object_labels == label
        found = objects & (j.object_scores >= threshold)
        return _share(int(j.right[shown].sum()), int(shown.sum())), _share(int(found.sum()), int(objects.sum()))

    def curves(self) -> dict[str, Curve]:
        """Precision and recall of all classes together over the threshold, as means over images."""
        return {name: _curve(self.judged, name) for name in ("precision", "recall")}

    def to_checkpoint(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        kept: dict[str, Any] = {"thresholds": self.thresholds.values.tolist(), "aim": self.thresholds.aim.in_words}
        kept["tta"] = self.views
        if self.unknown is not None:
            kept["unknown"] = self.unknown.to_dict()
        return {**kept, "scores": None if self.scores is None else self.scores.to_dict()}

    def to_dict(self, source: str) -> dict[str, Any]:
        """Plain values: all of it but the detections."""
        before, after = self.errors()
        reached = [self.reached(k) for k in range(len(self.thresholds.rows))]
        return {
            "source": source,
            "tta": self.views,
            **self.thresholds.to_dict(),
            "reached": [{"precision": _plain(p), "recall": _plain(r)} for p, r in reached],
            "expected_calibration_error": {"before": _plain(before), "after": after},
            "scores": None if self.scores is None else self.scores.to_dict(),
            "unknown": None if self.unknown is None else self.unknown.to_dict(),
        }

    def rows(self) -> list[list[str]]:
        """Of the table, under HEADINGS."""
        rows = []
        for k, row in enumerate(self.thresholds.rows):
            of_class = (f"{value:.3f}" if value == value else "-" for value in self.reached(k))
            rows.append([row.name, f"{row.threshold:.3f}", "own" if row.own else f"shared: {row.why}", *of_class])
        return rows

    def table(self) -> Table:
        """The rows, to be printed by rich."""
        table = Table(title=f"thresholds for {self.thresholds.aim.in_words}", title_justify="left")
        for heading in HEADINGS:
            table.add_column(heading, justify="left" if heading in ("class", "whose") else "right")
        for row in self.rows():
            table.add_row(*row)
        return table


HEADINGS = ("class", "threshold", "whose", "precision here", "recall here")


class RightCosines:
    """The best cosines of right detections, collected image by image.

    Raises:
        ValueError: the detector does not classify regions by cosines.
    """

    def __init__(self, detector: Detector) -> None:
        self._regions = CosineRegions.of(detector)
        self._nearest, self._best = [np.zeros(0, np.int64)], [np.zeros(0)]

    def add(self, images: Images, found: Sequence[Detections], judged: Sequence[ImageErrors]) -> None:
        """``found`` in ``images``, px of the network input, and what was ``judged`` of it, the best score first."""
        for one, errors, (best, nearest) in zip(found, judged, nearness(self._regions, images, found), strict=True):
            order = np.argsort(-one.scores.double().cpu().numpy(), kind="stable")
            right = order[errors.right]
            self._best.append(best.double().numpy()[right])
            self._nearest.append(nearest.numpy()[right])

    def least(self, num_classes: int, share: float) -> LeastCosines:
        """See :func:`~detkit.evaluation.unknown.least_cosines`."""
        return least_cosines(np.concatenate(self._nearest), np.concatenate(self._best), num_classes, share)


def judged_images(
    detector: Detector,
    device: torch.device,
    batches: Iterable[Batch],
    dataset: DetectionDataset,
    precision: Precision,
    cosines: RightCosines | None = None,
) -> Iterator[ImageErrors]:
    """What ``detector``, without thresholds, finds in each image, judged; ``cosines`` collects the right ones'."""
    check_precision(precision, device)
    truths = {truth.image_id: truth for truth in dataset.truths}
    for batch in batches:
        batch = to_device(batch, device, channels_last=False)
        with torch.no_grad(), autocast(device, precision):
            found = detector(batch.images)
        results = [restore(each, meta, dataset.categories) for each, meta in zip(found, batch.images.meta, strict=True)]
        judged = [
            image_errors(truths[meta.image_id], of_one, dataset.categories)
            for of_one, meta in zip(results, batch.images.meta, strict=True)
        ]
        if cosines is not None:
            cosines.add(batch.images, found, judged)
        yield from judged


def calibrate(
    images: Iterable[ImageErrors], names: Sequence[str], aim: Aim, kind: Kind | None, seed: int
) -> Calibration:
    """See :meth:`Calibration.of`; ``images``: see :func:`judged_images`."""
    return Calibration.of(judge(images), names, aim, kind, seed)


def _curve(judged: Judged, risk: str) -> Curve:
    points = []
    for threshold in _DRAWN:
        losses = image_losses(judged, risk, threshold)  # pyright: ignore[reportArgumentType]
        if len(losses):
            mean, wide = 1 - float(losses.mean()), _WITHIN * float(losses.std()) / len(losses) ** 0.5
            points.append((float(threshold), mean, max(0.0, mean - wide), min(1.0, mean + wide)))
    return Curve(*np.array(points).reshape(-1, 4).T)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def _plain(value: float) -> float | None:
    return value if value == value else None
