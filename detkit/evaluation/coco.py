"""COCO's evaluation of boxes (https://cocodataset.org/#detection-eval), to pycocotools' last bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from detkit.config import EVALUATORS
from detkit.evaluation.backends import BACKENDS, BackendName, choose_backend
from detkit.evaluation.columns import DetectionColumns, detection_columns, truth_columns
from detkit.evaluation.columns_file import ScoredSet
from detkit.evaluation.evaluator import ClassResult, Evaluation, Evaluator, EvaluatorState
from detkit.evaluation.results import Results, restore
from detkit.evaluation.summary import Curves, coco_metrics, mean, summarize
from detkit.structures import Categories, Detections, GroundTruth, ImageMeta


@EVALUATORS
class CocoEvaluator(Evaluator):
    """COCO's twelve numbers.

    ``categories`` and ``truths`` come at run time, from the data set. ``backend`` is the library that computes: "auto"
    takes the fastest one that is installed and equals pycocotools to the last bit. ``max_detections``: how many
    detections of an image *and class*, the best scores first, each recall may use; AP uses the largest.

    Two habits of the reference are kept, since its numbers are the ones that are compared. A hit that is alone on its
    curve has the precision 1 - 2**-52, so perfect detections reach 1 exactly only with two objects of each class. And
    an annotation with id 0 never counts as found; such a file gets a warning.
    """

    runtime_arguments = ("categories", "truths")

    def __init__(
        self,
        *,
        categories: Categories,
        truths: Sequence[GroundTruth],
        backend: Literal["auto", "pycocotools", "faster_coco_eval", "hotcoco"] = "auto",
        max_detections: tuple[int, int, int] = (1, 10, 100),
    ) -> None:
        if len(max_detections) != 3 or sorted({0, *max_detections}) != [0, *max_detections]:
            raise ValueError(f"max_detections must be three ascending numbers from 1, not {tuple(max_detections)}")
        self.categories = categories
        self.max_detections = (max_detections[0], max_detections[1], max_detections[2])
        self.metric_names = tuple(metric.name for metric in coco_metrics(self.max_detections))
        self._truth = truth_columns(truths, categories)
        self._files = {truth.image_id: truth.file for truth in truths}
        self.backend: BackendName = choose_backend(backend, self._truth)
        self._found: dict[int, Results] = {}

    def reset(self) -> None:
        self._found.clear()

    def update(self, detections: Sequence[Detections], metas: Sequence[ImageMeta]) -> None:
        """Take the detections of a batch of images, in px of the network input.

        Raises:
            ValueError: an image that the ground truth does not have or that came before, or detections that cannot be
                scored (see :func:`~detkit.evaluation.results.restore`).
        """
        if len(detections) != len(metas):
            raise ValueError(f"detections of {len(detections)} images, but {len(metas)} metas")
        for found, meta in zip(detections, metas, strict=True):
            self._add(self._found, meta.image_id, restore(found, meta, self.categories), meta.file)

    def compute(self, *, allow_missing: bool = False) -> Evaluation:
        """Score what has come since the last reset.

        Args:
            allow_missing: score images that never came as images without detections, rather than refuse.

        Raises:
            ValueError: images never came; the message counts them and names the first.
        """
        missing = [image_id for image_id in self._files if image_id not in self._found]
        if missing and not allow_missing:
            raise ValueError(
                f"{len(missing)} of {len(self._files)} images were never evaluated, the first is "
                f"{self._files[missing[0]]} (image id {missing[0]})"
            )
        found = detection_columns(self.results(), self._truth)
        curves = BACKENDS[self.backend].run(self._truth, found, self.max_detections)
        return Evaluation(
            metrics=summarize(curves, self.max_detections),
            per_class=self._per_class(curves, found),
            curves=curves,
            definitions=coco_metrics(self.max_detections),
            category_ids=tuple(self._truth.category_ids.tolist()),
            max_detections=self.max_detections,
            num_images=len(self._files),
            num_detections=len(found.scores),
            backend=self.backend,
        )

    def results(self) -> Results:
        """The detections so far in the data set's own terms, by ascending image id whatever the order they came in."""
        return Results.join(self._found[image_id] for image_id in sorted(self._found))

    def scored_set(self) -> ScoredSet:
        """Ground truth and detections so far as columns, to be kept in a file and scored again."""
        names = dict(zip(self.categories.ids, self.categories.names, strict=True))
        return ScoredSet(
            truth=self._truth,
            found=detection_columns(self.results(), self._truth),
            names=tuple(names[i] for i in self._truth.category_ids.tolist()),
            max_detections=self.max_detections,
        )

    def state(self) -> EvaluatorState:
        return EvaluatorState(np.array(sorted(self._found), np.int64), self.results())

    def merge(self, states: Sequence[EvaluatorState]) -> None:
        """Replace what has come by that of all ``states``, each image from one of them.

        Raises:
            ValueError: an image is in two states, or is not in the ground truth, or has detections but was not counted.
        """
        merged: dict[int, Results] = {}
        for image_ids, results in states:
            stray = np.setdiff1d(results.image_ids, image_ids)
            if len(stray):
                raise ValueError(f"detections of image id {stray[0]}, which is not among the images of their state")
            ordered = results.sort()
            first = np.searchsorted(ordered.image_ids, image_ids, side="left")
            last = np.searchsorted(ordered.image_ids, image_ids, side="right")
            for image_id, i, j in zip(image_ids.tolist(), first, last, strict=True):
                self._add(merged, image_id, ordered.select(slice(i, j)), self._files.get(image_id, "unknown file"))
        self._found = merged

    def _add(self, into: dict[int, Results], image_id: int, results: Results, file: str) -> None:
        if image_id not in self._files:
            raise ValueError(f"{file} (image id {image_id}) is not in the ground truth")
        if image_id in into:
            raise ValueError(f"{file} (image id {image_id}) was evaluated twice")
        into[image_id] = results

    def _per_class(self, curves: Curves, found: DetectionColumns) -> tuple[ClassResult, ...]:
        metrics = {metric.name: metric for metric in coco_metrics(self.max_detections)}
        places = np.searchsorted(self._truth.category_ids, self.categories.ids)
        num_gt = np.bincount(self._truth.categories[~self._truth.crowd] - 1, minlength=len(self.categories))
        num_det = np.bincount(found.categories - 1, minlength=len(self.categories))
        return tuple(
            ClassResult(
                name=name,
                AP=mean(metrics["AP"].select(curves, k)),
                AP50=mean(metrics["AP50"].select(curves, k)),
                AP75=mean(metrics["AP75"].select(curves, k)),
                AR=mean(metrics[f"AR{self.max_detections[-1]}"].select(curves, k)),
                num_gt=int(num_gt[k]),
                num_det=int(num_det[k]),
            )
            for name, k in zip(self.categories.names, places.tolist(), strict=True)
        )
