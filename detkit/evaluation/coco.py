"""COCO's evaluation of boxes (https://cocodataset.org/#detection-eval), to pycocotools' last bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from detkit.config import EVALUATORS
from detkit.evaluation.backends import (
    BACKENDS,
    BackendName,
    choose_backend,
    pycocotools_similarity,
    run_pycocotools,
)
from detkit.evaluation.columns import DetectionColumns, detection_columns, truth_columns
from detkit.evaluation.columns_file import ScoredSet, grouped
from detkit.evaluation.evaluator import ClassResult, Evaluation, Evaluator, EvaluatorState
from detkit.evaluation.landmarks import (
    LANDMARK_METRICS,
    at_average_place,
    landmark_rule,
    mean_errors,
    normalised_errors,
    similarity_scores,
    with_landmarks,
)
from detkit.evaluation.results import Results, restore
from detkit.evaluation.summary import (
    COCO_SETTINGS,
    FREQUENCIES,
    UNDEFINED,
    Curves,
    Settings,
    coco_metrics,
    mean,
    summarize,
)
from detkit.structures import Categories, Detections, GroundTruth, ImageMeta

#: The name of all classes, where they count as one.
ANY_CLASS = "any class"


@EVALUATORS
class CocoEvaluator(Evaluator):
    """COCO's twelve numbers, and on request others like them.

    ``categories`` and ``truths`` come at run time, from the data set. ``backend`` is the library that computes: "auto"
    takes the fastest one that is installed and equals pycocotools to the last bit. ``max_detections``: how many
    detections of an image *and class*, the best scores first, each recall may use; AP uses the largest.

    ``iou_thresholds`` and ``recall_thresholds``: what AP is the mean over, ascending, in place of COCO's. ``areas``: in
    place of small, medium and large, names with their bounds in px^2, the upper one null for none. With any of them
    pycocotools scores. ``class_agnostic``: all classes count as one, so that finding is scored and naming is not.
    ``frequency_bounds``: of LVIS [10, 100]: AP also of the classes that are rare, common and frequent, in at most the
    first number of training images, up to the second, and in more (``class_images``, which comes at run time too, and
    counts those beside ``data.subset`` as well).

    Where the data and the detector have landmarks there are, too: NME, the mean error of those of found objects (IoU
    from 0.5) in shares of the distance of the two points that ``landmark_distance`` names, such as [left_eye,
    right_eye], or else of the root of the box's area; NME_average_place, that of the same detections with every point
    where it lies in the objects' boxes on average; landmarks_found, the share of objects found; and pycocotools' AP and
    AR by object keypoint similarity, with ``landmark_sigmas``, one for each point, by default COCO's for its 17 points
    and else 0.05.

    Two habits of the reference are kept, since its numbers are the ones that are compared. A hit that is alone on its
    curve has the precision 1 - 2**-52, so perfect detections reach 1 exactly only with two objects of each class. And
    an annotation with id 0 never counts as found; such a file gets a warning.
    """

    runtime_arguments = ("categories", "truths", "class_images")

    def __init__(
        self,
        *,
        categories: Categories,
        truths: Sequence[GroundTruth],
        backend: Literal["auto", "pycocotools", "faster_coco_eval", "hotcoco"] = "auto",
        max_detections: tuple[int, int, int] = (1, 10, 100),
        iou_thresholds: tuple[float, ...] | None = None,
        recall_thresholds: tuple[float, ...] | None = None,
        areas: Mapping[str, tuple[float, float | None]] | None = None,
        class_agnostic: bool = False,
        frequency_bounds: tuple[int, int] | None = None,
        class_images: Sequence[int] | None = None,
        landmark_distance: tuple[str, str] | None = None,
        landmark_sigmas: tuple[float, ...] | None = None,
    ) -> None:
        if len(max_detections) != 3 or sorted({0, *max_detections}) != [0, *max_detections]:
            raise ValueError(f"max_detections must be three ascending numbers from 1, not {tuple(max_detections)}")
        self.categories, self.class_agnostic = categories, class_agnostic
        self.max_detections = (max_detections[0], max_detections[1], max_detections[2])
        self.settings = own_settings(iou_thresholds, recall_thresholds, areas)
        self.frequency = None
        if frequency_bounds is not None:
            if class_agnostic:
                raise ValueError("frequency_bounds tell classes apart, which class_agnostic does not")
            self.frequency = frequencies(frequency_bounds, class_images, categories)
        self.definitions = coco_metrics(self.max_detections, self.settings, grouped(self.frequency))
        self.metric_names = tuple(metric.name for metric in self.definitions)
        self._truths = with_landmarks(truths) if categories.landmarks else None
        if self._truths is None and (landmark_distance or landmark_sigmas):
            raise ValueError("landmark_distance and landmark_sigmas score landmarks, and the data set has none")
        self._rule = landmark_rule(categories.landmarks, landmark_distance, landmark_sigmas) if self._truths else None
        if self._truths is not None:
            self.metric_names += LANDMARK_METRICS
        self._ids = truth_columns(truths, categories)
        self._truth = self._ids.of_one_class() if class_agnostic else self._ids
        self._files = {truth.image_id: truth.file for truth in truths}
        self.backend: BackendName = choose_backend(backend, self._truth, self.settings)
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
        found = self._columns()
        if self.settings == COCO_SETTINGS:
            curves = BACKENDS[self.backend].run(self._truth, found, self.max_detections)
        else:
            curves = run_pycocotools(self._truth, found, self.max_detections, self.settings)
        return Evaluation(
            metrics=summarize(curves, self.definitions) | self._landmark_scores(found),
            per_class=self._per_class(curves, found),
            curves=curves,
            definitions=self.definitions,
            category_ids=tuple(self._truth.category_ids.tolist()),
            max_detections=self.max_detections,
            num_images=len(self._files),
            num_detections=len(found.scores),
            backend=self.backend,
            settings=self.settings,
            frequency=self._in_label_order(),
        )

    def _landmark_scores(self, found: DetectionColumns) -> dict[str, float]:
        """Nothing where the data or the detector have no landmarks."""
        points = self.results().landmarks
        if self._truths is None or self._rule is None or points is None:
            return {}
        marked = [t.landmarks.points for t in self._truths if t.landmarks is not None]  # all have
        num = len(self._rule.sigmas)
        if points.shape[1] != num:
            raise ValueError(f"the detector finds {points.shape[1]} landmarks, and the objects have {num}")
        errors, plain = (
            normalised_errors(self._truths, placed, self.categories, self._rule)
            for placed in (self._found, at_average_place(self._truths, self._found))
        )
        curves = pycocotools_similarity(self._truth, found, np.concatenate(marked), points, self._rule.sigmas)
        average = {"NME_average_place": mean_errors(plain)["NME"]}
        return mean_errors(errors) | average | similarity_scores(curves)

    def _columns(self) -> DetectionColumns:
        found = detection_columns(self.results(), self._ids)
        return found._replace(categories=np.ones_like(found.categories)) if self.class_agnostic else found

    def _in_label_order(self) -> tuple[str, ...] | None:
        places = np.searchsorted(self._ids.category_ids, self.categories.ids).tolist()
        return None if self.frequency is None else tuple(self.frequency[k] for k in places)

    def results(self) -> Results:
        """The detections so far in the data set's own terms, by ascending image id whatever the order they came in."""
        return Results.join(self._found[image_id] for image_id in sorted(self._found))

    def scored_set(self) -> ScoredSet:
        """Ground truth and detections so far as columns, to be kept in a file and scored again."""
        names = dict(zip(self.categories.ids, self.categories.names, strict=True))
        named = tuple(names[i] for i in self._ids.category_ids.tolist())
        return ScoredSet(
            truth=self._truth,
            found=self._columns(),
            names=(ANY_CLASS,) if self.class_agnostic else named,
            max_detections=self.max_detections,
            settings=self.settings,
            frequency=self.frequency,
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
        metrics = {metric.name: metric for metric in self.definitions}
        names, places = self.categories.names, np.searchsorted(self._ids.category_ids, self.categories.ids).tolist()
        if self.class_agnostic:
            names, places = (ANY_CLASS,), [0]
        num_gt = np.bincount(self._truth.categories[~self._truth.crowd] - 1, minlength=len(names))
        num_det = np.bincount(found.categories - 1, minlength=len(names))

        def score(name: str, k: int) -> float:
            return mean(metrics[name].select(curves, k)) if name in metrics else UNDEFINED

        return tuple(
            ClassResult(
                name=name,
                AP=score("AP", k),
                AP50=score("AP50", k),
                AP75=score("AP75", k),
                AR=score(f"AR{self.max_detections[-1]}", k),
                num_gt=int(num_gt[k]),
                num_det=int(num_det[k]),
            )
            for name, k in zip(names, places, strict=True)
        )


def own_settings(
    iou_thresholds: Sequence[float] | None,
    recall_thresholds: Sequence[float] | None,
    areas: Mapping[str, tuple[float, float | None]] | None,
) -> Settings:
    """COCO's settings, with what is given in their place.

    Raises:
        ValueError: thresholds that do not ascend in [0, 1], or an area that holds nothing.
    """
    settings = COCO_SETTINGS
    if iou_thresholds is not None:
        settings = settings._replace(iou_thresholds=_ascending("iou_thresholds", iou_thresholds))
    if recall_thresholds is not None:
        settings = settings._replace(recall_thresholds=_ascending("recall_thresholds", recall_thresholds))
    if areas is not None:
        bounds = [(name, low, settings.areas[0][2] if high is None else high) for name, (low, high) in areas.items()]
        for name, low, high in bounds:
            if not 0 <= low < high or name == "all":
                raise ValueError(f"areas.{name} must have bounds in px^2, the lower one first, not {list(areas[name])}")
        settings = settings._replace(areas=(settings.areas[0], *bounds))
    return settings


def _ascending(name: str, values: Sequence[float]) -> tuple[float, ...]:
    if not values or list(values) != sorted(set(values)) or not 0 <= values[0] <= values[-1] <= 1:
        raise ValueError(f"{name} must be numbers in [0, 1], ascending, not {list(values)}")
    return tuple(float(v) for v in values)


def frequencies(bounds: tuple[int, int], class_images: Sequence[int] | None, categories: Categories) -> tuple[str, ...]:
    """How frequent each category is, in the order of their ids.

    Raises:
        ValueError: bounds that do not ascend, or the training data is not known.
    """
    if not 0 <= bounds[0] < bounds[1]:
        raise ValueError(f"frequency_bounds must be two ascending numbers of images, not {list(bounds)}")
    if class_images is None:
        raise ValueError("frequency_bounds count training images, and there is no training data here")
    by_id = sorted(zip(categories.ids, class_images, strict=True))
    return tuple(FREQUENCIES[int(np.searchsorted(bounds, count, side="left"))] for _, count in by_id)
